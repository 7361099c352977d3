"""Stands in for gcloud, kubectl, ...: writes down how it was called and gives the answers of a script.

`FAKE_DIR/calls.jsonl` gets one JSON list per call: the program's name and its arguments. `FAKE_DIR/answers.json` is a
list of answers; the first one whose program is this and whose words `when` all occur in the arguments is given, and
taken off the list. No answer: success, without a word. In an answer, `run` is Python code that sees `argv` and `folder`
and may set `code`.
"""

import fcntl
import json
import os
import pathlib
import subprocess  # noqa: F401  # for the answers' code
import sys

program, argv = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
folder = pathlib.Path(os.environ["FAKE_DIR"])
with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(folder / "calls.jsonl", "a") as calls:
        calls.write(json.dumps([program, *argv]) + "\n")
    answers = json.loads((folder / "answers.json").read_text())
    for answer in answers:
        if answer["program"] == program and all(word in " ".join(argv) for word in answer["when"]):
            if not answer.get("always"):
                answers.remove(answer)
                (folder / "answers.json").write_text(json.dumps(answers))
            break
    else:
        answer = {}
sys.stderr.write(answer.get("err", ""))
sys.stdout.write(answer.get("out", ""))
sys.stdout.flush()
scope = globals() | {"code": answer.get("code", 0)}
exec(answer.get("run", ""), scope)
sys.exit(scope["code"])
