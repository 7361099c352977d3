"""The first operation of a step that gives a NaN, by its name and its place in the code and in the model."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.source_info_util import summarize  # nothing public says where an operation was written
from jax.extend.core import ClosedJaxpr, Literal

from jaxalign.errors import NonFiniteError

_CHECK = "maybe_recursive_nan_check"  # JAX's function that is called with a program that gave a NaN
# Calls of a program of their own, by the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


@contextlib.contextmanager
def nans_are_errors(wanted: bool) -> Iterator[None]:
    """Has JAX look at all that a program gives for NaN, which is slow; nothing is donated meanwhile."""
    if not wanted:
        yield
        return
    before = jax.config.jax_traceback_filtering  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_filtering", "off")  # `_failed_program` reads JAX's own frames
    try:
        with jax.debug_nans(True):
            yield
    finally:
        jax.config.update("jax_traceback_filtering", before)


def name_first_nan(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function; where a program in it gives a NaN, does all of it anew, one operation at a time.

    Raises:
      NonFiniteError: names the first operation that gives a NaN and gets none.
    """
    try:
        return function(*arguments)
    except FloatingPointError as error:
        if isinstance(error, NonFiniteError):
            raise
        program = _failed_program(error)
        found = str(error).splitlines()[0]
    if program is not None:
        inner, inputs, named = program
        with jax.debug_nans(False), contextlib.suppress(jax.errors.ConcretizationTypeError):
            leaves, tree = jax.tree.flatten((inputs, named))

            def flat(*leaves: Any) -> Any:
                inputs, named = jax.tree.unflatten(tree, leaves)
                return inner(*inputs, **named)

            try:
                _evaluate(jax.make_jaxpr(flat)(*leaves), leaves)
            except _Found as origin:
                raise NonFiniteError(
                    f"the first operation that gives a NaN is {origin}. What it gets has none: look for a division by "
                    "0, the logarithm or the root of a negative number, or a difference of infinities"
                ) from None
    raise NonFiniteError(
        f"{found}; of its operations one by one none gives a NaN that gets none: one may be in the state that the step "
        "began with"
    )


def _failed_program(error: FloatingPointError) -> tuple[Callable[..., Any], tuple, dict] | None:
    """The outermost jitted function whose result holds the NaN, and its arguments, as JAX had them at hand."""
    walked = error.__traceback__
    while walked is not None:
        known = walked.tb_frame.f_locals
        if walked.tb_frame.f_code.co_name == _CHECK and all(
            name in known for name in ("fun", "args", "kwargs")
        ):
            return known["fun"], known["args"], known["kwargs"]
        walked = walked.tb_next
    return None


class _Found(Exception):
    pass


def _evaluate(program: Any, arguments: Sequence[Any]) -> list[Any]:
    """What a closed jaxpr gives, operation by operation; raises _Found at the first NaN out of none."""
    jaxpr, known = program.jaxpr, {}
    known.update(zip(jaxpr.constvars, program.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _apply(equation, inputs)
        if any(map(_has_nan, outputs)) and not any(map(_has_nan, inputs)):
            raise _Found(_describe(equation))
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any]) -> list[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name in _CALLS and _CALLS[name] in parameters:
        return _evaluate(_closed(parameters[_CALLS[name]]), inputs)
    if name == "cond":
        return _evaluate(parameters["branches"][int(inputs[0])], inputs[1:])
    if name == "scan":
        return _scan(parameters, inputs)
    if name == "while":
        return _loop(parameters, inputs)
    bound: Any = equation.primitive.get_bind_params(parameters)
    functions, parameters = (
        ((), bound) if isinstance(bound, dict) else bound
    )  # as later or earlier versions have it
    outputs = equation.primitive.bind(*functions, *inputs, **parameters)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _scan(parameters: dict[str, Any], inputs: list[Any]) -> list[Any]:
    if "ft_in" in parameters:  # as JAX 0.12 and later have it
        fixed, carry, rows = map(list, parameters["ft_in"].update(inputs).unpack())
    else:
        constants, last = parameters["num_consts"], parameters["num_consts"] + parameters["num_carry"]
        fixed, carry, rows = inputs[:constants], inputs[constants:last], inputs[last:]
    carried = len(carry)
    order = range(parameters["length"])
    stacked: list[list[Any]] = []
    for at in reversed(order) if parameters["reverse"] else order:
        made = _evaluate(parameters["jaxpr"], [*fixed, *carry, *(row[at] for row in rows)])
        carry = made[:carried]
        stacked.append(made[carried:])
    if parameters["reverse"]:
        stacked.reverse()
    columns = zip(*stacked, strict=True) if stacked else itertools.repeat((), 0)
    return [*carry, *(jnp.stack(column) for column in columns)]


def _loop(parameters: dict[str, Any], inputs: list[Any]) -> list[Any]:
    first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
    asked, fixed, carry = inputs[:first], inputs[first:][:second], inputs[first + second :]
    while bool(_evaluate(parameters["cond_jaxpr"], [*asked, *carry])[0]):
        carry = _evaluate(parameters["body_jaxpr"], [*fixed, *carry])
    return carry


def _closed(program: Any) -> Any:
    return program if hasattr(program, "jaxpr") else ClosedJaxpr(program, ())


def _has_nan(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return isinstance(x, float) and np.isnan(x)
    return bool(jnp.isnan(x).any())


def _describe(equation: Any) -> str:
    place, module = summarize(equation.source_info), str(equation.source_info.name_stack)
    return f"{equation.primitive.name}{f' of the module {module}' if module else ''}, at {place}"
