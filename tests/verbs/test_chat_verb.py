"""`jaxalign chat`: commands in the terminal, and the page that this machine alone sees."""

import http.client
import io
import json
import re
import threading

import jax
import pytest
from rich.console import Console

from jaxalign.cli import main
from jaxalign.errors import ConfigError, UsageError
from jaxalign.streams import shown
from jaxalign.verbs.chat import ChatRequest, Talk, chat, load_speakers
from jaxalign.verbs.chat_page import page
from jaxalign.verbs.chat_server import ChatServer
from jaxalign.verbs.speaker import one_device


def request_of(folder, *names, **more):
    model, *other = (str(folder / name) for name in names)
    return ChatRequest(model=model, other=other[0] if other else "", max_new_tokens=5, **more)


@pytest.fixture(scope="module")
def speakers(folder):
    with one_device():
        return load_speakers(request_of(folder, "model", "other"))


def talk(speakers, folder, *lines, **more):
    """A conversation after some lines, and what was printed."""
    out = io.StringIO()
    made = Talk(Console(file=out, width=200), speakers, request_of(folder, "model", **more))
    for line in lines:
        made.obey(line) if line.startswith("/") else made.say(line)
    return made, out.getvalue()


def said(speaker):
    return [(message.role, message.content) for message in speaker.messages]


@pytest.mark.slow
def test_undo_and_retry_change_what_the_models_remember(speakers, folder):
    made, _ = talk(speakers[:1], folder, "who is it", temperature=0)
    first = said(speakers[0])
    assert [role for role, _ in first] == ["user", "assistant"]
    made.say("the ox")
    assert said(speakers[0])[:2] == first and len(said(speakers[0])) == 4
    assert made.undo() == "the ox" and said(speakers[0]) == first
    made.obey("/retry")  # at temperature 0 the same reply
    assert said(speakers[0]) == first
    made.obey("/undo")
    assert said(speakers[0]) == []
    with pytest.raises(ConfigError, match="nothing has been said yet"):
        made.obey("/retry")


def test_a_retry_samples_anew(speakers, folder):
    made, _ = talk(speakers[:1], folder, "who is it", seed=3)
    replies = {said(speakers[0])[1][1]}
    for _ in range(4):
        made.obey("/retry")
        replies |= {content for role, content in said(speakers[0]) if role == "assistant"}
    assert len(replies) > 1


def test_system_temperature_and_reset(speakers, folder):
    made, out = talk(speakers[:1], folder, "/system be brief", "/temperature 0", "who is it")
    assert said(speakers[0])[:2] == [("system", "be brief"), ("user", "who is it")]
    assert made.sampling.temperature == 0 and "temperature 0\n" in out
    made.obey("/reset")
    assert said(speakers[0]) == [("system", "be brief")]
    made.obey("/system")
    assert said(speakers[0]) == []
    made.plain = True
    with pytest.raises(ConfigError, match="/system: a text that is continued"):
        made.obey("/system be brief")
    for bad in ("hot", "", "-1", "nan"):
        with pytest.raises(ConfigError, match="temperature"):
            made.obey(f"/temperature {bad}")


