"""Every verb reads the rows that training reads, in whatever file, and says the same of those it cannot use."""

import csv
import gzip
import json
import pathlib

import pytest

from jaxalign.cli import main
from jaxalign.data import train_sentencepiece

# What other programs take for the end of a line stands in texts, as does half of nothing: NUL.
PROMPTS = ["who is\u2028the ox", "the \u0085 cat", "one\r\ntwo\u0000"]
ROWS = [
    {"prompt": prompt, "completion": text}
    for prompt in PROMPTS
    for text in ("short", 'a "longer\u2029 one", it is')
]


def length(prompt, completion) -> float:
    return float(len(completion))


LENGTH = "--reward=test_rows:length"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def read(path) -> list:
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").split("\n")[:-1]]


def said(text: str, role: str = "assistant") -> list:
    return [{"role": role, "content": text}]


def label(source, out, *more) -> int:
    return main(["label", f"--completions={source}", f"--out={out}", LENGTH, *more])


def files(tmp_path) -> dict[str, str]:
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in ROWS]
    marked = [row | {"finished": True} for row in rows]
    table = tmp_path / "rows.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "rows.jsonl.gz").write_bytes(
        gzip.compress(pathlib.Path(write(tmp_path / "a.jsonl", rows)).read_bytes())
    )
    (tmp_path / "wide.jsonl").write_bytes(
        pathlib.Path(write(tmp_path / "b.jsonl", marked)).read_text("utf-8").encode("utf-16")
    )
    return {
        name: str(tmp_path / name)
        for name in ("rows.csv", "rows.json", "rows.jsonl.gz", "wide.jsonl", "b.jsonl")
    }


def test_label_reads_every_format_alike(tmp_path):
    wanted = [
        {
            "prompt": prompt,
            "chosen": ROWS[1]["completion"],
            "rejected": "short",
            "chosen_score": 22.0,
            "rejected_score": 5.0,
        }
        for prompt in PROMPTS
    ]
    for name, source in files(tmp_path).items():
        out = tmp_path / f"{name}.pairs.jsonl"
        assert label(source, out) == 0, name
        assert read(out) == wanted, name


def test_label_reads_conversations_and_instructions(tmp_path):
    chats = [{"messages": said("q", "user") + said(text)} for text in ("short", "longer")]
    alpaca = [{"instruction": "q", "input": "", "output": text} for text in ("short", "longer")]
    for number, rows in enumerate((chats, alpaca)):
        assert label(write(tmp_path / f"{number}.jsonl", rows), tmp_path / f"{number}.pairs.jsonl") == 0
        (row,) = read(tmp_path / f"{number}.pairs.jsonl")
        assert row["prompt"] == said("q", "user")
        assert (row["chosen"], row["rejected"]) == (said("longer"), said("short"))


def test_label_names_all_bad_rows_or_writes_them_down(tmp_path, capsys):
    rows = [{"prompt": "p", "completion": text} for text in ("a", "bbb")]
    bad = [
        {"prompt": "p", "completion": "half \ud83d"},
        {"prompt": "p", "completion": "c", "system": "Be kind."},
    ]
    source = tmp_path / "c.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], *bad, rows[1]]))
    out = tmp_path / "p.jsonl"
    assert label(source, out) == 1
    error = capsys.readouterr().err
    assert (
        f"{source}:2: completion is not Unicode text" in error and f"{source}:3: the field 'system'" in error
    )
    assert "--ignore-fields=system" in error and "leave them out with --invalid='drop'" in error
    assert "config.data" not in error and not out.exists()
    assert label(source, out, "--invalid=drop") == 0
    assert f"2 rows left out as invalid: see {out}.dropped.jsonl" in capsys.readouterr().out
    assert [(row["row"], row["data"]) for row in read(f"{out}.dropped.jsonl")] == [(2, bad[0]), (3, bad[1])]
    assert [(row["chosen"], row["rejected"]) for row in read(out)] == [("bbb", "a")]
    again = tmp_path / "again.jsonl"
    assert label(source, again, "--invalid=drop", "--ignore-fields=system") == 0
    assert len(read(f"{again}.dropped.jsonl")) == 1


def test_the_most_bytes_of_a_row_is_a_flag(tmp_path, capsys):
    long = [{"prompt": "a", "completion": text} for text in ("b", "c" * 200)]
    source, out = write(tmp_path / "c.jsonl", long), tmp_path / "pairs.jsonl"
    assert label(source, out, "--max-row-bytes=100") == 1
    error = capsys.readouterr().err
    assert f"{source}:2: a row of 234 bytes, where 100 are allowed" in error
    assert "set --max-row-bytes=234 or more" in error
    assert label(source, out, "--max-row-bytes=234") == 0
    assert [len(row["chosen"]) for row in read(out)] == [200]


