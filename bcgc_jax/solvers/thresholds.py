r"""The partition that meets a deadline most probably, where times are atoms.

Workers are alike, and each has one of K pairs of a start-up and a cycle time. Take
these in the order of the load that they manage by t. Level n is in time for the first
i_n + 1 of them, i_0 ≥ i_1 ≥ …, and P(τ ≤ t) depends on this path of thresholds alone: a
level that is not in use has the threshold of the one before. So for each path the
question is how many coordinates are in time. Scaled to L, the partitions that have the
most, one for each path, have an optimum among them.

Proven: most coordinates are in time if each level in turn takes all that pair i_n
leaves it, for a coordinate costs less at a lower level. Where a link sends while a
worker computes that is not so: a small first level lets the link begin early. There the
most is that of a linear program, for pair k and each level j up to the last level m
that is in time for it,

    S_k + T_k y_j + c (X_m - X_{j-1}) ≤ t.

Both need a link to have one start-up: with several, other pairs may be in time at a
high level than at a low one, and no path says which.

Few paths are all tried, which finds the optimum. Else a local search moves the
threshold of one level up and that of another down, and the levels between follow; it
may miss the optimum. With the link of above it fills each level in turn first, and goes
on by linear programs where these are small enough.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.plans.evaluate import steps
from bcgc_jax.plans.iterations import iteration_of, just_after
from bcgc_jax.plans.loads import load_of
from bcgc_jax.plans.worker import delivered
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.packing import largest_sum
from bcgc_jax.solvers.pattern import best_by_moves, values_at
from bcgc_jax.solvers.search import Optimum, local_optimum

# The most paths that are all tried, and with their pairs of levels: up to a second.
_MOST_PATHS = 2**18
_MOST_PAIRS = 2**26
# The most linear programs at a time, times their entries and steps: a few seconds.
_MOST_PIVOTS = 2**26
# The most workers of a local search: a round for 64 takes some 0.4 s.
MOST_WORKERS = 64
# Moves of a round, times pairs of levels: its time and memory.
_MOST_MOVES = 2**21
# The most points that a round goes on with: of 100 problems with N = 8 and K = 9 four
# were missed with 16, by 0.14 at most, and none with 64. 128 takes twice as long and
# changed none of 120 answers.
_KEPT = 64
# What a threshold moves by. With 1 alone two of 410 answers were worse, by 0.03 and
# 0.09, and one better, by 0.015; with 3 too none was, in up to 1.6 times the time.
_STEPS = np.array([1, 2])


class Thresholds(NamedTuple):
    """A deadline t and start-ups, `[K]`, in units of κ, with the cycle times that go
    with them.

    The pairs that do most by t come first.
    """

    problem: Problem
    t: Array
    starts: Array
    times: Array

    @property
    def num_paths(self) -> int:
        size = self.problem.max_workers
        return math.comb(self.times.size + size - 1, size)

    @property
    def has_few_paths(self) -> bool:
        """Whether all paths may be tried, and an optimum is known to be among them."""
        problem = self.problem
        exact = problem.send_time is None or problem.convex
        small = self.num_paths * problem.max_workers**2 <= _MOST_PAIRS
        programs = not self.overlaps or self.programs >= self.num_paths
        return exact and small and programs and self.num_paths <= _MOST_PATHS

    @property
    def overlaps(self) -> bool:
        """Whether a link sends while a worker computes."""
        return self.problem.send_time is not None and bool(self.problem.overlap)

    @property
    def programs(self) -> int:
        """As many linear programs may be solved at a time."""
        return _MOST_PIVOTS // (self.times.size * self.problem.max_workers**3)

    def best(self) -> Optimum:
        """The shares of the best of all paths, and P(late), the least of all shares."""
        size = self.problem.max_workers
        rising = itertools.combinations_with_replacement(range(self.times.size), size)
        paths = jnp.asarray(np.array(list(rising), np.uint16)[:, ::-1])
        late = values_at(lambda path: self.late(self.largest_shares(path)), paths)
        best = jnp.argmin(late)
        share = self.largest_shares(paths[best])
        optimum = local_optimum(share, late[best], True, 0)
        return optimum._replace(bound=optimum.value)

    def better(self, shares: Array, max_steps: int) -> Optimum:
        """The best shares by a local search from the first of `shares`, and P(late)."""
        size = self.problem.max_workers
        kept = max(min(_MOST_MOVES // size**4, _KEPT), 1)
        first = self._searched(shares, kept, max_steps, self.shares)
        kept = min(self.programs // (1 + _STEPS.size * size) ** 2, _KEPT)
        if not self.overlaps or not kept:
            return first
        second = self._searched(first.point[None], kept, max_steps, self.largest_shares)
        return second._replace(num_steps=first.num_steps + second.num_steps)

    def _searched(
        self,
        shares: Array,
        kept: int,
        max_steps: int,
        shares_of: Callable[[Array], Array],
    ) -> Optimum:
        begin = jnp.resize(shares, (kept, shares.shape[1]))
        nowhere = jnp.full(kept, jnp.inf, shares.dtype)
        moved = functools.partial(self.moved, shares_of=shares_of)
        return best_by_moves(self.late, begin, nowhere, moved, max_steps=max_steps)

    def late(self, share: Array) -> Array:
        """P(late)."""
        load = load_of(self.problem, share * self.problem.total)
        return iteration_of(self.problem).exceedance(load, self.t)

    def largest_shares(self, path: Array) -> Array:
        """The shares of the largest partition in time for the pairs of the path.

        Uncoded, where nothing is in time for these.
        """
        if self.overlaps:
            return self._as_shares(self._programmed(path))
        return self.shares(path)

    def shares(self, path: Array) -> Array:
        """The same, each level in turn as large as it can be."""
        room = jnp.maximum(self.t - self.starts, 0)
        subsets = np.arange(1, path.size + 1, dtype=room.dtype)
        if self.problem.send_time is None:
            work = (room / self.times)[path]
            sizes = jnp.diff(work, prepend=0) / subsets
        else:
            sizes = self._filled(room, path, subsets)
        return self._as_shares(sizes)

    def _as_shares(self, sizes: Array) -> Array:
        sizes = jnp.where(self.problem.exists, sizes, 0)
        total = jnp.sum(sizes)
        uncoded = np.eye(1, sizes.size)[0]
        return jnp.where(total > 0, sizes / jnp.where(total > 0, total, 1), uncoded)

    def _programmed(self, path: Array) -> Array:
        """The sizes of the largest sum, if a link sends while a worker computes."""
        link = self.problem.send_load / self.problem.scale
        level = np.arange(path.size)
        pair = np.arange(self.times.size)
        last = jnp.sum(path >= pair[:, None], axis=1)[:, None] - 1
        in_time = level <= last
        work = jnp.asarray(np.tri(path.size) * (level + 1), self.t.dtype)
        sent = jnp.asarray(np.tri(path.size).T, self.t.dtype) * in_time[:, None]
        weights = work + (link / self.times)[:, None, None] * sent
        weights = jnp.where(in_time[..., None], weights, 0)
        room = jnp.maximum(self.t - self.starts, 0) / self.times
        limits = jnp.where(in_time, room[:, None], 1).astype(self.t.dtype)
        rows = weights.reshape(-1, path.size)
        return largest_sum(rows, limits.ravel(), self.problem.exists)

    def _filled(self, room: Array, path: Array, subsets: np.ndarray) -> Array:
        """The sizes with a link, which sends each level after its work."""
        link = self.problem.send_load / self.problem.scale
        inside = np.arange(room.size) <= path[:, None]

        def times_of(work: Array) -> Array:
            return jnp.where(work > 0, self.times * work, 0)

        def fill(spent: tuple[Array, Array], level: Any) -> tuple[Any, Array]:
            work, sent = spent  # and until when each pair's link sends
            subsets, inside = level
            slope = self.times * subsets + link
            if self.problem.overlap:
                waiting = jnp.where(link > 0, (room - sent) / link, jnp.inf)
                size_limit = jnp.minimum((room - times_of(work)) / slope, waiting)
            else:
                size_limit = (room - sent) / slope
            size = jnp.maximum(jnp.min(jnp.where(inside, size_limit, jnp.inf)), 0)
            after = work + subsets * size
            if self.problem.overlap:
                computed = jnp.maximum(sent, times_of(after))
            else:
                computed = sent + times_of(subsets * size)
            return (after, computed + link * size), size

        nothing = jnp.zeros((), room.dtype)
        return jax.lax.scan(fill, (nothing, jnp.zeros_like(room)), (subsets, inside))[1]

    def path(self, share: Array) -> Array:
        """The last pair for which each level is in time."""
        load = load_of(self.problem, share * self.problem.total)
        overlap = self.problem.overlap
        ready = self.starts[:, None] + delivered(load, self.times[:, None], overlap)
        in_time = jnp.sum(ready <= just_after(self.t), axis=0)
        return jnp.maximum(in_time, 1) - 1

    def moved(self, shares: Array, shares_of: Callable[[Array], Array]) -> Array:
        """The shares, and those of paths with a threshold up, one down, or both."""
        paths = jax.vmap(self.path)(shares)
        n = np.arange(paths.shape[1])
        level, step = (a.ravel() for a in np.meshgrid(n, _STEPS))
        level = np.append(0, level)
        step = np.append(0, step)
        highest = jnp.minimum(paths[:, level] + step, self.times.size - 1)[..., None]
        up = jnp.where(
            n <= level[:, None], jnp.maximum(paths[:, None], highest), paths[:, None]
        )
        lowest = jnp.maximum(up[:, :, level] - step, 0)[..., None]
        down = jnp.where(
            n >= level[:, None], jnp.minimum(up[:, :, None], lowest), up[:, :, None]
        )
        neighbours = jax.vmap(shares_of)(down.reshape(-1, n.size))
        return jnp.concatenate([shares, neighbours])


def thresholds_of(problem: Problem, t: Array) -> Thresholds:
    """At a deadline of t, in units of κ."""
    starts, times, _ = (a.astype(t.dtype) for a in steps(iteration_of(problem).worker))
    order = jnp.argsort(-jnp.maximum(t - starts, 0) / times)
    return Thresholds(problem, t, starts[order], times[order])