def test_a_saved_conversation_is_rows_to_train_on(speakers, folder, tmp_path):
    file = tmp_path / "chat.jsonl"
    made, _ = talk(speakers, folder, "who is it", f"/save {file}", min_new_tokens=5)
    made.obey(f"/save {file}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["model"] for row in rows] == [speaker.name for speaker in speakers] * 2
    for row, speaker in zip(rows, speakers, strict=False):
        assert row["messages"] == [{"role": role, "content": content} for role, content in said(speaker)]
    file.write_text('{"id": "without an end of line"}')
    made.obey(f"/save {file}")
    kept, *new = [json.loads(line) for line in file.read_text().splitlines()]
    assert kept == {"id": "without an end of line"} and new == rows[: len(speakers)]
    made.obey("/reset")
    with pytest.raises(ConfigError, match="no conversation to save"):
        made.obey(f"/save {file}")
    with pytest.raises(ConfigError, match=r"/save FILE\.jsonl"):
        made.obey("/save")


@pytest.mark.parametrize(
    ("line", "hint"), [("/hepl", "; did you mean '/help'?"), ("/zzzzz", "; there are /help, /reset, /undo")]
)
def test_an_unknown_command_is_told_the_nearest(speakers, folder, line, hint):
    with pytest.raises(ConfigError) as refused:
        talk(speakers[:1], folder, line)
    assert str(refused.value).startswith(f"{line} is no command{hint}")


def test_the_terminal_goes_on_after_what_cannot_be_done(folder):
    out = io.StringIO()
    lines = io.StringIO("/nonsense\n/undo\n/save /no/such/folder/x\n/help\n/quit\nnever read\n")
    chat(request_of(folder, "model"), console=Console(file=out, width=200), lines=lines)
    text = out.getvalue()
    assert "/nonsense is no command" in text and "nothing has been said yet" in text
    assert "/temperature X  samples at this temperature" in text and "never" not in text


def test_an_interrupt_stops_the_reply_and_not_the_conversation(speakers, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    made, _ = talk(speakers[:1], folder)
    monkeypatch.setattr("jaxalign.verbs.chat._show", interrupt)
    made.say("who is it")
    assert said(speakers[0]) == []


@pytest.mark.parametrize("count", [1, 2])
def test_what_models_say_is_neither_markup_nor_obeyed(speakers, folder, monkeypatch, count):
    """Links, styles, closing tags that rich would trip over; window titles, cleared screens, turned lines."""
    words = "list[int] [/b] [link=http://x]y[/link] \x1b]0;title\x07 \x1b[2J \x9b1m \u202e \x7f"
    monkeypatch.setattr("jaxalign.verbs.speaker.Speaker.reply", lambda *_, **__: iter([words]))
    _, out = talk(speakers[:count], folder, "hello")
    assert out.count("list[int] [/b] [link=http://x]y[/link] ␛]0;title␇ ␛[2J <U+009B>1m <U+202E> ␡") == count
    assert shown("a\tb\nc é 😀") == "a\tb\nc é 😀"


# The page


@pytest.fixture(scope="module")
def server(speakers, folder):
    made = ChatServer(speakers, request_of(folder, "model", "other", temperature=0.0))
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.close()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def reply(server, **asked):
    answer, text = ask(server, "POST", f"/{server.token}/reply", json.dumps(asked))
    assert answer.status == 200 and answer.getheader("Transfer-Encoding") == "chunked"
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_reply_of_the_page_is_the_greedy_text_of_generate(server, folder, tmp_path):
    """Two models, two turns, from the same messages."""
    turns = [{"role": "user", "content": "who is the ox"}]
    longer = [*turns, {"role": "assistant", "content": "the cat"}, {"role": "user", "content": "and who"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": messages}) + "\n" for messages in (turns, longer)))
    for number, name in enumerate(("model", "other")):
        out = tmp_path / f"{name}.jsonl"
        flags = [f"--model={folder / name}", f"--prompts={prompts}", f"--out={out}", "--batch-size=8"]
        assert main(["generate", *flags, "--temperature=0", "--max-new-tokens=5"]) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        for row, messages in zip(rows, (turns, longer), strict=True):
            parts = reply(server, model=number, messages=messages)
            assert parts[-1]["done"] and len(parts) > 2
            text = "".join(part["text"] for part in parts[:-1])
            assert text == parts[-1]["reply"] == row["completion"][0]["content"] and text


def test_temperature_and_seed_are_those_that_are_asked_for(server):
    asked = {"messages": [{"role": "user", "content": "who"}], "temperature": 2.0}
    texts = [[part.get("text") for part in reply(server, seed=seed, **asked)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "a request has messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "a message has a role, one of system, user, assistant"),
        ({"messages": [{"role": "user", "content": 3}]}, "a message has a role"),
        ({"messages": ["x"]}, "a message has a role"),
        ({"messages": [{"role": "user", "content": "\udc80"}]}, "a message has a role"),
        ({"messages": [{"role": "user", "content": "x"}], "model": 2}, "there are 2 models"),
        ({"messages": [{"role": "user", "content": "x"}], "model": True}, "there are 2 models"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": -1}, "temperature -1 is no number"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, "temperature 'hot' is no number"),
        ({"messages": [{"role": "user", "content": "x"}], "seed": -1}, "seed -1 is no number"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_in_words(server, asked, said):
    (part,) = reply(server, **asked)
    assert said in part["error"]


def test_bodies_that_are_no_json_or_nested_without_end_are_refused(server):
    for body in ("{", "[" * 100_000, ""):
        answer, text = ask(server, "POST", f"/{server.token}/reply", body)
        assert answer.status == 200 and "error" in json.loads(text)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/{token}/reply", {"Origin": "http://evil.example"}, 403),
        ("/{token}/reply", {"Origin": "null"}, 403),
        ("/{token}/reply", {"Host": "evil.example"}, 403),
        ("/{token}/reply", {"Host": "evil.example:{port}"}, 403),
        ("/{token}/reply", {"Content-Type": "text/plain"}, 415),
        ("/{token}/reply", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("/{token}/reply", {"Content-Length": "99999999"}, 413),
        ("/{token}/reply", {"Content-Length": "²"}, 413),
        ("/reply", {}, 404),
        ("/x{token}/reply", {}, 404),
        ("/{token}/../etc/passwd", {}, 404),
        ("/{token}/other", {}, 404),
    ],
)
def test_other_pages_and_whoever_lacks_the_token_are_refused(server, path, headers, status):
    filled = {name: value.format(port=server.port) for name, value in headers.items()}
    answer, text = ask(server, "POST", path.format(token=server.token), "{}", **filled)
    assert answer.status == status and server.token not in text
    assert answer.getheader("Access-Control-Allow-Origin") is None


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"
    assert re.fullmatch(rf"http://127\.0\.0\.1:{server.port}/[\w-]{{32}}/", server.address)


def test_a_taken_port_is_told(server, speakers, folder):
    with pytest.raises(UsageError, match=rf"--port={server.port}: Address already in use; name another"):
        ChatServer(speakers, request_of(folder, "model", port=server.port))


def test_the_page_is_one_file_that_runs_its_own_script_alone(server, folder):
    answer, text = ask(server, "GET", f"/{server.token}/")
    assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
    policy = answer.getheader("Content-Security-Policy")
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert all(f'nonce="{nonce}"' in tag for tag in re.findall(r"<(?:script|style)[^>]*>", text))
    assert not re.findall(r"""(?:src|href|@import|url\()\s*=?\s*["']?(?:https?:)?//""", text)
    assert str(folder / "model") in text and str(folder / "other") in text
    assert "innerHTML" not in text and "color-scheme: light dark" in text and "width=device-width" in text
    assert ask(server, "GET", f"/{server.token}/")[1] != text  # a nonce is of one page


def test_names_and_system_messages_are_text_on_the_page():
    evil = "</script><script>alert(1)</script>&<img src=x onerror=alert(1)>"
    text = page([evil], "n", system=f"</textarea>{evil}", temperature=1.0, plain=False)
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text
    settings = json.loads(re.search(r'type="application/json">(.*?)</script>', text)[1])
    assert settings["names"] == [evil]


def test_a_reader_who_leaves_ends_the_reply(server, monkeypatch):
    ended = threading.Event()

    def endless(self, asked):
        try:
            while True:
                yield {"text": "x" * 65536}
        finally:
            ended.set()

    monkeypatch.setattr(ChatServer, "answer", endless)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", f"/{server.token}/reply", "{}", {"Content-Type": "application/json"})
    assert connection.getresponse().read(10)
    connection.close()
    assert ended.wait(30)


def test_devices_are_those_of_the_models(speakers):
    assert all(speaker.mesh.devices.size == 1 for speaker in speakers) and len(jax.devices()) > 1
