r"""Gradient codes: who computes which data subsets, what it sends, and how the sum
comes back.

At redundancy level s worker w sends Σ_j B_wj g_j, g_j the gradient of data subset j (N
of equal size). Its row of the encoding matrix B has s+1 nonzero entries. Any N-s rows
span (1, …, 1): the messages of any N-s workers, weighted by a with aᵀB = 1ᵀ, add up to
Σ_j g_j.

Weights are float64, also where the caller's JAX is not: a code may amplify rounding by
1e6 and more. So are the messages, but of codes with an amplification near 1: these send
the gradients' dtype, at least float32.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key, pytree_dataclass, static_field

# Coefficients 1 within groups of workers that all send the same: nothing is amplified.
REPEATED = ("uncoded", "replication", "fractional_repetition")
CYCLIC = ("cyclic_mds", "random_cyclic")
CONSTRUCTIONS = REPEATED + CYCLIC

# Float32 messages at up to this amplification keep the sum's error below 1e-6; worst
# measured 6e-8.
_NARROW = 4.0
# Weights that miss (1, …, 1) by more are refused: rounding of the code itself leaves up
# to 1.5e-7 (N = 100), one worker too few 3e-5 and more.
_DECODABLE = 5e-7
# So are those that amplify float64's rounding to 1e-7.
_LARGEST = 1e9


def refuse_complex(what: str, values: Any) -> None:
    """Raise ValueError for a complex leaf: messages are sums of real numbers."""
    for path, leaf in jax.tree.leaves_with_path(values):
        if np.iscomplexobj(leaf):
            dtype = np.result_type(getattr(leaf, "dtype", leaf))
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} is {dtype}, and codes are of real "
                "numbers: take real and imaginary part for two leaves, and join them "
                "in the loss by jax.lax.complex"
            )


@pytree_dataclass
class GradientCode:
    """A code of N workers at one redundancy level.

    Attributes:
      encoding: B, float64 `[N, N]`, a row for each worker: what it multiplies the
        subsets' gradients by.
      subsets: the data subsets that each worker computes, `level + 1` (in groups of
        unequal sizes some more).
      level: the number of stragglers it survives.
      construction: one of `CONSTRUCTIONS`.
      wide: whether messages must be float64: 8 bytes for each coordinate, else 4.
    """

    encoding: Array
    subsets: tuple[tuple[int, ...], ...] = static_field()
    level: int = static_field()
    construction: str = static_field()
    wide: bool = static_field(default=False)


class Decoding(NamedTuple):
    """Workers' `weights`, float64 `[N]`: NaN where nothing is `decodable`."""

    weights: Array
    decodable: Array


def allocate(num_workers: int, level: int) -> np.ndarray:
    """I_w = {w, w+1, …, w+level} modulo N, `[N, level + 1]`: what workers store up to
    `level`.

    >>> allocate(4, 1).tolist()
    [[0, 1], [1, 2], [2, 3], [3, 0]]
    """
    if not 0 <= level < num_workers:
        raise ValueError(
            f"a level must be from 0 to {num_workers - 1}, below N, got {level}"
        )
    return (np.arange(num_workers)[:, None] + np.arange(level + 1)) % num_workers


def gradient_code(
    key: Array,
    num_workers: int,
    level: int,
    construction: str | None = None,
    *,
    top_level: int | None = None,
) -> GradientCode:
    r"""A gradient code of `num_workers` that survives any `level` stragglers; made on
    the host.

    Args:
      key: randomness of "random_cyclic".
      num_workers, level: N and s, 0 ≤ s < N.
      construction: "uncoded" (s = 0), "replication" (s = N-1), "fractional_repetition"
        (s+1 divides N; coefficients 1), "cyclic_mds" (roots of unity, Raviv et al.
        2018; N - s odd), "random_cyclic" (Tandon et al. 2017). None takes the best
        conditioned that only uses what workers store.
      top_level: the plan's highest level, by default `level`: worker w stores
        `allocate(N, top_level)[w]`.

    Raises ValueError for a construction that does not exist here.

    >>> code = gradient_code(jax.random.key(0), 4, 1, "cyclic_mds")
    >>> code.encoding.round(3).tolist()[0], code.wide
    ([1.0, 1.0, 0.0, 0.0], False)
    """
    check_key(key)
    allocate(num_workers, level)  # refuses a level that there is not
    top = level if top_level is None else top_level
    exists = {
        "uncoded": level == 0,
        "replication": level == num_workers - 1,
        "fractional_repetition": num_workers % (level + 1) == 0,
        "cyclic_mds": (num_workers - level) % 2 == 1,
        "random_cyclic": True,
    }
    possible = [name for name in exists if exists[name]]
    if construction in possible:
        asked = [construction]
    elif construction is not None:
        raise ValueError(
            f'there is no "{construction}" code for {num_workers} workers at level '
            f"{level}; possible: {', '.join(possible)}"
        )
    # Workers store the subsets of fractional repetition where 2 s ≤ top_level, see
    # _repetition.
    elif level in (0, num_workers - 1) or (
        exists["fractional_repetition"] and 2 * level <= top
    ):
        asked = possible[:1]
    else:
        asked = [name for name in possible if name in CYCLIC]
    built = [_build(key, num_workers, level, name) for name in asked]
    code, _ = min(built, key=lambda code_and_amplification: code_and_amplification[1])
    return code


