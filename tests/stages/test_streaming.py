"""A run on data that is read as it comes ends as it would undisturbed, wherever it is stopped."""

import json

import pytest
from tiny import assert_same_bits, final_state, history, run, write_jsonl

from jaxalign.errors import ConfigError
from jaxalign.training.loop import Stopped

STREAM = {"data.streaming": True, "data.stream_buffer": 20, "data.store": "", "num_steps": 6}


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_for_bit(stage, runs, tmp_path):
    """Windows of 20 records have two rows and more: a batch of 8 goes through several, and through the end."""
    run(stage, runs, tmp_path / "whole", **STREAM)
    for stop in (2, 5):
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(Stopped):
            run(stage, runs, folder, stop_at=lambda step, phase, stop=stop: step == stop, **STREAM)
        run(stage, runs, folder, **STREAM)
        assert_same_bits(final_state(folder), final_state(tmp_path / "whole"))
        assert history(folder) == history(tmp_path / "whole")
    lines = history(tmp_path / "whole")
    assert len(lines) == 6 and not any(
        "epoch" in values for _, values in lines
    )  # nobody knows how long one is


def test_rows_left_out_of_a_later_window_are_listed(runs, tmp_path, capsys):
    rows = [{"prompt": f"who wrote {n}?", "completion": "the fox"} for n in range(50)]
    rows[30] = {"prompt": "who?", "completion": 3}
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    run("sft", runs, tmp_path / "run", **STREAM | {"data.train": data, "data.invalid": "drop"})
    (file,) = (tmp_path / "run").glob("*dropped.jsonl")
    assert file.name == "from_record_21_dropped.jsonl"
    (line,) = map(json.loads, file.read_text().splitlines())
    assert line["row"] == 31 and line["data"] == rows[30]
    assert "records 21 and following: 20 records: 19 kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_steps": 0},
            r"a stream \(config.data.streaming=True\) ends nobody knows where; set config.num_steps",
        ),
        (
            {"dpo.precompute_reference": True},
            "config.dpo.precompute_reference=True reads all rows before training",
        ),
    ],
)
def test_what_needs_the_end_of_the_data_is_refused(changes, said, runs, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run("dpo", runs, tmp_path, **STREAM | changes)
