"""Small Hugging Face tokenizer folders: chat formats as published, templates and vocabularies made here."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "user and assistant and system and model, a question and an answer to the question.\n\n",
    "The quick brown fox asks: who wrote this reply, and what's the answer?\n",
    "Cutting Knowledge Date: Today Date: 12 345 678\n\n<|user|>\n<|assistant|>\n[INST] [/INST]\n",
    "日本語の質問に日本語で答えてください。富士山の高さは何メートルですか。\n",
] * 5
WORDS = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"


def byte_level(special: list[str], opening: str | None = None) -> Tokenizer:
    """As Llama 3's and Qwen's: a regular expression cuts words, bytes become characters, BPE merges them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return finish(tokenizer, special, opening)


def sentencepiece_like(special: list[str], opening: str | None, prefix: str | None) -> Tokenizer:
    """As Gemma's (prefix None), Mistral's ("first") and Llama 2's ("always"): BPE over ▁, bytes as a fallback."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    names = [
        *special,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *sorted(state["vocab"], key=state["vocab"].get),
    ]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        steps = [normalizers.Prepend("▁")] if prefix == "always" else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return finish(tokenizer, special, opening)


def finish(tokenizer: Tokenizer, special: list[str], opening: str | None) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    if opening:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{opening} $A", special_tokens=[(opening, tokenizer.token_to_id(opening))]
        )
    return tokenizer


@dataclass(frozen=True)
class Model:
    """What a folder holds; `terminator` ends an assistant turn."""

    tokenizer: Tokenizer
    template: str | None
    terminator: str = ""
    config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json

    def write(self, folder: Path, **files: dict[str, Any]) -> Path:
        """Writes the folder; `files` are further JSON files by stem."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        files = {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}} | files
        for stem, values in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(values))
        if self.template is not None:
            (folder / "chat_template.jinja").write_text(self.template, "utf-8")
        return folder


LLAMA3 = """
{%- macro turn(role, text) -%}
    {{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + text | trim + '<|eot_id|>' }}
{%- endmacro -%}
{%- set today = strftime_now("%d %b %Y") if strftime_now is defined else '26 Jul 2024' -%}
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{{ bos_token + turn('system', 'Today Date: ' + today + '\\n\\n' + system | trim) }}
{%- for message in (messages[1:] if messages[0]['role'] == 'system' else messages) %}
    {{- turn(message['role'], message['content']) }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN25 = """
{%- if tools %}
    {{- raise_exception('no tools here') }}
{%- endif %}
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou answer.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>' }}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Thoughts stay in what answers the last question, where an empty one is written if there is none.
QWEN3 = """
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set answers = message.role == 'assistant' and '</think>' in message.content %}
    {%- set text = message.content.split('</think>')[-1].lstrip('\\n') if answers else message.content %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last %}
        {%- set thought = message.content.split('</think>')[0].split('<think>')[-1] if answers else '' %}
        {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

GEMMA3 = """
{{- bos_token -}}
{%- set ns = namespace(opening='', turns=messages) -%}
{%- if messages[0].role == 'system' -%}
    {%- set ns.opening, ns.turns = messages[0].content + '\\n\\n', messages[1:] -%}
{%- endif -%}
{%- for turn in ns.turns -%}
    {%- if turn.role != ('user', 'assistant')[loop.index0 % 2] -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    <start_of_turn>{{ {'user': 'user', 'assistant': 'model'}[turn.role] + '\\n' }}
    {%- if loop.first %}{{ ns.opening }}{% endif -%}
    {{ turn.content | trim }}<end_of_turn>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}<start_of_turn>model{{ '\\n' }}{% endif -%}
"""

MISTRAL = """{%- macro instruction(text) -%}
    {{ ' [INST] ' + text + ' [/INST]' }}
{%- endmacro -%}
{%- set ns = namespace(system='') -%}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = message['content'] + '\\n\\n' %}
        {%- continue %}
    {%- elif message['role'] == 'user' %}
        {{- instruction(ns.system + message['content']) }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

CHATML = """
{%- for turn in messages + ([{'role': 'assistant'}] if add_generation_prompt else []) -%}
    <|im_start|>{{ turn.role + '\\n' }}
    {%- if turn.content is defined %}{{ turn.content }}<|im_end|>{{ '\\n' }}{% endif -%}
{%- endfor -%}
"""

# Plain text marks the roles. Line breaks of the template itself belong to the format.
ZEPHYR = """{% for message in messages %}
<|{{ message.role }}|>
{{ message.content + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""

# The header's line break is no token: <|user|> takes white space after it along. At the very end comes EOS.
PHI3 = """
{%- for message in messages -%}
    <|{{ message.role }}|>{{ '\\n' + message.content }}<|end|>{{ '\\n' }}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token }}"""


def llama3() -> Model:
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    special = [f"<|{name}|>" for name in names]
    tokens = {"bos_token": special[0], "eos_token": special[1]}
    return Model(byte_level(special, special[0]), LLAMA3, "<|eot_id|>", tokens)


def qwen(template: str = QWEN25) -> Model:
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return Model(tokenizer, template, "<|im_end|>", tokens)


def gemma3() -> Model:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokens = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return Model(sentencepiece_like(special, "<bos>", None), GEMMA3, "<end_of_turn>", tokens)


def llama2(template: str | None, prefix: str) -> Model:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Model(sentencepiece_like(["<unk>", "<s>", "</s>"], "<s>", prefix), template, "</s>", tokens)


def chatml() -> Model:
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}  # a base model's; bos as SmolLM2's
    return Model(byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), CHATML, "<|im_end|>", tokens)


def phi3() -> Model:
    model = llama2(PHI3, "first")
    names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    model.tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True, rstrip=i > 0) for i, name in enumerate(names)]
    )
    tokens = model.config | {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return Model(model.tokenizer, PHI3, "<|end|>", tokens)


MODELS = {
    "llama3": llama3,
    "qwen2.5": qwen,
    "qwen3": lambda: qwen(QWEN3),
    "gemma3": gemma3,
    "mistral": lambda: llama2(MISTRAL, "first"),
    "llama2 tokenizer, mistral format": lambda: llama2(MISTRAL, "always"),
    "chatml": chatml,
    "zephyr": lambda: llama2(ZEPHYR, "always"),
    "phi3": phi3,
}