def repetition_code(
    groups: Sequence[Sequence[int]], data: Sequence[Sequence[int]]
) -> GradientCode:
    """A code where each group of workers computes the sum over its `data` subsets."""
    of_worker = {
        w: tuple(of_group)
        for group, of_group in zip(groups, data, strict=True)
        for w in group
    }
    subsets = tuple(of_worker[w] for w in sorted(of_worker))
    encoding = np.array(
        [np.isin(np.arange(len(subsets)), stored) for stored in subsets]
    )
    return GradientCode(
        encoding=kept(encoding, float),
        subsets=subsets,
        level=min(map(len, groups)) - 1,
        construction="fractional_repetition",
    )


def _build(
    key: Array, num_workers: int, level: int, construction: str
) -> tuple[GradientCode, float]:
    """The code and its worst amplification."""
    subsets = allocate(num_workers, level)
    coefficients = np.ones(level + 1)
    if construction == "cyclic_mds":
        coefficients = _roots_of_unity(num_workers, level)
    elif construction == "random_cyclic":
        coefficients = _random(key, subsets)
    else:
        subsets = _repetition(num_workers, level)
    encoding = np.zeros((num_workers, num_workers))
    np.put_along_axis(
        encoding, subsets, np.broadcast_to(coefficients, subsets.shape), axis=1
    )
    encoding /= np.abs(encoding).max(axis=1, keepdims=True)
    rows = tuple(map(tuple, subsets.tolist()))
    code = GradientCode(kept(encoding), rows, level, construction)
    worst = conditioning(key, code, 200)
    return dataclasses.replace(code, wide=worst > _NARROW), worst


def _repetition(num_workers: int, level: int) -> np.ndarray:
    """Groups of s+1 workers that all compute the same s+1 subsets.

    Subsets j … j+s go to workers j-s … j, who store them all if they store 2 s + 1
    subsets, from their own on.
    """
    size = level + 1
    first = (np.arange(num_workers) + level) // size * size
    return (first[:, None] + np.arange(size)) % num_workers


def _roots_of_unity(num_workers: int, level: int) -> np.ndarray:
    """Coefficients of Π_k (1 + z e^{2πik/N}), k = -(s-1)/2 … (s-1)/2.

    The roots are N-th roots of unity. By the q-binomial theorem they are products of
    ratios of sines, all positive: nothing cancels.
    """
    i = np.arange(1, level + 1)
    ratio = np.sin(np.pi * (level + 1 - i) / num_workers) / np.sin(
        np.pi * i / num_workers
    )
    return np.cumprod(np.concatenate([[1.0], ratio]))


def _random(key: Array, subsets: np.ndarray) -> np.ndarray:
    """Vectors with H x = 0, `[s, N]`, for a random H with H 1 = 0, one a support."""
    num_workers, size = subsets.shape
    # Other numbers for each N and level, so that a plan's codes may share a key.
    rng = np.random.default_rng([*_seed(key), num_workers, size])
    h = rng.standard_normal((size - 1, num_workers))
    h -= h.mean(axis=1, keepdims=True)
    columns = np.moveaxis(h[:, subsets], 1, 0)
    coefficients = np.linalg.solve(columns[:, :, 1:], -columns[:, :, :1])[..., 0]
    return np.concatenate([np.ones((num_workers, 1)), coefficients], axis=1)


def _seed(key: Array) -> list[int]:
    """NumPy's seed from a key: drawing on the host compiles nothing."""
    return np.asarray(jax.random.key_data(key)).ravel().tolist()


def kept(x: Any, dtype: Any = None) -> Array:
    """`x` in JAX in its own dtype: a program takes NumPy's as the caller's float."""
    if isinstance(x, Array):
        return x
    with jax.enable_x64(True):
        return jax.device_put(np.asarray(x, dtype))


