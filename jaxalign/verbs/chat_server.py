"""`jaxalign chat --web`: a page of this machine alone on which one talks to a model, or to two side by side.

The browser keeps the conversation and sends the whole of it with each message; the server keeps nothing. A reply comes
as lines of JSON while it is sampled: {"text": more of it}, then {"done": true, "reply": all of it} or {"error": why}.

Other pages that the browser shows must not talk to the models, nor read what they say: the server listens on 127.0.0.1
alone, its address holds a random token, a request must name this host (a name that resolves to it is not enough, as in
DNS rebinding), and must be JSON, which a page from elsewhere may not send without being asked first.
"""

import contextlib
import dataclasses
import hmac
import http.server
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxalign.data.records import Message
from jaxalign.errors import ConfigError, JaxalignError, UsageError
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.verbs.chat import ChatRequest, is_unicode, load_speakers, read_temperature
from jaxalign.verbs.chat_page import page
from jaxalign.verbs.speaker import Speaker, one_device

HOST = "127.0.0.1"
_LONGEST = 1 << 20  # bytes of a request
_ROLES = ("system", "user", "assistant")


def serve(request: ChatRequest) -> None:
    """Serves the page until Ctrl-C."""
    with one_device():
        server = ChatServer(load_speakers(request), request)
    print(f"{server.address}\n(for this machine alone; Ctrl-C ends it)", flush=True)
    with contextlib.closing(server), contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


class ChatServer(http.server.ThreadingHTTPServer):
    """Serves some models.

    Raises:
      UsageError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, speakers: Sequence[Speaker], request: ChatRequest) -> None:
        self.speakers = tuple(speakers)
        self.request = request
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, request.port), _Handler)
        except OSError as error:
            raise UsageError(
                f"--port={request.port}: {error.strerror}; name another, or 0 for any that is free"
            ) from error
        self.port = self.server_address[1]
        self.hosts = (f"{HOST}:{self.port}", f"localhost:{self.port}")

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def close(self) -> None:
        """Frees the port."""
        self.server_close()

    def answer(self, asked: Any) -> Iterator[dict[str, Any]]:
        """The lines of a reply to a conversation: pieces of it, and at last the whole.

        Raises:
          ConfigError: what is asked is no conversation with one of the models.
        """
        speaker, said, sampling, seed = self._read(asked)
        written = reply = ""
        for reply in speaker.answer(said, sampling, jax.random.key(seed), plain=self.request.plain):
            # A tokenizer may change its mind about the last characters: they are sent once they stay.
            if reply.startswith(written):
                yield {"text": reply[len(written) :]}
                written = reply
        yield {"done": True, "reply": reply}

    def _read(self, asked: Any) -> tuple[Speaker, list[Message], SamplingConfig, int]:
        if (
            not isinstance(asked, dict)
            or not isinstance(asked.get("messages"), list)
            or not asked["messages"]
        ):
            raise ConfigError("a request has messages, a list")
        said = []
        for message in asked["messages"]:
            role, content = (
                (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
            )
            if role not in _ROLES or not isinstance(content, str) or not is_unicode(content):
                raise ConfigError(f"a message has a role, one of {', '.join(_ROLES)}, and a text as content")
            said.append(Message(role, content))
        model, seed = asked.get("model", 0), asked.get("seed", self.request.seed)
        if type(model) is not int or not 0 <= model < len(self.speakers):
            raise ConfigError(f"there are {len(self.speakers)} models, and {model!r} is none of them")
        if type(seed) is not int or not 0 <= seed < 1 << 31:
            raise ConfigError(f"seed {seed!r} is no number from 0 to 2147483647")
        temperature = read_temperature(asked.get("temperature", self.request.temperature))
        sampling = dataclasses.replace(self.request.sampling, temperature=temperature)
        return self.speakers[model], said, sampling, seed


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self._allowed(""):
            nonce = secrets.token_urlsafe(16)
            request, names = self.server.request, [speaker.name for speaker in self.server.speakers]
            body = page(
                names,
                nonce,
                system=request.system,
                temperature=request.temperature,
                plain=request.plain,
                seed=request.seed,
            )
            policy = (
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            self._send(200, body.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        if not self._allowed("reply"):
            return
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        length = self.headers.get("Content-Length", "")
        if kind != "application/json":
            self._refuse(415, "send application/json")
        elif not length.isdecimal() or int(length) > _LONGEST:
            self._refuse(413, f"send at most {_LONGEST} bytes")
        else:
            self._reply(self.rfile.read(int(length)))

    def _allowed(self, action: str) -> bool:
        """Whether a request is for this server, with its token, and not from another page; refuses it if not."""
        origin = self.headers.get("Origin")
        known = [f"http://{host}" for host in self.server.hosts]
        if self.headers.get("Host") not in self.server.hosts or (origin is not None and origin not in known):
            self._refuse(403, "not from elsewhere")
            return False
        token, _, rest = self.path.lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or rest != action:
            self._refuse(404, "nothing is here; take the address that `jaxalign chat --web` printed")
            return False
        return True

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self._headers({"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"})
        # A reader who leaves ends the sampling with the next token.
        with contextlib.suppress(ConnectionError, TimeoutError):
            try:
                for line in self.server.answer(json.loads(body)):
                    self._chunk(line)
            except (JaxalignError, ValueError, RecursionError) as error:
                self._chunk({"error": str(error)})
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # its body is not read
        self._send(status, f"{why}\n".encode(), "text/plain; charset=utf-8", {})

    def _send(self, status: int, body: bytes, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        self._headers({"Content-Type": kind, "Content-Length": str(len(body))} | more)
        self.wfile.write(body)

    def _headers(self, headers: dict[str, str]) -> None:
        fixed = {
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in (fixed | headers).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked is for the reader of the page."""
