"""What is no JSON, or more than Python can hold of it, is one kind of error."""

import pytest

from jaxalign.strict_json import NotJSON, SaidTwice, parse_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        ("[" * 100_000 + "]" * 100_000, "recursion"),
        ('{"a": ' + "9" * 5_000 + "}", "digits"),
    ],
)
def test_one_kind_of_error(text, reason):
    with pytest.raises(NotJSON, match=reason):
        parse_json(text)


def test_a_name_that_stands_twice():
    with pytest.raises(SaidTwice, match="the field 'b' stands twice in one object"):
        parse_json('{"a": 1, "c": {"b": 1, "b": 2}}')
    assert parse_json('{"a": [1], "a": [1]}') == {"a": [1]}


def test_values():
    assert parse_json('{"é": [1, -2.5, null, true]}'.encode()) == {"é": [1, -2.5, None, True]}
