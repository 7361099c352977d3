"""Names of evaluation sets: short, each another, and none lost."""

import pytest

from jaxalign.data.sets import short_names


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/a.jsonl", "b.parquet", "gs://x/c.jsonl.gz"], ["a", "b", "c"]),
        (["old/test.jsonl", "new/test.jsonl", "dev.jsonl"], ["old-test", "new-test", "dev"]),
        (["x/old/test.jsonl", "y/old/test.jsonl"], ["x-old-test", "y-old-test"]),
        (["a.jsonl", "a.jsonl", "a-2.jsonl"], ["a", "a-3", "a-2"]),
        (["hh-rlhf/harmless-base", "hh-rlhf/helpful-base@test"], ["harmless-base", "helpful-base-test"]),
        (["tldr", "sharegpt:my rows.jsonl", "org/set"], ["tldr", "sharegpt-my-rows", "set"]),
        (["/", "é.jsonl"], ["data", "é"]),
    ],
)
def test_names_are_stems_with_as_much_of_the_folder_as_tells_them_apart(sources, names):
    assert short_names(sources) == names
