"""Paces, lengths and pauses, estimated from a step, whoever did what."""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

# A chunk so many times as long as the others of its worker has a pause in it.
_LONG = math.log(2.5)
# Shared steps whose chunks say what a chunk takes whatever its size.
_REMEMBERED = 16
# What the two variances keep from step to step: half is left after seven.
_KEPT = 0.9


class Timed(NamedTuple):
    """The chunks of a step, M of them, as they were done.

    Attributes:
      who: the worker of each, `[M]`.
      seconds: that each took, `[M]`.
      sizes: what each takes as a share of a whole chunk, `[M]`.
      is_shared: whether chunks were handed out: then a long one is its worker's pause.
        Else who did it had no choice, and its data may be long.
    """

    who: np.ndarray
    seconds: np.ndarray
    sizes: np.ndarray
    is_shared: bool


class Estimate(NamedTuple):
    """A chunk takes pace of its worker x length, and once for each worker its pause.

    Attributes:
      paces: factors of the workers, with a geometric mean of 1, `[N]`.
      lengths: seconds of each chunk at pace 1, `[M]`.
      pauses: seconds, `[N]`.
    """

    paces: np.ndarray
    lengths: np.ndarray
    pauses: np.ndarray


class Known(NamedTuple):
    """What earlier steps have shown of N workers.

    ln pace = (z_w - mean z) B / (B + V / C_w), where z_w is the mean of ln seconds of
    the C_w whole chunks that worker w did, V is the variance of chunks around it, and B
    that between workers. So what chance explains is no pace. Who did no chunk keeps its
    last z_w.

    Attributes:
      usual: z_w of the last step, `[N]`; NaN before there is one.
      between, within: sums of B and of V over steps, in which old steps fade alike.

    >>> step = Timed(
    ...     np.array([0, 0, 1, 1]),
    ...     np.array([1.0, 1, 4, 4]),
    ...     np.ones(4),
    ...     is_shared=False,
    ... )
    >>> _, estimate = Known.of(2).after(step)
    >>> estimate.paces.tolist(), estimate.lengths.tolist()
    ([0.5, 2.0], [2.0, 2.0, 2.0, 2.0])
    """

    usual: np.ndarray
    between: float = 0.0
    within: float = 0.0

    @classmethod
    def of(cls, num_workers: int) -> "Known":
        """Nothing is known."""
        return cls(np.full(num_workers, np.nan))

    def after(self, step: Timed) -> tuple["Known", Estimate]:
        """What is known after another step, and the estimate of that step."""
        who, seconds, sizes, is_shared = step
        workers = len(self.usual)
        z = np.log(seconds / sizes)
        usual = np.where(np.isnan(self.usual), z.mean(), self.usual)
        pauses = np.zeros(workers)
        if is_shared:
            z, pauses = _without_pauses(step, z, usual)
        count = np.bincount(who, minlength=workers)
        done = np.maximum(count, 1)
        means = np.where(count > 0, np.bincount(who, z, workers) / done, usual)
        free = max(len(z) - int(np.count_nonzero(count)), 1)
        noise = float(np.sum((z - means[who]) ** 2)) / free
        spread = 0.0
        if workers > 1:
            spread = float(means.var(ddof=1))
        knowledge = Known(
            means,
            _KEPT * self.between + spread - noise * float(np.mean(1 / done)),
            _KEPT * self.within + noise,
        )
        real = max(knowledge.between, 0.0)
        shrunk = real / np.maximum(real + knowledge.within / done, 1e-30)
        paces = np.exp((means - means.mean()) * shrunk)
        return knowledge, Estimate(paces, np.exp(z) * sizes / paces[who], pauses)


class Reader:
    """Reads one step after the other: whole own chunks, or pieces that were handed out.

    Args:
      shares: of the pieces of a subset, 1 for a whole chunk, `[C']`; own steps do not
        need them.
      num_workers: N.

    >>> reader = Reader(np.array([1.0, 0.5, 0.5]), num_workers=2)
    >>> estimate = reader.read(True, np.repeat([0, 1], 3), np.array([1, 0.7, 0.7] * 2))
    >>> round(reader.fixed, 3), reader.whole(estimate).round(3).tolist()
    (0.4, [[1.0, 1.0], [1.0, 1.0]])
    """

    def __init__(self, shares: np.ndarray, num_workers: int) -> None:
        self.shares = shares
        self.num_workers = num_workers
        self._known = Known.of(num_workers)
        self._fixed: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def fixed(self) -> float:
        """What a chunk takes whatever its size, as a share of a whole one."""
        if self._fixed:
            return float(np.median(self._fixed))
        return 0.0

    def read(self, is_shared: bool, who: np.ndarray, seconds: np.ndarray) -> Estimate:
        """The estimate of a step, whose chunks stand in the order of subsets."""
        sizes = np.ones(who.size)
        if is_shared:
            self._note_fixed(who, seconds)
            sizes = np.tile(self._sizes, self.num_workers)
        self._known, estimate = self._known.after(Timed(who, seconds, sizes, is_shared))
        return estimate

    def whole(self, estimate: Estimate) -> np.ndarray:
        """Lengths of the whole chunks of each subset, `[N, C]`."""
        lengths = estimate.lengths.reshape(self.num_workers, -1)
        if lengths.shape[1] < len(self.shares) or np.all(self.shares == 1):
            return lengths
        cut = self.shares < 1
        # In one the pieces are shorter.
        last = lengths[:, cut].sum(axis=1) / self._sizes[cut].sum()
        return np.column_stack([lengths[:, ~cut], last])

    @property
    def _sizes(self) -> np.ndarray:
        """What each piece of a subset takes, as a share of a whole chunk, `[C']`."""
        return self.shares + self.fixed * (1 - self.shares)

    def _note_fixed(self, who: np.ndarray, seconds: np.ndarray) -> None:
        """Compare a worker's pieces with its whole chunks in the same step."""
        shares = np.tile(self.shares, self.num_workers)
        whole = shares == 1
        count = np.bincount(who[whole], minlength=self.num_workers)
        total = np.bincount(who[whole], seconds[whole], self.num_workers)
        mean = total / np.maximum(count, 1)
        small = ~whole & (count[who] > 0)
        if small.any():
            of_whole = seconds[small] / mean[who[small]]
            fixed = (of_whole - shares[small]) / (1 - shares[small])
            self._fixed.append(float(np.clip(np.median(fixed), 0.0, 1.0)))


def _without_pauses(
    step: Timed, z: np.ndarray, usual: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln seconds of chunks as if nobody had paused, `[M]`, and the pauses, `[N]`.

    A pause lies in the longest chunk of a worker, and is what exceeds the mean of its
    others, or what is `usual` with it, where there are none.
    """
    z = z.copy()
    pauses = np.zeros(len(usual))
    for worker in np.unique(step.who):
        done = np.flatnonzero(step.who == worker)
        longest = done[z[done].argmax()]
        other_chunks = done[done != longest]
        if other_chunks.size:
            expected = z[other_chunks].mean()
        else:
            expected = usual[worker]
        if z[longest] - expected > _LONG:
            pauses[worker] = (
                step.seconds[longest] - math.exp(expected) * step.sizes[longest]
            )
            z[longest] = expected
    return z, pauses
