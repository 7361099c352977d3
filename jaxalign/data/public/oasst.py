"""OpenAssistant's message trees (arXiv 2304.07327): one row a message, in any order, joined by `parent_id`."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxalign.data.public.shapes import Fields, Messages, ranking, sound_chat
from jaxalign.data.sources import Dropped, Records, Unusable
from jaxalign.errors import DataError

_ROLES = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Forest:
    """The usable messages by id, who answers whom, and why the others are left out, by row."""

    messages: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, int]
    children: Mapping[str | None, list[str]]  # best rank first, those without one last; under None the roots
    dropped: Mapping[int, str | DataError]  # an error, where the row is no message at all


def chats(records: Records, language: str) -> Records:
    """One conversation a tree: from its root always on to the best-ranked answer."""
    forest = grow(records, language)
    made = {}
    for root in forest.children[None]:
        path = [root]
        while forest.children[path[-1]]:
            path.append(forest.children[path[-1]][0])
        if len(path) > 1 and forest.messages[path[-1]]["role"] == "prompter":
            path.pop()  # a question that nobody answered
        made[root] = _attempt(sound_chat, _turns(forest, path))
    return _collect(records, forest, made)


def rankings(records: Records, language: str) -> Records:
    """One ranking for every question, at any depth, that has two or more ranked answers; score = -rank."""
    forest = grow(records, language)
    made = {}
    for identity, message in forest.messages.items():
        answers = [a for a in forest.children[identity] if forest.messages[a].get("rank") is not None]
        if message["role"] == "prompter" and len(answers) > 1:
            replies = [_turns(forest, [answer]) for answer in answers]
            scores = [-float(forest.messages[answer]["rank"]) for answer in answers]
            made[identity] = _attempt(ranking, _turns(forest, _path(forest, identity)), replies, scores)
    return _collect(records, forest, made)


def prompts(records: Records, language: str) -> Records:
    """The opening question of every tree."""
    forest = grow(records, language)
    made = {root: {"prompt": _turns(forest, [root])} for root in forest.children[None]}
    return _collect(records, forest, made)


def grow(records: Records, language: str = "") -> Forest:
    """Read all messages; `language` ("en", "ja", ...) takes the trees in that one alone.

    Deleted messages, those that failed review and everything below either are left out, by reason.

    A row of another shape, and a second message of one `message_id`, is left out as an error.
    """
    messages, rows = {}, {}
    dropped: dict[int, str | DataError] = {}
    for index in range(len(records)):
        try:
            row: Any = records.read(index)
            _check(row)
        except DataError as error:
            dropped[index] = error
            continue
        if language and row["lang"] != language:
            continue
        if row["message_id"] in rows:
            dropped[index] = DataError(f"message_id {row['message_id']!r} occurs twice; remove one")
            continue
        rows[row["message_id"]] = index
        if reason := _unusable(row):
            dropped[index] = reason
        else:
            messages[row["message_id"]] = row
    children: dict[str | None, list[str]] = defaultdict(list)
    for identity, row in messages.items():
        children[row.get("parent_id")].append(identity)
    reached, queue = set(), list(children[None])
    while queue:
        reached.add(identity := queue.pop())
        queue += children[identity]
    dropped |= {
        rows[identity]: "answers a message left out" for identity in messages if identity not in reached
    }
    usable = {identity: row for identity, row in messages.items() if identity in reached}
    for siblings in children.values():
        siblings.sort(key=lambda i: (messages[i].get("rank") is None, messages[i].get("rank") or 0, rows[i]))
    return Forest(usable, rows, children, dropped)


def _check(row: Mapping[str, Any]) -> None:
    kinds = {"message_id": str, "text": str, "role": str, "lang": str}
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            raise DataError(f"{name} is {row.get(name)!r}; is this oasst1's ready-for-export messages?")
    if row["role"] not in _ROLES:
        raise DataError(f"role={row['role']!r}; expected one of {', '.join(_ROLES)}")


def _unusable(row: Mapping[str, Any]) -> str:
    if row.get("deleted"):
        return "deleted"
    if row.get("review_result") is False:
        return "failed review"
    return "" if row["text"].strip() else "empty turn"


def _path(forest: Forest, identity: str) -> list[str]:
    path = [identity]
    while (parent := forest.messages[path[0]].get("parent_id")) is not None:
        path.insert(0, parent)
    return path


def _turns(forest: Forest, path: list[str]) -> Messages:
    rows = [forest.messages[identity] for identity in path]
    return [{"role": _ROLES[row["role"]], "content": row["text"]} for row in rows]


def _attempt(make: Callable[..., Fields], *args: Any) -> Fields | Dropped:
    try:
        return make(*args)
    except Unusable as reason:
        return Dropped(str(reason))


def _collect(records: Records, forest: Forest, made: Mapping[str, Fields | Dropped]) -> Records:
    """Records in the order of the file, among them what was dropped."""
    by_row: dict[int, Any] = {
        row: Dropped(reason) if isinstance(reason, str) else reason for row, reason in forest.dropped.items()
    }
    by_row |= {forest.rows[identity]: fields for identity, fields in made.items()}
    rows = sorted(by_row)
    return Records([by_row[row] for row in rows], records.name, rows, origin=records.rows)
