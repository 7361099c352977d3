"""`jaxalign chat`: a conversation in the terminal or a browser, tokens as they come; with two models, side by side."""

import contextlib
import dataclasses
import io
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from jaxalign.data.records import Message
from jaxalign.errors import ConfigError, JaxalignError, amount
from jaxalign.fields import like, nearest_hint
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.storage import json_line, to_path, write_whole
from jaxalign.streams import shown
from jaxalign.verbs.requests import flag
from jaxalign.verbs.sampling import MODEL, SamplingRequest
from jaxalign.verbs.speaker import Speaker, load_speaker, one_device

COMMANDS = {
    "/help": "shows this",
    "/reset": "forgets the conversation",
    "/undo": "forgets the last message and its reply",
    "/retry": "forgets the last reply, and asks for another",
    "/system TEXT": "sets a system message, and forgets the conversation",
    "/temperature X": "samples at this temperature; 0 takes the likeliest token",
    "/save FILE": "writes the conversation as a row of messages to train on",
    "/quit": "ends it, as Ctrl-D does",
}
NO_SYSTEM = "a text that is continued (--plain) has no system message; leave one of the two out"
_NAMES = tuple(command.split()[0] for command in COMMANDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest(SamplingRequest):
    """Talk to a model, or to two side by side, in the terminal or in a browser.

    In the terminal, /help shows what can be said beside messages; Ctrl-C stops a reply.

        jaxalign chat --model=runs/dpo --other=runs/sft --web
    """

    model: str = flag(MODEL, show="SRC")
    other: str = flag("a second model, to answer beside the first", default="", show="SRC")
    system: str = flag("system message", default="")
    plain: bool = flag("continue texts, for models that know no chat", default=False)
    web: bool = flag("on a page of this machine alone, in place of the terminal", default=False)
    port: int = flag("of that page; 0: any that is free", default=0, at_least=0, at_most=65535)
    max_new_tokens: int = like(SamplingConfig, "max_new_tokens", default=512)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plain and self.system:
            raise ConfigError(f"--system={self.system}: {NO_SYSTEM}")


def run(request: ChatRequest) -> int:
    """Talks until standard input ends, or serves the page until Ctrl-C."""
    if request.web:
        from jaxalign.verbs.chat_server import serve

        serve(request)
    else:
        chat(request)
    return 0


def load_speakers(request: ChatRequest) -> list[Speaker]:
    """The models that a request names; call inside `one_device`."""
    named = {"--model": request.model} | ({"--other": request.other} if request.other else {})
    return [
        load_speaker(
            path,
            name,
            chat_template=request.chat_template,
            template_args=request.template_args,
            dtype=request.dtype,
        )
        for name, path in named.items()
    ]


def chat(request: ChatRequest, *, console: Console | None = None, lines: Any = None) -> None:
    """Reads messages from `lines` (standard input) until it ends; every model answers each of them."""
    console = console or Console()
    with one_device():
        talk = Talk(console, load_speakers(request), request)
        talk.tell("/help shows what can be said beside messages")
        for text in _messages(console, lines):
            if not is_unicode(text):
                talk.complain("That is not Unicode text; type it again, or give it in UTF-8.")
                continue
            try:
                if not text.startswith("/"):
                    talk.say(text)
                elif not talk.obey(text):
                    return
            except (JaxalignError, OSError) as error:  # as of a template that refuses the conversation
                talk.complain(str(error))


class Talk:
    """A conversation with some models at once: what was said, and how they answer."""

    def __init__(self, console: Console, speakers: list[Speaker], request: ChatRequest) -> None:
        self.console = console
        self.speakers = speakers
        self.plain = request.plain
        self.sampling = request.sampling
        self.system = request.system
        self._key = jax.random.key(request.seed)
        self._turn = 0
        # What the models remembered before each message that was answered.
        self._before: list[tuple[str, list[list[Message]]]] = []
        self.reset()

    def say(self, text: str) -> None:
        """Every model answers a message."""
        keys = jax.random.split(jax.random.fold_in(self._key, self._turn), len(self.speakers))
        self._turn += 1
        self._before.append((text, [speaker.messages for speaker in self.speakers]))
        replies = [
            speaker.reply(text, self.sampling, key, plain=self.plain)
            for speaker, key in zip(self.speakers, keys, strict=True)
        ]
        try:
            _show(self.console, self.speakers, replies)
            for speaker, before in zip(self.speakers, self._before[-1][1], strict=True):
                if not self.plain and speaker.messages is before:
                    self.tell(f"{speaker.name} ended without a word, and forgets the message")
        except KeyboardInterrupt:
            self.undo()
            self.console.print()
            self.tell("stopped; the models forget the message")
        except JaxalignError:
            self.undo()
            raise

    def obey(self, line: str) -> bool:
        """Does what a command says; returns False when the conversation is to end.

        Raises:
          ConfigError: there is no such command (with the nearest), or it cannot be done now.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/help":
                width = max(map(len, COMMANDS))
                for command, does in COMMANDS.items():
                    self.tell(f"{command:<{width}}  {does}")
            case "/reset":
                self.reset()
                self.tell("the conversation is forgotten")
            case "/system":
                if self.plain:
                    raise ConfigError(f"/system: {NO_SYSTEM}")
                self.system = rest
                self.reset()
                self.tell("a new conversation, with this system message" if rest else "no system message")
            case "/undo":
                self.tell(f"forgotten: {self.undo()}")
            case "/retry":
                text = self.undo()
                self.tell(f"again: {text}")
                self.say(text)
            case "/temperature":
                self.sampling = dataclasses.replace(self.sampling, temperature=read_temperature(rest))
                self.tell(f"temperature {self.sampling.temperature:g}")
            case "/save":
                self.save(rest)
            case "/quit" | "/exit":
                return False
            case _:
                hint = nearest_hint(name, _NAMES) or f"; there are {', '.join(_NAMES)}"
                raise ConfigError(f"{name} is no command{hint}")
        return True

    def reset(self) -> None:
        """Forgets the conversation, but for the system message."""
        self._before.clear()
        for speaker in self.speakers:
            speaker.messages = [Message("system", self.system)] if self.system else []

    def undo(self) -> str:
        """Forgets the last message and its replies; returns the message."""
        if not self._before:
            raise ConfigError("nothing has been said yet")
        text, messages = self._before.pop()
        for speaker, before in zip(self.speakers, messages, strict=True):
            speaker.messages = before
        return text

    def save(self, name: str) -> None:
        """Writes the conversation of every model as a row {"model", "messages"}, appended to what the file has."""
        if not name:
            raise ConfigError("write the name of a file: /save FILE.jsonl")
        rows = [
            {"model": speaker.name, "messages": [message.to_dict() for message in speaker.messages]}
            for speaker in self.speakers
            if any(message.role == "assistant" for message in speaker.messages)
        ]
        if not rows:
            raise ConfigError("there is no conversation to save")
        path = to_path(name)
        before = path.read_bytes() if path.is_file() else b""
        if before and not before.endswith(
            b"\n"
        ):  # as an editor may leave it: a row of its own, not two in one line
            before += b"\n"
        write_whole(path, before + "".join(map(json_line, rows)).encode())
        self.tell(f"{name}: {amount(len(rows), 'row')} more")

    def tell(self, text: str) -> None:
        """Says something that no model says."""
        self.console.print(shown(text), style="dim", markup=False, highlight=False, soft_wrap=True)

    def complain(self, text: str) -> None:
        """Says what is wrong."""
        self.console.print(shown(text), style="red", markup=False, highlight=False, soft_wrap=True)


def read_temperature(value: Any) -> float:
    """A temperature as it was typed or sent.

    Raises:
      ConfigError: it is no number of 0 or more.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not 0 <= found < math.inf:
        raise ConfigError(f"temperature {value!r} is no number of 0 or more; 0.7 is one")
    return found


def _messages(console: Console, lines: Any) -> Iterator[str]:
    source = lines if lines is not None else sys.stdin
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(errors="surrogateescape")  # bytes that are no UTF-8 are refused as a message
    typed = source is sys.stdin and source.isatty()
    if typed:
        _edit_lines()
    while True:
        if typed:
            try:
                line = input("you: ") + "\n"
            except EOFError:
                line = ""
        else:
            console.print("you: ", end="", style="bold")
            line = source.readline().removeprefix("\ufeff")  # which some editors begin a file with
            # Nobody has typed it on the screen.
            console.print(shown(line.rstrip("\n")), markup=False, highlight=False, soft_wrap=True)
        if not line:
            return
        # Only what ends a line is no part of a message, and blanks around it; rare line separators are.
        if text := line.strip(" \t\r\n"):
            yield text


def is_unicode(text: str) -> bool:
    """Whether a text can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python passes on as halves of characters
        return False
    return True


def _edit_lines() -> None:
    """Lines typed can be edited, and those before come back with the arrows; Tab completes a command."""
    # Some builds of Python have no readline.
    with contextlib.suppress(ImportError):
        import readline

        def complete(text: str, state: int) -> str | None:
            found = [name for name in _NAMES if name.startswith(text)]
            return found[state] if text.startswith("/") and state < len(found) else None

        readline.set_completer(complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")


def _show(console: Console, speakers: list[Speaker], replies: list[Iterator[str]]) -> None:
    if len(speakers) == 1:
        written = 0
        for reply in replies[0]:
            console.print(shown(reply[written:]), end="", markup=False, highlight=False, soft_wrap=True)
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
            panels = [
                Panel(Text(shown(text)), title=Text(shown(speaker.name)), width=width)
                for speaker, text in zip(speakers, texts, strict=True)
            ]
            live.update(Columns(panels))
