"""What a function does, as text: by it a sweep that goes on knows whether it is still the same one."""

import copyreg
import functools
import hashlib
import inspect
import re
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Of what is installed, this package too, the name says enough.
_INSTALLED = (
    *(sysconfig.get_paths()[place] for place in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent.parent),
)
_PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, np.generic)


def describe(value: Any) -> str:
    """A function's own code, its defaults, closure and globals, and all that these hold, to the last entry of
    an array; no addresses and no file names, so that another process gives the same text.
    """
    return " ".join(_words(value, {}))


def _words(value: Any, seen: dict[int, int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__}:{value!r}"
        return
    if isinstance(value, np.ndarray | jax.Array):
        yield from _array(value, seen)
        return
    if isinstance(value, types.ModuleType):
        yield value.__name__
        return
    if isinstance(value, types.CodeType):
        yield f"{value.co_code.hex()} {value.co_names}"
        yield from _each(value.co_consts, seen)
        return
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    if id(value) in seen:  # a function that calls itself, a list in itself
        yield f"#{seen[id(value)]}"
        return
    seen[id(value)] = len(seen)
    if isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        yield from _each(_methods(value), seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(describe(one) for one in value)
    elif isinstance(value, Mapping):
        yield from _each([type(value), *value.items()], seen)
    elif isinstance(value, list | tuple):
        yield from _each([type(value), *value], seen)
    else:
        yield from _object(value, seen)


def _each(values: Any, seen: dict[int, int]) -> Iterator[str]:
    yield "("
    for value in values:
        yield from _words(value, seen)
    yield ")"


def _array(value: Any, seen: dict[int, int]) -> Iterator[str]:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    yield f"{array.dtype}{array.shape}"
    if array.dtype.hasobject:
        yield from _each(array.ravel().tolist(), seen)
    else:
        yield hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _function(function: types.FunctionType, seen: dict[int, int]) -> Iterator[str]:
    code = function.__code__
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    if code.co_filename.startswith(_INSTALLED):
        yield f"{function.__module__}.{function.__qualname__}"
        yield from _each([function.__defaults__, closure], seen)
        return
    names = dict.fromkeys(_names(code))
    used = [function.__globals__[name] for name in names if name in function.__globals__]
    yield from _each([code, function.__defaults__, function.__kwdefaults__, closure, used], seen)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that it and the functions within it use."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _names(one)


def _object(value: Any, seen: dict[int, int]) -> Iterator[str]:
    """By what a copy of it would be made from."""
    if isinstance(value, functools.partial):
        yield from _each(["partial", value.func, value.args, value.keywords], seen)
        return
    if isinstance(value, types.MethodType):
        yield from _each(["method", value.__self__, value.__func__], seen)
        return
    try:
        made = value.__reduce_ex__(4)
    except (TypeError, AttributeError, ValueError):  # one that cannot be copied
        yield re.sub(r"0x[0-9a-f]+", "", repr(value))
        return
    yield from _words(type(value), seen)
    if isinstance(made, str):
        yield made
        return
    function, arguments, *state = made
    if function is copyreg.__newobj__:  # type: ignore[attr-defined]
        arguments = arguments[1:]
    for part in (arguments, *state[:1], *(list(items) for items in state[1:3] if items is not None)):
        yield from _words(part, seen)


def _methods(cls: type) -> list[types.FunctionType]:
    """Those of a class of one's own."""
    return [
        one
        for one in vars(cls).values()
        if isinstance(one, types.FunctionType) and not one.__code__.co_filename.startswith(_INSTALLED)
    ]
