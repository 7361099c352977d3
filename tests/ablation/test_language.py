"""What studies of language models share: data that differ in what an arm says, and in nothing else."""

from jaxalign.ablation.language import demonstrations, write_rows
from jaxalign.worlds import World, judge

WORLD = World(seed=0)


def test_fewer_demonstrations_are_the_first_of_more(tmp_path):
    few, many = (list(demonstrations(WORLD, "train", n, 0, flawed=0.5)) for n in (30, 90))
    assert many[:30] == few
    perfect = list(demonstrations(WORLD, "train", 90, 0, flawed=0.0))
    asked = [[row["messages"][:-1] for row in rows] for rows in (many, perfect)]
    assert asked[0] == asked[1]
    scores = [judge(WORLD, row["messages"][:-1], row["messages"][-1]["content"]).score for row in perfect]
    assert min(scores) == 1.0
    path = write_rows(tmp_path / "rows.jsonl", perfect)
    before = path.read_bytes()
    assert write_rows(path, many).read_bytes() == before  # what is there stays
