"""Small models whose chat formats know tools, thoughts and the like: templates of the kinds of published ones."""

import hf_models
from hf_models import Model, byte_level
from tokenizers import AddedToken

# As Qwen 3 and Hermes: tools in the system turn, calls as JSON in tags, results in user turns, thoughts in tags, of
# which those before the last question go.
QWEN3 = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\nCall within <tool_call></tool_call>.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(asked=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or message.role == 'system' and not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.asked and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if content or not loop.first %}{{- '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# As Llama 3.1: tools in the system turn, one call alone in an answer, results as JSON in a turn of their own.
LLAMA31 = """
{{- bos_token }}
{%- set given = messages[0].content if messages[0].role == 'system' else '' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + given | trim }}
{%- if tools is not none %}
    {{- '\\nYou may call:\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n' }}{% endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if message.role in ('tool', 'ipython') %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# As Mistral 7B v0.3: control tokens for all, tools before the last question, identifiers of nine characters.
MISTRAL = """
{{- bos_token }}
{%- set ns = namespace(asked=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.index0 == ns.asked %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('no identifier') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ']' + eos_token if loop.last else ', ' }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- elif message.role in ('tool', 'tool_results') %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | tojson + ', "call_id": "' }}
        {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('no such role') }}
    {%- endif %}
{%- endfor %}
"""

# As Llama 2: a system text within the first question, and BOS before every question.
LLAMA2 = """
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {%- set before = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
        {%- set before = before if loop.first and messages[0].role == 'system' else '' %}
        {{- bos_token + '[INST] ' + before + message.content | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# As the distilled DeepSeek R1: of every answer the thought goes, and generation begins within one.
R1 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|User|>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}
    {%- else %}{{- message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{% endif %}
"""

# As Qwen 3 Thinking: the header of an answer opens its thought.
THINKING = QWEN3.replace(
    "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable",
    "{{- '<|im_start|>assistant\\n<think>\\n' }}\n    {%- if enable",
)
# As SmolLM3: words in the system text are switches.
SWITCHES = """
{%- set given = messages[0].content if messages[0].role == 'system' else '' %}
{%- set mode = '/no_think' if '/no_think' in given else '/think' %}
{{- '<|im_start|>system\\nMode: ' + mode + '\\n' + given.replace('/no_think', '').rstrip() + '<|im_end|>\\n' }}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def qwen(template: str = QWEN3, thoughts: bool = False, plain_marks: bool = False) -> Model:
    """Marks of thoughts and calls are plain added tokens as Qwen has them, or (`thoughts`) special ones.

    plain_marks: those of turns are plain added tokens, too.
    """
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(["<|endoftext|>"] + ([] if plain_marks else marks))
    names = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    for name in (marks if plain_marks else []) + names + ["<|python_tag|>"]:
        special = name == "<|python_tag|>" or (thoughts and name not in marks)
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=special)])
    end = "<|endoftext|>" if plain_marks else "<|im_end|>"
    return Model(
        tokenizer, template, "<|im_end|>", {"bos_token": None, "eos_token": end, "pad_token": "<|endoftext|>"}
    )


def llama31() -> Model:
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "python_tag"]
    special = [f"<|{name}|>" for name in names]
    tokens = {"bos_token": special[0], "eos_token": special[1]}
    return Model(byte_level(special, special[0]), LLAMA31, "<|eot_id|>", tokens)


def mistral() -> Model:
    names = ["INST", "AVAILABLE_TOOLS", "TOOL_RESULTS"]
    special = [
        "<unk>",
        "<s>",
        "</s>",
        "[TOOL_CALLS]",
        *(f"[{slash}{name}]" for name in names for slash in ("", "/")),
    ]
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Model(hf_models.sentencepiece_like(special, "<s>", None), MISTRAL, "</s>", tokens)


def r1() -> Model:
    special = ["<|end|>", "<|begin|>", "<|User|>", "<|Assistant|>"]
    tokenizer = byte_level(special, "<|begin|>")
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    return Model(tokenizer, R1, "<|end|>", {"bos_token": "<|begin|>", "eos_token": "<|end|>"})


TOOL_MODELS = {
    "qwen3": qwen,
    "qwen3, special marks": lambda: qwen(thoughts=True),
    "llama3.1": llama31,
    "mistral": mistral,
}
