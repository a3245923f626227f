"""What the loop needs of JAX's types: over which axes of a mesh a value differs.

All that JAX does not promise to keep stands here. It was tried with JAX 0.8.1, 0.9.0
and 0.10.2.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax._src import (
    source_info_util,
)  # JAX has no public way to the line of an equation
from jax.experimental import io_callback
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Primitives that name an axis of the mesh and wait for nobody.
_HARMLESS = {"axis_index", "pvary", "pcast"}


class Workers(NamedTuple):
    """How a mesh is cut: a worker is all devices of one place on `axis`.

    Attributes:
      axis: of the workers.
      other_axes: over which a worker's devices lie.
      platform: of the devices.
    """

    axis: str
    other_axes: tuple[str, ...]
    platform: str

    @classmethod
    def of(cls, mesh: Mesh, axis: str) -> "Workers":
        other_axes = tuple(name for name in mesh.axis_names if name != axis)
        return cls(axis, other_axes, mesh.devices.flat[0].platform)


def varying(x: Array, *axes: str) -> Array:
    """Type a value as one that differs over these axes.

    A gradient by parameters that differ has no sum over the axis within.
    """
    missing = tuple(axis for axis in axes if axis not in varies(x))
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return lax.pvary(x, missing)  # type: ignore[attr-defined]  # before JAX 0.9


def varies(x: Any) -> frozenset[str]:
    """The axes over which a value, or a value of a type, differs."""
    if hasattr(x, "dtype") and not isinstance(x, Array):
        aval = x
    else:
        aval = jax.typeof(x)
    if hasattr(aval, "vma"):
        return frozenset(aval.vma)
    return frozenset(aval.mat.varying)  # of newer versions


def manual_axes(workers: Workers) -> list[str]:
    """The other axes of the mesh that are manual where this is traced."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return [axis for axis in workers.other_axes if axis in manual]


def sharded_over(x: Any) -> Any:
    """The partition spec in the type of an array, which names explicit axes only."""
    return P(*jax.typeof(x).sharding.spec)


def on_axis(x: Any, mesh: Mesh, axis: str) -> Array:
    """An array whose first axis is sharded over an axis of the mesh.

    The type of an array has its sharding over explicit axes, and `shard_map` takes no
    array whose type has another one.
    """
    if mesh.axis_types[mesh.axis_names.index(axis)] != AxisType.Explicit:
        return jnp.asarray(x)
    return jax.sharding.reshard(jnp.asarray(x), NamedSharding(mesh, P(axis)))


def axis_size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape[axis]


def is_first(axes: Sequence[str], places: Sequence[Array]) -> Array:
    """Whether this device is the first one on all axes: by the axis, or by its place on
    it, `[1]`.

    Within a nested `shard_map` JAX before 0.10 knows no `axis_index`.
    """
    numbers = [lax.axis_index(axis) for axis in axes] + [place[0] for place in places]
    return functools.reduce(jnp.logical_and, [number == 0 for number in numbers])


def host_call(
    function: Callable[[np.ndarray], np.ndarray], size: int, platform: str
) -> Callable[[Array], Array]:
    """Call a function on the host from a program: int32 numbers to int32 numbers,
    `[size]`.

    `io_callback` makes an array of JAX of what it passes on, and takes six times as
    long.
    """
    answer = jax.ShapeDtypeStruct((size,), jnp.int32)
    if platform != "cpu":  # elsewhere a buffer lies on the device
        return functools.partial(io_callback, function, answer, ordered=False)

    def write(context: Any, answer: Any, question: Any) -> None:
        np.asarray(answer)[:] = function(np.asarray(question))

    return buffer_callback(write, answer, has_side_effect=True)


class Traced:
    """A traced function of arrays: its program, the types of its results, and zeros of
    these types.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self.jaxpr = closed.jaxpr
        self.types = jax.tree.unflatten(jax.tree.structure(shapes), closed.out_avals)

    def zeros(self, dtype_of: Callable[[Any], Any] = lambda dtype: dtype) -> Any:
        return jax.tree.map(lambda kind: _zero(kind, dtype_of), self.types)


def _zero(kind: Any, dtype_of: Callable[[Any], Any]) -> Array:
    zero = lax.full(kind.shape, 0, dtype_of(kind.dtype), sharding=kind.sharding)
    return varying(zero, *varies(kind))


def refuse_collectives(jaxpr: Any, workers: Workers) -> None:
    """Raise ValueError for a collective over workers in a chunk: it would never end."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if workers.axis in _axes_of(equation) and name not in _HARMLESS:
            raise ValueError(
                f"{name} over {workers.axis!r} at {_line(equation)}: a chunk is "
                "computed by one worker, and the others are at other chunks. Return "
                "what is to be summed over workers as an auxiliary value: all that the "
                "loss returns is summed after the last chunk"
            )
        if name == "ppermute" and workers.platform == "cpu":
            raise ValueError(
                f"ppermute at {_line(equation)}: on CPUs it waits for all devices, not "
                "only for those of this worker. Take all_gather or all_to_all"
            )
        for inner in _programs_of(equation):
            refuse_collectives(inner, workers)


