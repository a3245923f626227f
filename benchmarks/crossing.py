"""Measure crossing probabilities next to other programs, judged by exact rationals."""

import functools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bcgc_jax.exact.crossing import MANY, Crossing, crossing_probability
from benchmarks import installed, peers
from benchmarks.timing import compare, in_float64, result_row

# Rows that a device takes at a time: what they need stays in its cache.
_BATCH = 128
# Rows of a batch that are judged.
_JUDGED = 32


class Case(NamedTuple):
    """Draw rows b_1…b_N of few binary digits with P(U_(k) > b_k) in a range."""

    what: str
    num_workers: int
    rows: int = 1
    late: tuple[float, float] = (1e-3, 0.1)
    bits: int = 30
    repeats: int = 101


CASES = (
    Case("one boundary", 20),
    Case("one boundary", 100),
    Case("one boundary", 1000, bits=24),
    Case("4096 boundaries", 20, rows=4096, repeats=15),
    Case("4096 boundaries", 100, rows=4096, repeats=15),
    Case("hardly ever crossed", 100, late=(1e-12, 1e-11), bits=53),
    Case("nearly always crossed", 100, late=(0.9, 0.95), bits=53),
)


@in_float64
def crossing() -> Iterator[dict[str, Any]]:
    """Time 1 and 4096 crossing probabilities against crossprob, qqconf and mutoss."""
    peers.require_scipy()
    return (row for case in CASES for row in _rows(case))


def _rows(case: Case) -> Iterator[dict[str, Any]]:
    boundaries = _boundaries(case)
    judged = slice(None, None, max(1, case.rows // _JUDGED))
    exact = [exact_probability(row, case.bits) for row in boundaries[judged]]
    nothing = jax.jit(lambda boundary: boundary[0])
    functions: dict[str, Callable[[], np.ndarray]] = {
        "package": _package(boundaries),
        "call": lambda: np.asarray(nothing(boundaries[0])),
    }
    moscovich = installed.crossprob()
    if moscovich is not None:
        functions["crossprob"] = functools.partial(moscovich, boundaries)
    measured = compare(functions, case.repeats)
    package = measured["package"]
    # mutoss takes minutes as it is
    repeats_in_r = max(1, min(case.repeats, 5000 // boundaries.size))
    timed = {"crossprob": measured.get("crossprob")}
    timed |= {
        name: installed.in_r(name, boundaries, repeats_in_r)
        for name in installed.R_PACKAGES
    }
    error = _error(
        [1 - Fraction(p) for p in package.value.ravel()[judged].tolist()], exact
    )
    start = f"error {error:.1e}"
    if case.rows == 1:
        empty = 1e6 * measured["call"].seconds["median"]
        start = f"a call that computes nothing takes {empty:.2g} µs; {start}"
    for name, peer in timed.items():
        if peer is None:
            peer_error = None
            accuracy = f"{start}; {name} is not installed"
        else:
            peer_error = _error(peer.value[judged].tolist(), exact)
            accuracy = f"{start}, the peer's {peer_error:.1e}"
        what = f"{case.what}, N={case.num_workers}"
        beside = {"package": package}
        beside |= {} if peer is None else {"peer": peer}
        against = name if peer else ""
        errors = {"error": error, "peer_error": peer_error}
        yield result_row("crossing", what, beside, accuracy, errors, against=against)


def _boundaries(case: Case) -> np.ndarray:
    """Quantiles of order statistics, `[rows, N]`, rounded for cheap rationals."""
    from scipy.special import betaincinv

    k = np.arange(1, case.num_workers + 1)
    low, high = np.log(case.late)
    late = np.exp(np.random.default_rng(0).uniform(low, high, (case.rows, 1)))
    quantiles = 1 - betaincinv(case.num_workers - k + 1, k, late)
    return np.round(quantiles * 2.0**case.bits) / 2.0**case.bits


def _package(boundaries: np.ndarray) -> Callable[[], np.ndarray]:
    """Call the package from NumPy to NumPy; many rows go to all local devices."""
    if len(boundaries) == 1:
        compiled = jax.jit(crossed)
        return lambda: np.asarray(compiled(boundaries[0]))
    pieces = boundaries.reshape(-1, _BATCH, boundaries.shape[-1])
    rows = PartitionSpec("rows")
    devices = jax.local_devices()[: math.gcd(len(pieces), jax.local_device_count())]
    local = functools.partial(jax.lax.map, crossed)
    spread = jax.jit(
        jax.shard_map(
            local,
            mesh=Mesh(np.array(devices), ("rows",)),
            in_specs=rows,
            out_specs=rows,
        )
    )
    return lambda: np.asarray(spread(pieces))


def crossed(boundary: jax.Array) -> jax.Array:
    """P(some U_(k) > b_k), `[..., N]` to `[...]`, from the boundary itself, as the
    others take it.

    The logarithm and exponentials of `crossing_probability` take more than half of the
    time at N = 20.
    """
    below = jnp.moveaxis(jnp.asarray(boundary), -1, 0)
    size = below.shape[0]
    if size > MANY:
        return crossing_probability(-jnp.log1p(-jnp.moveaxis(below[::-1], 0, -1)), size)
    return Crossing((below, 1 - below), size, below.ndim > 1).probability()


def exact_probability(boundary: np.ndarray, bits: int = 53) -> Fraction:
    """P(U_(k) ≤ b_k for every k) of N uniform variables, for ascending multiples of
    2^-bits.

    P_k = 1 - Σ_{j<k} C(k, j) P_j (1 - b_{j+1})^{k-j} (Bolshev), P_j that of the first j
    of j variables: a sum that cancels, in whole numbers of units 2^{-bits k}.

    >>> exact_probability(np.array([0.5, 0.75]))
    Fraction(1, 2)
    """
    above = [2**bits - int(b * 2.0**bits) for b in boundary.tolist()]
    whole = 1
    terms = list[int]()
    for k, last in enumerate(above, start=1):
        terms = [
            term * (k * gap) // (k - j)
            for j, (term, gap) in enumerate(zip(terms, above, strict=False))
        ]
        terms.append(whole * k * last)
        whole = (1 << bits * k) - sum(terms)
    return Fraction(whole, 1 << bits * len(above))


def _error(computed: list[Any], exact: list[Fraction]) -> float:
    """The largest error of P, in units of the smaller of P and 1 - P."""
    if any(isinstance(p, float) and not math.isfinite(p) for p in computed):
        return math.nan
    return max(
        float(abs(Fraction(p) - q) / min(q, 1 - q))
        for p, q in zip(computed, exact, strict=True)
    )
