"""Define frozen dataclasses that are pytrees, and checks of their fields."""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, TypeVar, dataclass_transform

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

T = TypeVar("T")
# Values that `jnp.asarray` converts to an array.
Numbers = ArrayLike | Sequence[float]


def static_field(**kwargs: Any) -> Any:
    """Define a static dataclass field, which is hashable and never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(
    frozen_default=True, field_specifiers=(static_field, dataclasses.field)
)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree.

    Unflattening bypasses `__init__`. Therefore `__post_init__` checks what a caller
    passes, and never the tracers or placeholders that JAX puts into a tree.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    if cls.__repr__ is object.__repr__:
        cls.__repr__ = represent  # type: ignore[method-assign]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))

    def flatten(tree):
        return [getattr(tree, n) for n in data], tuple(getattr(tree, n) for n in static)

    def flatten_with_keys(tree):
        children, aux = flatten(tree)
        return list(
            zip(map(jax.tree_util.GetAttrKey, data), children, strict=True)
        ), aux

    def unflatten(aux, children):
        tree = object.__new__(cls)
        vars(tree).update(zip(data + static, (*children, *aux), strict=True))
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


# Maximum number of entries of an array or sequence that `show` prints.
_MOST_SHOWN = 8


def represent(tree: Any, leave_out: Sequence[str] = ()) -> str:
    """Return the `repr` of a dataclass without default values and long arrays."""
    texts = []
    for field in dataclasses.fields(tree):
        text = show(getattr(tree, field.name))
        if field.name not in leave_out and text != show(field.default):
            texts.append(f"{field.name}={text}")
    return f"{type(tree).__name__}({', '.join(texts)})"


def show(value: Any) -> str:
    """Return a readable `repr`, also for traced values."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        runs = [
            (text, len(list(run))) for text, run in itertools.groupby(map(show, value))
        ]
        texts = [text if count == 1 else f"{count} × {text}" for text, count in runs]
        ellipsis = []
        if len(texts) > _MOST_SHOWN:
            ellipsis = [f"… {len(texts) - _MOST_SHOWN} more"]
        return f"[{', '.join(texts[:_MOST_SHOWN] + ellipsis)}]"
    if isinstance(value, dict):
        entries = [f"{key!r}: {show(entry)}" for key, entry in value.items()]
        return "{" + ", ".join(entries) + "}"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.rpartition(".<locals>.")[2]
    if not isinstance(
        value, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct
    ):
        return repr(value)
    kind = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    numbers = any(
        jax.dtypes.issubdtype(value.dtype, of) for of in (np.number, np.bool_)
    )
    if isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct) or not numbers:
        return kind
    array = np.asarray(value)
    if array.ndim == 0:
        return str(array)
    if array.ndim == 1 and array.size <= _MOST_SHOWN:
        return f"[{', '.join(map(str, array))}]"
    if array.size:
        return f"{kind} from {array.min():.4g} to {array.max():.4g}"
    return kind


def replace(tree: T, **changes: Any) -> T:
    """Return a copy of `tree`, a `pytree_dataclass`, with the named fields changed."""
    return dataclasses.replace(tree, **changes)  # type: ignore[type-var]


def working_dtype(*trees: Any) -> np.dtype:
    """Return the dtype of results: the widest of the leaves' floating dtypes.

    It is float32 or float64. Python numbers and integers do not affect it. Without any
    floating array, it is JAX's default.
    """
    arrays = [leaf for leaf in jax.tree.leaves(trees) if hasattr(leaf, "dtype")]
    dtypes = [array.dtype for array in arrays if not getattr(array, "weak_type", False)]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    if floating and np.float64 not in floating:
        return np.dtype(np.float32)
    return jnp.result_type(float)


def concrete(value: Any) -> np.ndarray | None:
    """Return `value` as a NumPy array, or None if it is traced and so unknown."""
    if isinstance(value, jax.core.Tracer):
        return None
    return np.asarray(value)


def is_traced(tree: Any) -> bool:
    """Whether some leaf is traced, so that its value is unknown."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def at_hand(tree: Any) -> bool:
    """Whether all values and results of computations are known, outside of `jit`."""
    return not is_traced((tree, jnp.zeros(())))


_COMPARISONS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
}


def meets(value: Any, condition: str, finite: bool = True) -> Any:
    """Whether each entry meets a condition of `check`, for arrays of NumPy or JAX.

    NaN meets no condition. Neither does a subnormal number, because arithmetic may
    round it to 0.
    """
    xp = np if isinstance(value, np.ndarray) else jnp
    good = xp.isfinite(value) if finite else ~xp.isnan(value)
    good &= ~_is_subnormal(value)
    if condition:
        comparison, bound = condition.split()
        good &= _COMPARISONS[comparison](value, float(bound))
    return good


def _is_subnormal(value: Any) -> Any:
    """Whether a number is subnormal, decided by its bits.

    A comparison with 0 would depend on the compiled program around it.
    """
    if isinstance(value, np.ndarray):
        tiny = 0
        if value.dtype.kind == "f":
            tiny = np.finfo(value.dtype).tiny
        return (value != 0) & (np.abs(value) < tiny)
    value = jnp.abs(jnp.asarray(value))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.zeros_like(value, bool)
    whole = np.dtype(f"int{8 * value.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(value, whole)
    return (bits > 0) & (bits < int(jnp.finfo(value.dtype).tiny.view(whole)))


def check(name: str, value: Any, condition: str, *, finite: bool = True) -> None:
    """Raise ValueError unless each entry of a concrete `value` meets `condition`.

    The condition is, for example, "> 0" or ">= 0". An empty string means no condition.
    """
    array = concrete(value)
    if array is None:
        return
    if not any(
        jax.dtypes.issubdtype(array.dtype, kind) for kind in (np.integer, np.floating)
    ):
        raise ValueError(f"{name} must be a number, got {value!r}")
    bad = ~meets(array, condition, finite)
    if bad.any():
        requirement = " and ".join(
            filter(None, ["finite" if finite else "", condition])
        )
        if _is_subnormal(array[bad]).flat[0]:
            tiny = np.finfo(array.dtype).tiny
            requirement = (
                f"0 or at least {tiny:.3g}, the smallest normal number, in size"
            )
        raise ValueError(f"{name} must be {requirement}, got {array[bad].flat[0]!s}")


def check_whole(name: str, value: Any, low: int) -> None:
    """Raise ValueError unless a static `value` is an integer ≥ `low`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or value < low
    ):
        raise ValueError(
            f"{name} must be an integer >= {low} that is known before tracing, got "
            f"{value!r}"
        )


def check_key(key: Any) -> None:
    """Raise ValueError unless `key`, traced or not, is a single PRNG key."""
    dtype = getattr(key, "dtype", None)
    shape = getattr(key, "shape", ())
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        is_key = shape == ()
    else:
        is_key = dtype == np.uint32 and len(shape) == 1
    if not is_key:
        raise ValueError(
            "key must be a single PRNG key, such as jax.random.key(0), got "
            f"{show(key)}. Use jax.vmap for several keys."
        )


def check_shape(
    name: str, value: Any, shape: Sequence[int | EllipsisType | None], advice: str
) -> None:
    """Raise ValueError unless `value`, traced or not, has the `shape`.

    None in `shape` allows any length.
    """
    try:
        chex.assert_shape(value, shape)
    except AssertionError:
        expected = str(tuple(shape)).replace("Ellipsis", "...").replace("None", "*")
        text = f"{name} must have shape {expected}, got {np.shape(value)}; {advice}"
        raise ValueError(text) from None
