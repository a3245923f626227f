r"""The certified optimum of block coordinate coding by fractional repetition in nested groups.

With sizes r_1 | r_2 | … | r_K of classes, a block of code (k, q) is computed on q r_k subsets by groups of as
many neighbours, in which each class of r_k sends its own q-th of the sum: coefficients 0 and 1, messages of
1/q of the block's length. It is complete when one of each class has sent its part, whatever q. With shares
x_kq ≥ 0, Σ x = L, and work d_kq of r_k subsets for `sharded` blocks, else q r_k (`message_codes`),

    minimise f(x) = E max_k Q_k(T) κ y_k,  y_k = Σ_{j≤k} Σ_q d_jq x_jq,  subject to Σ x_kq / q ≤ β L,

where Q_k is the largest over classes of r_k of the least T in each. Classes are nested, so Q_k falls in k for
every T, and the order of the blocks is best as in Lemma 1 of the paper; f is convex and homogeneous, exact
by `nested_groups`, and certified as in `short_messages`. The paper waits for any N - s of N workers, which is
what a code must be good for at the worst. Repetition is good for more at the same s = r_k - 1 and the same
work, Q_k ≤ T_(N-s), much less where T spreads, but only for some s.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import Numbers, check_whole, replace
from bcgc_jax.deliveries import Load, Worker
from bcgc_jax.iterations import Delivering, Independent
from bcgc_jax.message_codes import MessageCodes
from bcgc_jax.nested_groups import expected_in_groups
from bcgc_jax.problem import Problem
from bcgc_jax.quadrature import Expectation
from bcgc_jax.solvers.short_messages import ShortMessages, check_plannable, checked, within_limit


def group_sizes(stored: int) -> list[tuple[int, ...]]:
    """All longest rows of sizes from 1 to D, each a divisor of the next: what is nested is in one of them.

    >>> group_sizes(12)
    [(1, 2, 4, 12), (1, 2, 6, 12), (1, 3, 6, 12)]
    """
    check_whole("stored", stored, 1)
    if stored == 1:
        return [(1,)]
    primes = [p for p in range(2, stored + 1) if stored % p == 0 and all(p % q for q in range(2, p))]
    return sorted((*inner, stored) for p in primes for inner in group_sizes(stored // p))


def repeated_codes(num_workers: int, sizes: tuple[int, ...], *, sharded: bool = False) -> MessageCodes:
    """All codes by repetition in classes of these `sizes`, ascending, of groups within those of the last.

    So workers store as many subsets as the last size is. `sharded` is that of `message_codes`. Raises
    ValueError unless each size divides the next and the last N.

    >>> codes = repeated_codes(4, (1, 4))
    >>> list(zip(codes.tolerance.tolist(), codes.parts.tolist(), codes.work.tolist()))
    [(0, 1, 1), (0, 2, 2), (0, 4, 4), (3, 1, 4)]
    """
    _check_sizes(num_workers, sizes)
    last = sizes[-1]
    pairs = [
        (size, parts) for size in sizes for parts in range(1, last // size + 1) if last % (size * parts) == 0
    ]
    size, parts = np.array(pairs).T
    work = size if sharded else size * parts
    return MessageCodes(size - 1, parts, work, size * parts, parts, np.ones(len(pairs)))


def _check_sizes(num_workers: int, sizes: tuple[int, ...]) -> None:
    check_whole("num_workers", num_workers, 1)
    row = (1, *sizes, num_workers)
    rising = all(low < high for low, high in itertools.pairwise(sizes))
    if not sizes or not rising or any(high % low for low, high in itertools.pairwise(row)):
        raise ValueError(
            f"sizes must ascend, each a divisor of the next and the last of {num_workers}, got {sizes}"
        )


def repeated_messages(
    problem: Problem,
    sizes: tuple[int, ...],
    limit: Numbers = 1.0,
    *,
    sharded: bool = False,
    tolerance: ArrayLike = 1e-6,
) -> ShortMessages:
    r"""argmin E τ over blocks repeated in groups of these `sizes`, Σ x_p / q_p ≤ `limit` · L.

    The partition is that of `repeated_codes`, in their order; `sizes` and `sharded` are static, `limit`
    and `tolerance` as in `short_messages`. Workers must be independent and alike. The best for D stored
    subsets is that of the best of `group_sizes(D)`.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=100)
    >>> found = repeated_messages(problem, (1, 2, 4), [1.0, 0.5], tolerance=1e-3)
    >>> found.sent.round(2).tolist(), bool(found.expected_runtime[0] < found.expected_runtime[1])
    ([1.0, 0.5], True)
    """
    check_plannable(problem)
    limits, tolerance = checked(problem, limit, tolerance)
    if not isinstance(problem.iteration, Independent):
        raise ValueError("groups are planned for workers with independent times of one law, not for Rows")
    sizes = tuple(sizes)
    workers = int(np.asarray(problem.num_workers))
    codes = repeated_codes(workers, sizes, sharded=sharded)
    level = jnp.asarray(np.searchsorted(sizes, codes.tolerance + 1))
    length, work = (jnp.asarray(a, problem.dtype) for a in (1 / codes.parts, codes.work))
    return _search(problem, limits, (level, length, work), tolerance, sizes, workers)


@functools.partial(jax.jit, static_argnames=("sizes", "workers"))
def _search(
    problem: Problem,
    limits: Array,
    columns: tuple[Array, Array, Array],
    tolerance: Array,
    sizes: tuple[int, ...],
    workers: int,
) -> ShortMessages:
    evaluate = functools.partial(_evaluate, replace(problem, start_up=None), columns, sizes, workers)

    def one(limit: Array) -> ShortMessages:
        return within_limit(problem, evaluate, limit, *columns[1:], tolerance)

    return jax.lax.map(one, limits) if limits.ndim else one(limits)


def _evaluate(
    problem: Problem,
    columns: tuple[Array, Array, Array],
    sizes: tuple[int, ...],
    workers: int,
    share: Array,
    **options: Any,
) -> tuple[Expectation, Array]:
    """Of the shares, in the unit κ L: the expected runtime, and its slope."""
    level, length, work = columns
    reached = np.arange(len(sizes))[:, None] >= level
    total = problem.total

    def value_of(share: Array) -> tuple[Array, Expectation]:
        done = jnp.where(reached, work, 0) @ share
        sent = problem.send_load / problem.scale * (jnp.where(reached, length, 0) @ share)
        # In coordinates, as the link takes them.
        load = Load(total * done, total * sent)
        found = expected_in_groups(_worker(problem), load, sizes, workers, **options)
        return found.value / total, found

    slope, found = jax.grad(value_of, has_aux=True)(share)
    return Expectation(found.value / total, found.error / total), slope


def _worker(problem: Problem) -> Worker:
    iteration = problem.iteration
    assert isinstance(iteration, Independent)
    if isinstance(delivery := problem.delivery, Delivering):
        return delivery.worker
    return Worker(iteration.law, jnp.zeros((), problem.dtype), problem.scale)