def decoding_weights(encoding: ArrayLike, arrived: ArrayLike) -> Decoding:
    r"""Weights a with aᵀB = 1ᵀ, 0 for workers that have not `arrived`: `[N, N]` and
    bool `[N]`.

    Elimination with complete pivoting, which uses the best conditioned of the workers
    that arrived, and one refinement; O(N³). Where too few have arrived, weights are NaN
    and `decodable` is False.

    >>> code = gradient_code(jax.random.key(0), 3, 1, "random_cyclic")
    >>> [
    ...     bool(decoding_weights(code.encoding, jnp.array(a)).decodable)
    ...     for a in ([1, 0, 1], [0, 0, 1])
    ... ]
    [True, False]
    """
    return _weights(kept(encoding, float), kept(arrived))


@jax.jit
def _weights(encoding: Array, arrived: Array) -> Decoding:
    size = arrived.size
    has_arrived = arrived.astype(bool)
    index = jnp.arange(size, dtype=jnp.int32)
    # In the scope stands arithmetic alone: other operations are lowered with the
    # caller's integers.
    with jax.enable_x64(True):
        b = encoding.astype(jnp.float64)
        identity = (index[:, None] == index).astype(jnp.float64)
        system = jnp.concatenate(
            [jnp.where(has_arrived[:, None], b, 0).T, identity], axis=1
        )
        smallest = 1e-13 * jnp.max(jnp.abs(b))  # a smaller pivot is rounding

    def eliminate(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Gauss and Jordan's step with the largest entry left, after `pivots`."""
        system, pivots = state
        used = jnp.any(pivots, axis=1)[:, None] | jnp.any(pivots, axis=0)
        left = jnp.where(used, 0, jnp.abs(system[:, :size]).astype(jnp.float32))
        place = jnp.argmax(left).astype(jnp.int32)
        row = index == place // size
        column = index == place % size
        with jax.enable_x64(True):
            exists = jnp.max(left) > smallest
            row = row & exists
            column = column & exists
            factors = jnp.sum(jnp.where(column, system[:, :size], 0), axis=1)
            pivot = jnp.where(exists, jnp.sum(jnp.where(row, factors, 0)), 1)
            values = jnp.sum(jnp.where(row[:, None], system, 0), axis=0) / pivot
            system = jnp.where(row[:, None], values, system - factors[:, None] * values)
            return system, pivots | (row[:, None] & column)

    system, pivots = jax.lax.fori_loop(
        0, size, eliminate, (system, jnp.zeros((size, size), bool))
    )
    with jax.enable_x64(True):
        inverse = _dot(pivots.T.astype(jnp.float64), system[:, size:])
        weights = jnp.sum(inverse, axis=1)
        # refined once: what growth in the elimination left
        weights += _dot(inverse, 1 - _dot(weights, b))
        left = jnp.abs(1 - _dot(weights, b))
        amplification = _dot(jnp.abs(weights), jnp.abs(b))
        decodable = (jnp.max(left) <= _DECODABLE) & (jnp.max(amplification) <= _LARGEST)
        return Decoding(jnp.where(decodable, weights, jnp.nan), decodable)


def encode(code: GradientCode, gradients: ArrayLike) -> tuple[Array, ...]:
    """What the workers send, N messages `[…]`, from the gradients of the N subsets,
    `[N, …]`.

    Float64 for codes that need it (`code.wide`), else the gradients' own dtype, at
    least float32.

    >>> messages = encode(gradient_code(jax.random.key(0), 4, 3), jnp.ones((4, 2)))
    >>> len(messages), messages[0].tolist()
    (4, [4.0, 4.0])
    """
    refuse_complex("gradients", gradients)
    g = jnp.asarray(gradients)
    code = jax.tree.map(kept, code)
    if g.ndim == 0 or len(g) != len(code.subsets):
        raise ValueError(
            f"there must be {len(code.subsets)} subset gradients, got shape {g.shape}"
        )
    # One worker of each group that computes, and sends, the same.
    first = {rows: w for w, rows in reversed(list(enumerate(code.subsets)))}
    # XLA fuses the sums of long messages, three times as fast at 1e6 numbers. Short
    # messages, and more sums than these, are not worth the compilation.
    if math.prod(g.shape[1:]) >= 4096 and sum(map(len, first)) - len(first) <= 512:
        sent = _encode_long(code, g, tuple(first.values()))
    else:
        everyone = _encode_short(code.encoding, g, _message_dtype(code.wide, g.dtype))
        sent = tuple(everyone[w] for w in first.values())
    messages = dict(zip(first, sent, strict=True))
    return tuple(messages[rows] for rows in code.subsets)


@functools.partial(jax.jit, static_argnums=2)
def _encode_short(encoding: Array, g: Array, dtype: Any) -> tuple[Array, ...]:
    with jax.enable_x64(True):
        messages = _dot(encoding, g.reshape(len(g), -1).astype(jnp.float64)).reshape(
            g.shape
        )
        return tuple(messages.astype(dtype))


@functools.partial(jax.jit, static_argnums=2)
def _encode_long(
    code: GradientCode, g: Array, workers: Sequence[int]
) -> tuple[Array, ...]:
    messages = []
    for w in workers:
        subsets = code.subsets[w]
        row = [code.encoding[w, j] for j in subsets]
        messages.append(message(row, [g[j] for j in subsets], code.wide))
    return tuple(messages)


def row_of(code: GradientCode, worker: int) -> Array:
    """A worker's coefficients, float64 `[level + 1]`; an argument of programs."""
    return kept(np.asarray(code.encoding)[worker, list(code.subsets[worker])])


def message(
    row: Array | Sequence[Array], gradients: Sequence[Array], wide: bool
) -> Array:
    """A worker's message: the sum of `level + 1` gradients, weighted by its `row`."""
    dtype = _message_dtype(wide, gradients[0].dtype)
    if len(gradients) == 1:
        return gradients[0].astype(dtype)  # of weight 1
    with jax.enable_x64(True):
        products = (
            c * g.astype(jnp.float64) for c, g in zip(row, gradients, strict=True)
        )
        return functools.reduce(jnp.add, products).astype(dtype)


def _message_dtype(wide: bool, dtype: Any) -> Any:
    if wide:
        return jnp.float64
    return jnp.promote_types(dtype, jnp.float32)


def decode(
    weights: ArrayLike,
    messages: Sequence[ArrayLike] | Array | np.ndarray,
    dtype: Any = None,
) -> Array:
    """Σ_w a_w m_w, `[…]`, summed in float64 and rounded to `dtype`, by default the
    caller's float.

    Messages of weight 0 may be anything.

    >>> decode(
    ...     jnp.array([2.0, 0.0]),
    ...     [jnp.array([1.5, 1.0]), jnp.array([jnp.nan, jnp.inf])],
    ... ).tolist()
    [3.0, 2.0]
    """
    refuse_complex("messages", messages)
    dtype = np.dtype(jnp.result_type(float) if dtype is None else dtype)
    return _decode(kept(weights, float), jax.tree.map(kept, messages), dtype)


@functools.partial(jax.jit, static_argnums=2)
def _decode(weights: Array, messages: Sequence[Array] | Array, dtype: Any) -> Array:
    with jax.enable_x64(True):
        pairs = zip(weights.astype(jnp.float64), messages, strict=True)
        # In one pass of XLA; a matrix product would convert all messages to float64 in
        # memory first.
        parts = (jnp.where(a != 0, a * m.astype(jnp.float64), 0) for a, m in pairs)
        return functools.reduce(jnp.add, parts).astype(dtype)


def _dot(a: Array, b: Array) -> Array:
    """`a @ b` in float64, also under `vmap`."""
    # `jnp` names the result's dtype, which `vmap` outside of the scope would cut to
    # float32.
    axes = (((a.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=jax.lax.Precision.HIGHEST)


def conditioning(key: Array, code: GradientCode, num_sets: int = 1000) -> float:
    """The worst amplification of rounding, max_j Σ_w |a_w B_wj|; inf where no weights
    exist.

    Over `num_sets` random and all contiguous sets of `level` stragglers: an error of ε
    in each product of the encoding becomes one of at most ε · amplification · Σ_j
    |g_j|. On the host, not for use under `jit`.

    >>> conditioning(jax.random.key(0), gradient_code(jax.random.key(0), 6, 5))
    1.0
    """
    check_key(key)
    if code.construction in REPEATED:
        return 1.0  # one worker of each group, with weight 1
    b = np.asarray(code.encoding)
    size = len(b)
    num_arrived = len(b) - code.level
    everyone = np.tile(np.arange(size), (num_sets, 1))
    order = np.random.default_rng(_seed(key)).permuted(everyone, axis=1)
    sets = np.concatenate([order[:, :num_arrived], allocate(size, num_arrived - 1)])
    # In an orthonormal basis of the span of B's rows the system is square.
    basis = np.linalg.svd(b)[2][:num_arrived]
    coordinates = b @ basis.T
    ones = basis.sum(axis=1)
    worst = 0.0
    # A few sets at a time: the matrices of 1000 sets at N = 100 take 80 MB.
    parts = math.ceil(len(sets) / 100)
    for part in np.array_split(sets, parts):
        try:
            weights = np.linalg.solve(
                np.swapaxes(coordinates[part], 1, 2), ones[:, None]
            )[..., 0]
        except np.linalg.LinAlgError:
            return np.inf
        worst = max(
            worst,
            float(np.einsum("kw,kwj->kj", np.abs(weights), np.abs(b)[part]).max()),
        )
    return worst
