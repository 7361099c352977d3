"""`jaxalign chat`: a conversation in the terminal, tokens as they come; with two models, side by side."""

import dataclasses
import io
import sys
from collections.abc import Iterator
from typing import Any

import jax
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from jaxalign import parallel
from jaxalign.data import Tokenizer, load_tokenizer
from jaxalign.data.encode import encode_prompt
from jaxalign.data.records import Message, Prompt
from jaxalign.errors import DataError
from jaxalign.fields import like
from jaxalign.models import ModelConfig, Params
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.sampling.stream import stream
from jaxalign.training.saved_model import find_language_model
from jaxalign.verbs.requests import flag
from jaxalign.verbs.sampling import MODEL, SamplingRequest

HELP = "/reset forgets the conversation, /system TEXT sets a system message, /quit ends it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest(SamplingRequest):
    """Talk to a model in the terminal, or to two side by side."""

    model: str = flag(MODEL, show="SRC")
    other: str = flag("a second model, to answer beside the first", default="", show="SRC")
    system: str = flag("system message", default="")
    plain: bool = flag("continue texts, for models that know no chat", default=False)
    max_new_tokens: int = like(SamplingConfig, "max_new_tokens", default=512)


@dataclasses.dataclass
class Speaker:
    """One model and its side of the conversation."""

    name: str
    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    messages: list[Message] = dataclasses.field(default_factory=list)

    def reply(self, text: str, sampling: SamplingConfig, key: jax.Array, *, plain: bool) -> Iterator[str]:
        """Yields the reply so far, longer and longer, and remembers it when it is whole.

        `plain` continues a text instead of answering a message, for models that know no conversation.
        """
        said = [*self.messages, Message("user", text)]
        prompt = Prompt(text if plain else tuple(said))
        ids: list[int] = []
        reply = ""
        stops = self.tokenizer.eos_ids
        prompt_ids = encode_prompt(prompt, self.tokenizer).ids
        for token in stream(
            self.params, self.config, prompt_ids.tolist(), key, sampling=sampling, stop_ids=stops
        ):
            ids += [token] * (token not in stops)
            # A character may take several tokens: what is not yet whole is held back.
            reply = self.tokenizer.decode_answer(ids)
            yield reply.rstrip("\ufffd")
        if not plain:
            self.messages = [*said, Message("assistant", reply)] if reply.strip() else said[:-1]


def load_speaker(path: str, flag: str, *, chat_template: str, template_args: str, dtype: str) -> Speaker:
    """The model in a run, a Hugging Face folder or on the hub; call inside `parallel.use_mesh`."""
    model = find_language_model(path, flag)
    config = dataclasses.replace(model.config, dtype=dtype)
    tokenizer = load_tokenizer(model.path, chat_template, template_args)
    return Speaker(path, model.load(jax.sharding.get_mesh()), config, tokenizer)


def run(request: ChatRequest) -> int:
    """Talks until standard input ends."""
    chat(request)
    return 0


def chat(request: ChatRequest, *, console: Console | None = None, lines: Any = None) -> None:
    """Reads messages from `lines` (standard input) until it ends; every model answers each of them."""
    console = console or Console()
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    system = request.system
    with parallel.use_mesh(mesh):
        named = {"--model": request.model} | ({"--other": request.other} if request.other else {})
        speakers = [
            load_speaker(
                path,
                name,
                chat_template=request.chat_template,
                template_args=request.template_args,
                dtype=request.dtype,
            )
            for name, path in named.items()
        ]
        _reset(speakers, system)
        console.print(f"[dim]{HELP}[/]")
        for turn, text in enumerate(_messages(console, lines)):
            if not _is_unicode(text):
                console.print("[red]That is not Unicode text; type it again, or give it in UTF-8.[/]")
                continue
            if text.startswith("/"):
                system = _command(text, speakers, system, console)
                continue
            keys = jax.random.split(jax.random.fold_in(jax.random.key(request.seed), turn), len(speakers))
            replies = [
                speaker.reply(text, request.sampling, key, plain=request.plain)
                for speaker, key in zip(speakers, keys, strict=True)
            ]
            try:
                _show(console, speakers, replies)
            except DataError as error:  # the template refuses the conversation
                console.print(f"[red]{error}[/]")


def _messages(console: Console, lines: Any) -> Iterator[str]:
    source = lines if lines is not None else sys.stdin
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(errors="surrogateescape")  # bytes that are no UTF-8 are refused as a message
    while True:
        console.print("[bold]you:[/] ", end="")
        line = source.readline().removeprefix("\ufeff")  # which some editors begin a file with
        if not source.isatty():  # nobody has typed it on the screen
            console.print(
                line.rstrip("\n").encode(errors="replace").decode(),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if not line or line.strip() == "/quit":
            return
        # Only what ends a line is no part of a message, and blanks around it; rare line separators are.
        if text := line.strip(" \t\r\n"):
            yield text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python passes on as halves of characters
        return False
    return True


def _command(text: str, speakers: list[Speaker], system: str, console: Console) -> str:
    name, _, rest = text.partition(" ")
    if name == "/system":
        system = rest
    elif name != "/reset":
        console.print(f"[red]{name} is no command.[/] {HELP}")
        return system
    _reset(speakers, system)
    return system


def _reset(speakers: list[Speaker], system: str) -> None:
    for speaker in speakers:
        speaker.messages = [Message("system", system)] if system else []


def _show(console: Console, speakers: list[Speaker], replies: list[Iterator[str]]) -> None:
    if len(speakers) == 1:
        written = 0
        for reply in replies[0]:
            console.print(reply[written:], end="", markup=False, highlight=False, soft_wrap=True)
            written = len(reply)
        console.print()
        return
    texts = [""] * len(speakers)
    with Live(console=console, refresh_per_second=10) as live:
        running = dict(enumerate(replies))
        while running:
            for i, reply in list(running.items()):
                more = next(reply, None)
                if more is None:
                    del running[i]
                else:
                    texts[i] = more
            width = console.width // len(speakers) - 1
            live.update(
                Columns([Panel(t, title=s.name, width=width) for s, t in zip(speakers, texts, strict=True)])
            )
