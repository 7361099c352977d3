"""A Jinja sandbox in which a template cannot take more than so much time and memory, whatever it does.

A template is someone else's program. Jinja's own sandbox keeps it from Python's insides, and lets it double a string
forty times or loop within loops. Here whatever a template makes is weighed before it is made: strings that are joined,
repeated, padded, replaced or formatted, lists, and what is written. All of one rendering together may take so many
bytes. Each turn of a loop, each call and each filter looks at the clock. For the limits see template_budget.py.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from jaxalign.text.template_budget import OverLimit, budget, limited

LONGEST_SOURCE = 1 << 20  # characters
_ITEM = 64  # bytes of a value that stands in a list
_WIDEST = 10_000  # characters that a number is padded to
_MOST_BITS = 1 << 17  # of a whole number
# Which no chat template needs, and whose cost is hard to tell beforehand.
_LEFT_OUT = ("pprint", "slice", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters that make nothing, and those that make text of their value; all others may make a list of its items.
_SAME_SIZE = frozenset(
    "abs attr count d default first float int items last length max min random round safe".split()
)
_TEXTS = frozenset(
    "capitalize e escape forceescape lower replace string title tojson trim truncate upper".split()
)
_NO_LARGER = frozenset(
    "count endswith find isdigit lower lstrip rfind rstrip startswith strip title upper".split()
)
_WIDE_NUMBER = r"(?:\*|\d{5,})"
_PERCENT = re.compile(rf"%(?:\([^)]*\))?[-+ #0]*(?:{_WIDE_NUMBER}|\d*\.{_WIDE_NUMBER})")
_BRACES = re.compile(r"\d{5,}|[:!][^{}]*\{")
_WIDTH = re.compile(r"(?<!\d)[1-9]\d{2,3}(?!\d)")  # that is worth counting; wider ones are refused


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """What a template writes; raises what it raises, and `OverLimit`."""
    context = template.new_context(values)
    with limited():
        parts = []
        try:
            for part in template.root_render_func(context):
                budget.left -= len(part) + 8
                if budget.left < 0:
                    budget.charge(0)
                parts.append(part)
        except Exception:
            template.environment.handle_exception()
        return "".join(parts)


def bound(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """The tree of a template in which what makes something is weighed."""
    return _Weighing().visit(tree)


class _Weighing(jinja2.visitor.NodeTransformer):
    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_looped")
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        parts: Any = jinja2.nodes.Tuple(node.nodes, "load", lineno=node.lineno)
        parts.environment = node.environment
        return _filtered(parts, "_joined")

    def visit_Add(self, node: jinja2.nodes.Add) -> jinja2.nodes.Node:
        # A chain of them is one sum, which is weighed once.
        line, parts, left = node.lineno, [], node
        while isinstance(left, jinja2.nodes.Add):
            parts.append(left.right)
            left = left.left
        parts = [self.visit(part) for part in (left, *reversed(parts))]
        made: Any = jinja2.nodes.Tuple(parts, "load", lineno=line)
        made.environment = node.environment
        return _filtered(made, "_added")

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_cut") if isinstance(node.arg, jinja2.nodes.Slice) else node

    def visit_List(self, node: jinja2.nodes.List) -> jinja2.nodes.Node:
        return self._made(node)

    def visit_Dict(self, node: jinja2.nodes.Dict) -> jinja2.nodes.Node:
        return self._made(node)

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Node:
        return self._made(node) if node.ctx == "load" else self.generic_visit(node)

    def _made(self, node: Any) -> jinja2.nodes.Node:
        with contextlib.suppress(jinja2.nodes.Impossible):
            node.as_const()
            return node  # which is no larger than its source
        return _filtered(self.generic_visit(node), "_made")


def _filtered(node: Any, name: str) -> Any:
    made = jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.set_environment(node.environment)
    return made


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a weight for all that its templates make."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_finalize, **options)
        for name in _LEFT_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        for name, given in list(self.filters.items()):
            self.filters[name] = weighed(name, given)
        self.filters |= {
            "_looped": _looped,
            "_joined": _joined,
            "_added": _added,
            "_cut": _cut,
            "_made": _made,
        }
        self.globals["dict"] = lambda *args, **kwargs: _made(
            dict(*args, **kwargs)
        )  # the type would be a way out

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Joins what a block or a macro has written."""
        return _joined(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget.tick()
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif isinstance(left, str | bytes):
            _check_percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        budget.tick()
        # Jinja wraps the method `format` of strings.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if type(owner) is str and obj.__name__ in _NO_LARGER:
            budget.charge(4 * len(owner))
        elif isinstance(owner, str | bytes | int):
            args = _check_method(owner, getattr(obj, "__name__", ""), args, kwargs)
        elif isinstance(owner, list | tuple | dict):
            budget.charge(_ITEM * len(owner))
        elif isinstance(obj, jinja2.runtime.LoopContext) and args:  # of a recursive loop
            args = (_looped(args[0]), *args[1:])
        return super().call(context, obj, *args, **kwargs)


class _Looped:
    """What a loop goes over, with a look at the clock in each turn; of the length that it has."""

    def __init__(self, values: Sized) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _ticking(self._values)


def _ticking(values: Any) -> Iterator[Any]:
    for value in values:
        budget.tick()
        yield value


def _looped(values: Any) -> Any:
    return _Looped(values) if type(values) is list or isinstance(values, Sized) else _ticking(values)


def _added(parts: tuple[Any, ...]) -> Any:
    try:
        made = "".join(parts)
    except TypeError:
        return _folded(parts)
    budget.left -= len(made) if made.isascii() else 4 * len(made)
    if budget.left < 0:
        budget.charge(0)
    return made


def _folded(parts: tuple[Any, ...]) -> Any:
    made = parts[0]
    for part in parts[1:]:
        made = made + part
        if isinstance(made, int):
            _check_bits(made.bit_length())
        elif isinstance(made, Sized):
            budget.charge(_size(made))
    return made


def _joined(parts: Iterable[Any]) -> str:
    texts = [part if type(part) is str else _written(part) for part in parts]
    budget.charge(sum(map(len, texts)) * (1 if all(map(str.isascii, texts)) else 4))
    return "".join(texts)


def _cut(value: Any) -> Any:
    budget.charge(_size(value))
    return value


def _made(value: Any) -> Any:
    """Weighs a new container with all that it leads to, however often: what is shared is written out twice."""
    left = [value]
    while left:
        each = left.pop()
        budget.tick()
        if isinstance(each, str | bytes):
            budget.charge(_size(each))
            continue
        budget.charge(_ITEM)
        if isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            left += each
        elif isinstance(each, jinja2.utils.Namespace):
            left += vars(each).values()
    return value


def _written(value: Any) -> str:
    _made(value)
    return str(value)


def _finalize(value: Any) -> Any:
    """What is written of a value."""
    return value if type(value) is str or isinstance(value, jinja2.Undefined) else _written(value)


def _size(value: Any) -> int:
    """Bytes of a string, or of a list without what it leads to."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if isinstance(value, bytes):
        return len(value)
    return _ITEM * len(value) if isinstance(value, Sized) else 0


def _taken(before: float) -> float:
    return before - budget.left if before < math.inf else 0


def _check_bits(bits: float) -> None:
    if bits > _MOST_BITS:
        raise OverLimit(f"it makes a whole number of more than {_MOST_BITS:,} bits")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return
    value, times = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(times, int) and isinstance(value, Sized):
        budget.charge(_size(value) * max(times, 0))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_percent(text: Any, values: Any) -> None:
    spelled = text if isinstance(text, str) else text.decode("latin-1")
    if _PERCENT.search(spelled):
        raise OverLimit(
            f"it pads a value to more than {_WIDEST:,} characters, or to a width taken from a value"
        )
    # Each mark may write all of the values, as wide as it says.
    _charge_marks(spelled, spelled.count("%"), values)


def _check_braces(text: str, values: Any) -> None:
    if _BRACES.search(text):
        raise OverLimit(
            f"it pads a value to more than {_WIDEST:,} characters, or to a width taken from a value"
        )
    _charge_marks(text, text.count("{"), values)


def _charge_marks(text: str, marks: int, values: Any) -> None:
    before = budget.left
    _made(values)
    budget.charge(_taken(before) * marks)
    for found in _WIDTH.finditer(text):
        budget.charge(int(found[0]))


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Weighs what a method of a string or a number will give; returns the arguments to call it with."""
    numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int)]
    if isinstance(owner, int):
        budget.charge(max(numbers, default=0))
        return args
    size = _size(owner)
    if name == "join" and args:
        args = (list(_looped(args[0])), *args[1:])
        parts = [_size(part) for part in args[0]]
        budget.charge(sum(parts) + size * len(parts))
    elif name in ("format", "format_map"):
        _check_braces(owner, [*args, *kwargs.values()])
    elif name == "replace" and len(args) > 1:
        _check_replace(owner, args[0], args[1])
    elif name == "expandtabs":
        budget.charge(size + owner.count("\t" if isinstance(owner, str) else b"\t") * max(numbers, default=8))
    elif name == "translate" and args and isinstance(args[0], Mapping):
        budget.charge(size * max([1, *map(_size, args[0].values())]))
    elif name.startswith(("split", "rsplit", "partition", "rpartition")):
        budget.charge(size + _ITEM * _pieces(owner, args))
    else:
        budget.charge(4 * max([size, *numbers]))
    return args


