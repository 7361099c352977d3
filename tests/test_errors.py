"""What messages show of a value."""

import pytest

from jaxalign.errors import shorten


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("it's", '"it\'s"'),
        ("ab" * 5, "'ababababab'"),
        ("abcdefghijklmnop", "'abcde … lmnop'"),
        ([1, 2], "[1, 2]"),
        (list(range(9)), "[0, 1 … 7, 8]"),
    ],
)
def test_a_long_value_is_shown_by_its_two_ends(value, shown):
    assert shorten(value, limit=10) == shown