def with_watched_callbacks(
    function: Callable[..., Any], failed: Callable[[BaseException], None]
) -> Callable[..., Any]:
    """The same function, which calls `failed` on the host if a callback in it raises.

    JAX ends the program of the device whose callback has raised. The other devices
    would wait for that device.
    """

    def watched(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _has_callbacks(closed.jaxpr):
            return function(*arguments)
        program = closed.replace(jaxpr=_watched(closed.jaxpr, failed))
        results = jaxpr_as_fun(program)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return watched


def _has_callbacks(jaxpr: Any) -> bool:
    return any(
        "callback" in equation.params
        or any(map(_has_callbacks, _programs_of(equation)))
        for equation in jaxpr.eqns
    )


def _watched(part: Any, failed: Callable[[BaseException], None]) -> Any:
    """A program, or a parameter of an equation, whose callbacks are watched."""
    if hasattr(part, "eqns") and not hasattr(part, "jaxpr"):
        equations = [
            equation.replace(
                params={
                    name: _Watched(parameter, failed)
                    if name == "callback"
                    else _watched(parameter, failed)
                    for name, parameter in equation.params.items()
                }
            )
            for equation in part.eqns
        ]
        return part.replace(eqns=equations)
    if hasattr(part, "jaxpr") and hasattr(part, "consts"):
        return part.replace(jaxpr=_watched(part.jaxpr, failed))
    if type(part) in (tuple, list):
        return type(part)(_watched(entry, failed) for entry in part)
    return part


class _Watched(NamedTuple):
    """A callback that reports an error before it raises it."""

    callback: Callable[..., Any]
    failed: Callable[[BaseException], None]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        try:
            return self.callback(*arguments, **keywords)
        except BaseException as error:
            self.failed(error)
            raise


def coarsest_eps(jaxpr: Any) -> float:
    """The largest relative rounding error of a float in a program."""
    eps = 0.0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
                eps = max(eps, float(jnp.finfo(dtype).eps))
        for inner in _programs_of(equation):
            eps = max(eps, coarsest_eps(inner))
    return eps


def uses_last_argument(jaxpr: Any) -> bool:
    """Whether a program, or a jitted function that it calls, uses its last argument."""
    last = jaxpr.invars[-1]
    for equation in jaxpr.eqns:
        if last not in [v for v in equation.invars if not hasattr(v, "val")]:
            continue
        inner = [*_programs_of(equation)]
        passes_on = len(inner) == 1 and len(inner[0].invars) == len(equation.invars)
        if not passes_on or equation.invars[-1] is not last:
            return True
        if uses_last_argument(inner[0]):
            return True
    return False


def _axes_of(equation: Any) -> set[Any]:
    names = ("axes", "axis_name", "axis_names")
    return {
        axis for name in names for axis in np.atleast_1d(equation.params.get(name, ()))
    }


def _line(equation: Any) -> str:
    return source_info_util.summarize(equation.source_info)


def _programs_of(equation: Any) -> Iterable[Any]:
    """The programs that an equation contains."""
    for parameter in equation.params.values():
        yield from _programs_in(parameter)


def _programs_in(parameter: Any) -> Iterable[Any]:
    """The programs that a parameter of an equation is or has."""
    if hasattr(parameter, "eqns"):
        yield parameter
    elif hasattr(parameter, "jaxpr"):
        yield parameter.jaxpr
    elif isinstance(parameter, tuple | list):
        for part in parameter:
            yield from _programs_in(part)


def refused(tree: Any) -> Any:
    """The same arrays, with a ValueError for a derivative or `vmap` of them."""
    return jax.tree.map(_refused, tree)


_TRANSFORMED = (
    "{} of a gradient with shared work is not defined: its chunks are handed out while "
    "it runs. Take {} in place of it"
)


@jax.custom_batching.custom_vmap
def _not_batched(x: Array) -> Array:
    return x


@_not_batched.def_vmap
def _refuse_vmap(size: int, batched: Any, x: Array) -> Any:
    raise ValueError(_TRANSFORMED.format("vmap", "vmap within the loss"))


@jax.custom_jvp
def _refused(x: Array) -> Array:
    if not isinstance(x, np.ndarray):
        return _not_batched(x)
    return x


@_refused.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise ValueError(_TRANSFORMED.format("A derivative", "derivatives within the loss"))
