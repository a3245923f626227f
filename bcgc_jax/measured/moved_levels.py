"""What causes add to the loss by a draw of the model, with the errors of its levels.

The levels of a draw are replaced by those without bias. What a step adds to a level,
times what the level adds to the causes, is added to what the causes add in this step.
The mean over steps stays. If steps are resampled, it varies as the estimate does from
log to log.

The seconds stay, so what a level does not explain is of B or of the data. Of the
deviation of a worker's mean chunk, B is expected to be a part of V / (V + σ²/C), with
the variances that `slow_steps` has. The data are the rest.
"""

from collections.abc import Collection, Sequence

import numpy as np

from bcgc_jax.measured.causes import Parts, losses, shapley_values
from bcgc_jax.measured.level_errors import Level


def losses_with_errors(
    parts: Parts, levels: Sequence[Level], of_random: float, *, lock_step: bool = False
) -> dict[str, np.ndarray]:
    """Return what each cause adds to the loss of each step, `[S]`, with the errors.

    Args:
      parts: a draw of the model.
      levels: the levels of its workers that stay slow, or fast.
      of_random: the part of what levels do not explain that is slowness at random.
      lock_step: whether chunk k of all workers is computed together.
    """
    parts = with_levels(parts, levels, of_random)
    added = losses(parts, lock_step=lock_step)
    by_level = slopes(parts, of_random, lock_step=lock_step)
    for cause, slope in by_level.items():
        for level in levels:
            steps = slice(level.first, level.stop)
            whole = slope[steps, level.worker].sum() / len(slope)
            added[cause][steps] += whole * level.influence
    return added


def with_levels(parts: Parts, levels: Sequence[Level], of_random: float) -> Parts:
    """Return other parts of the same seconds, with these levels.

    B keeps its mean over the workers of a step.
    """
    steady = parts.steady.copy()
    for level in levels:
        steady[level.first : level.stop, level.worker] = level.value
    less = parts.steady - steady
    random = parts.random + of_random * (less - less.mean(axis=1, keepdims=True))
    pace = np.exp(parts.steady + parts.random - steady - random)
    return Parts(steady, random, pace[:, :, None] * parts.data, parts.pauses)


def slopes(
    parts: Parts, of_random: float, *, lock_step: bool = False
) -> dict[str, np.ndarray]:
    """Return the derivatives of `losses` by the levels of the workers, `[S, W]`.

    The seconds stay, as in `with_levels`.
    """
    if not lock_step:
        parts = parts.whole()
    workers = parts.steady.shape[1]
    work = parts.data.sum(axis=2)
    share = work / work.sum(axis=1, keepdims=True)

    def slope(causes: Collection[str]) -> np.ndarray:
        times = parts.until_met(causes, lock_step=lock_step)
        paced = times - parts.pauses * ("pauses" in causes)
        slowest = times.argmax(axis=1)[:, None, :] == np.arange(workers)[:, None]
        by_pace = ((slowest - 1 / workers) * paced).sum(axis=2)
        whole = by_pace.sum(axis=1, keepdims=True)
        # B is centred, so the data of all workers are shorter.
        random = ("random" in causes) * (by_pace - whole / workers) + whole / workers
        data = by_pace if "data" in causes else whole * share
        less = of_random * random + (1 - of_random) * data
        return ("steady" in causes) * by_pace - less

    return shapley_values(slope)