def _pieces(text: Any, args: tuple[Any, ...]) -> int:
    separator = args[0] if args else None
    if isinstance(separator, type(text)) and separator:
        return text.count(separator) + 1
    return len(text) // 2 + 1


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(old, str | bytes) and isinstance(new, str | bytes):
        count = (
            len(text) + 1
            if not old
            else len(text) // len(old)
            if not isinstance(old, type(text))
            else text.count(old)
        )
        budget.charge(_size(text) + count * _size(new) * (1 if text.isascii() else 4))


def weighed(name: str, given: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged for its value before it is run."""
    at = 1 if getattr(given, "jinja_pass_arg", None) is not None else 0  # behind what Jinja passes of its own

    @functools.wraps(given)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget.tick()
        if len(args) <= at:
            return given(*args, **kwargs)
        value = args[at]
        if name in _SAME_SIZE:
            pass
        elif name in _TEXTS:
            budget.charge(4 * len(value)) if type(value) is str else _made(value)
        elif isinstance(value, Sized):
            budget.charge((4 if isinstance(value, str) else 2) * _ITEM * len(value))
        else:
            args = (*args[:at], _charged(value), *args[at + 1 :])
        if name in _CHECKS:
            args = _CHECKS[name](args, at, (*args[at + 1 :], *kwargs.values()))
        return given(*args, **kwargs)

    return run


def _charged(values: Any) -> Any:
    if not isinstance(values, Iterable) or isinstance(values, jinja2.Undefined):
        return values
    return _charging(values)


def _charging(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget.tick()
        budget.charge(2 * _ITEM)
        yield value


def _check_width(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    widths = [value if isinstance(value, int) else _size(value) for value in more]
    lines = args[at].count("\n") + 1 if isinstance(args[at], str) else 1
    budget.charge(lines * max([0, *widths]))
    return args


def _check_indent(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(
        (isinstance(value, int) and value > 100) or (isinstance(value, str) and len(value) > 100)
        for value in more
    ):
        raise OverLimit("it indents JSON by more than 100 characters")
    return args


def _check_digits(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(isinstance(value, int) and abs(value) > 300 for value in more):
        raise OverLimit("it rounds a number to more than 300 digits")
    return args


def _check_start(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(isinstance(value, Sized) and not isinstance(value, str) for value in more):
        raise OverLimit("it sums up lists; only numbers are summed")
    return args


def _check_join(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    values = list(_looped(args[at]))
    before = budget.left
    _made(values)
    budget.charge(4 * _taken(before) + len(values) * sum(map(_size, more)))
    return (*args[:at], values, *args[at + 1 :])


def _check_format(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(args[at], str):
        _check_percent(args[at], list(more))
    return args


def _check_replacement(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(more) > 1:
        _check_replace(_written(args[at]), _written(more[0]), _written(more[1]))
    return args


def _check_batch(args: tuple[Any, ...], at: int, more: tuple[Any, ...]) -> tuple[Any, ...]:
    # What is left of the last row is filled up.
    budget.charge(_ITEM * max([0, *(value for value in more if isinstance(value, int))]))
    values = list(_looped(args[at]))
    _made(values)
    return (*args[:at], values, *args[at + 1 :])


_CHECKS: dict[str, Callable[[tuple[Any, ...], int, tuple[Any, ...]], tuple[Any, ...]]] = {
    "batch": _check_batch,
    "center": _check_width,
    "format": _check_format,
    "indent": _check_width,
    "join": _check_join,
    "replace": _check_replacement,
    "round": _check_digits,
    "sum": _check_start,
    "tojson": _check_indent,
    "truncate": _check_width,
}