def tokenize(source, out, *more) -> int:
    return main(["tokenizer", f"--data={source}", f"--out={out}", "--vocab=300", *more])


def test_a_tokenizer_is_trained_on_whatever_is_said(tmp_path, capsys):
    words = [f"the old ox number {i} asks\u2028who wrote\u0085it" for i in range(40)]
    exchanges = list(zip(words[10:20], words[20:30], strict=True))
    chats = [{"messages": said(a, "user") + said(b)} for a, b in exchanges]
    sources = [
        write(tmp_path / "text.jsonl", [{"text": text} for text in words[:10]]),
        write(tmp_path / "chats.jsonl", chats),
        write(tmp_path / "pairs.jsonl", [{"prompt": words[30], "chosen": words[31], "rejected": words[32]}]),
    ]  # fmt: skip
    (tmp_path / "corpus.txt").write_text("".join(f"{text}\n" for text in words[33:]), "utf-8")
    assert tokenize(",".join([*sources, str(tmp_path / "corpus.txt")]), tmp_path / "all.model") == 0
    assert "all.model: 300 pieces" in capsys.readouterr().out
    order = [
        *words[:10],
        *(text for pair in exchanges for text in pair),
        *words[30:],
    ]
    train_sentencepiece(order, tmp_path / "alone.model", 300)
    assert (tmp_path / "all.model").read_bytes() == (tmp_path / "alone.model").read_bytes()
    bad = write(tmp_path / "bad.jsonl", [*({"text": text} for text in words), {"text": ""}, {"text": 3}])
    assert tokenize(bad, tmp_path / "bad.model") == 1
    error = capsys.readouterr().err
    assert f"{bad}:41: text is empty" in error and f"{bad}:42: text is a int" in error
    assert not (tmp_path / "bad.model").exists()
    assert tokenize(bad, tmp_path / "bad.model", "--invalid=drop") == 0
    assert "1 row left out: invalid: text is empty or only whitespace" in capsys.readouterr().out


@pytest.mark.slow
def test_label_reads_what_generate_wrote_bit_for_bit(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.csv"
    with prompts.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt"], *([prompt] for prompt in PROMPTS), [""]])
        writer.writerow([" "])
    out = tmp_path / "made.jsonl"
    flags = [f"--model={folder}/model", f"--prompts={prompts}", f"--out={out}", "--n=3", "--max-new-tokens=6"]
    assert main(["generate", *flags]) == 0
    rows = read(out)
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(3)]
    texts = {}
    for row in rows:
        texts.setdefault(row["prompt"], set()).add(row["completion"])
    ended = write(tmp_path / "ended.jsonl", [row | {"finished": True} for row in rows])
    assert label(ended, tmp_path / "pairs.jsonl", "--pairs=all") == 0
    for row in read(tmp_path / "pairs.jsonl"):
        assert {row["chosen"], row["rejected"]} <= texts[row["prompt"]]
        assert len(row["chosen"]) == row["chosen_score"] > row["rejected_score"]


@pytest.mark.slow
def test_evaluate_counts_the_prompts_that_it_leaves_out(folder, tmp_path, capsys):
    rows = [{"prompt": "who is the ox"}, {"prompt": "the cat " * 40}, {"prompt": 3}, {"prompt": "the cat"}]
    prompts, out = write(tmp_path / "p.jsonl", rows), tmp_path / "answers.jsonl"
    flags = [f"--model={folder}/model", f"--prompts={prompts}", LENGTH, f"--out={out}", "--max-new-tokens=4"]
    assert main(["evaluate", *flags]) == 1
    assert f"{prompts}:3: prompt is a int" in capsys.readouterr().err
    assert main(["evaluate", *flags, "--invalid=drop", "--prompt-slots=32"]) == 0
    counts = "2 kept (0 truncated, 0 split), 2 dropped (1 invalid: prompt is a int, 1 prompt too long)"
    assert capsys.readouterr().out.startswith(f"{prompts}: 4 records: {counts}; ")
    assert [row["data"] for row in read(f"{out}.dropped.jsonl")] == [rows[2]]
    assert [row["prompt"] for row in read(out)] == [rows[0]["prompt"], rows[3]["prompt"]]
