r"""Codes for short messages: a worker that computes a block on more subsets sends a part of its length.

Ye & Abbe 2018, Theorem 1: a block on d subsets a worker, of which each sends 1/m of the length, survives s
stragglers if and only if d ≥ s + m. Here by fractional repetition, d | N: d workers of a group have the same
d subsets, and so the same sum of a block. They cut it into m parts; worker k sends the combination `row k`,
and any m of the d rows give the parts back. The real code with the rows of a Fourier matrix is one,

    row k ∝ (1, ω^k, …, ω^{(m-1) k}), ω = e^{2πi/d},  turned by ω^{-(m-1) k / 2} to be real,

with all m × m submatrices Vandermonde, and the worst of them that of m neighbours (enumerated for d ≤ 10).
It is perfect for m = 1 (replication) and m = d (each sends a d-th), has condition √d for m = d - 1 and
cot(π/2d) for m = 2, and is useless for m ≈ d/2 of many. In between, a group of d = q r workers is cut into q
classes of r, of which each sends its own q-th of the block by a code of r workers for m/q parts: s = r - m/q,
more work for the same tolerance, and better conditioned. Or, `sharded`, not more work: a class needs no
coordinates but those of its own q-th. In the paper's model of b cycles for a coordinate and sample a block is
then r subsets' work and not d's, below Ye & Abbe's bound, for they count whole gradients of subsets; what a
model takes for each subset before and between the coordinates, a forward pass, is paid for all d.
"""

import functools
from typing import NamedTuple

import numpy as np

from bcgc_jax._pytree import check_whole

# 6e-8, the rounding of float32, times this is 1e-6.
MAX_CONDITION = 16.0


class MessageCodes(NamedTuple):
    """What a block can be coded with, `[P]` each, ascending in `tolerance`, then in `work`.

    `tolerance`: stragglers it survives; `parts`: a message is 1/parts of the block's length; `work`: of each
    worker, in subsets for all of the block; `stored`: subsets that it needs; `classes` of a group's workers
    that send different parts; `condition`: of the worst set of messages, that of the gradient code not
    counted.
    """

    tolerance: np.ndarray
    parts: np.ndarray
    work: np.ndarray
    stored: np.ndarray
    classes: np.ndarray
    condition: np.ndarray


def message_code(workers: int, parts: int) -> np.ndarray:
    r"""What each of a group's workers sends of the parts of their sum, float64 `[workers, parts]`.

    Rows are of norm 1, and any `parts` of them can be solved for the parts.

    >>> message_code(4, 2).round(3).tolist()
    [[1.0, 0.0], [0.707, 0.707], [0.0, 1.0], [-0.707, 0.707]]
    """
    check_whole("parts", parts, 1)
    check_whole("workers", workers, parts)
    if parts == workers:
        return np.eye(workers)
    # Frequencies -(m-1)/2 … (m-1)/2, in pairs of a cosine and a sine.
    frequency = np.arange(1 + parts % 2, parts, 2) / 2
    angle = 2 * np.pi * np.arange(workers)[:, None] * frequency / workers
    alone = np.full((workers, parts % 2), np.sqrt(0.5))
    return np.concatenate([alone, np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(2 / parts)


@functools.cache
def worst_condition(workers: int, parts: int) -> float:
    r"""max over sets of `parts` workers of ‖G_set‖ ‖G_set⁻¹‖, G = `message_code`: that of neighbours.

    >>> round(worst_condition(9, 8), 6), round(worst_condition(4, 2), 6)
    (3.0, 2.414214)
    """
    return float(np.linalg.cond(message_code(workers, parts)[:parts]))


def message_codes(
    num_workers: int,
    max_condition: float = MAX_CONDITION,
    *,
    most_stored: int | None = None,
    sharded: bool = False,
) -> MessageCodes:
    r"""The codes of N workers that none other is as good as in tolerance, work and length at once.

    Messages of full length at every level (Tandon et al. 2017), shorter ones by fractional repetition, as far
    as their condition is at most `max_condition`: with 1 such as need no arithmetic to decode.
    `most_stored` leaves out what needs more subsets. With `sharded`, workers compute of a block only what
    they send parts of, else all of it.

    >>> codes = message_codes(4)
    >>> list(zip(codes.tolerance.tolist(), codes.parts.tolist(), codes.work.tolist()))
    [(0, 1, 1), (0, 2, 2), (0, 4, 4), (1, 1, 2), (1, 3, 4), (2, 1, 3), (2, 2, 4), (3, 1, 4)]
    """
    check_whole("num_workers", num_workers, 1)
    if not max_condition >= 1:
        raise ValueError(f"max_condition must be >= 1, got {max_condition}")
    if most_stored is None:
        most_stored = num_workers
    check_whole("most_stored", most_stored, 1)
    most_stored = min(most_stored, num_workers)
    found = [_Code(level, 1, level + 1, level + 1, 1, 1.0) for level in range(most_stored)]
    for stored in range(2, most_stored + 1):
        if num_workers % stored:
            continue
        for size in (size for size in range(1, stored + 1) if stored % size == 0):
            classes = stored // size
            # One part of one class is sent whole: that is among the levels.
            for own in range(1 + (classes == 1), size + 1):
                condition = worst_condition(size, own)
                if condition <= max_condition * (1 + 1e-9):
                    work = size if sharded else stored
                    found.append(_Code(size - own, classes * own, work, stored, classes, condition))
    # One that is as good as another comes before it.
    found.sort(key=lambda code: (-code.tolerance, code.work, -code.parts, code.condition))
    kept = [code for i, code in enumerate(found) if not any(_as_good(other, code) for other in found[:i])]
    kept.sort(key=lambda code: (code.tolerance, code.work))
    return MessageCodes(*(np.array(column) for column in zip(*kept, strict=True)))


class _Code(NamedTuple):
    """One of `MessageCodes`."""

    tolerance: int
    parts: int
    work: int
    stored: int
    classes: int
    condition: float


def _as_good(one: _Code, other: _Code) -> bool:
    return one.tolerance >= other.tolerance and one.parts >= other.parts and one.work <= other.work
