"""Whether a log was timed behind a collective, where each worker has waited for the
slowest.

Then all times of a step are one, but for jitter, and steps differ by far more. Let s be
the deviation of ln seconds that all workers of a step have in common, and w that
between the workers of a step. Workers are alike where s ≥ 2 w, and hardly a time is far
above the median of its step.

s is taken from changes from one step to the next, by their median. So a first step that
compiles, a checkpoint, and a speed that changes once or slowly do not count: they slow
all workers down in logs of own computation too.

Of 200 synthetic logs so many were taken for times behind a collective, by workers ×
steps (tests/measured/test_alike.py; the constants were chosen on other seeds). Numbers
in the names of kinds are deviations of ln seconds.

                                             2 × 8 2 × 32 8 × 8 8 × 100 32 × 8 32 × 100
    own computation, each of 7 kinds        0 to 1      0     0       0      0        0
    all slow in 15 % of steps, workers 0.1      45      7    27       0     32        0
    all drift 0.1 or 0.3, workers 0.03          73     99    90     102     81      104
    all drift 0.1 or 0.3, workers 0.1            3      0     4       0      0        0
    all change 0.5 in each step, workers 0.1   168    200   185     200    191      200
    all change 0.5 in each step, workers 0.3    35     26    18       0      9        0
    behind a collective, own 0.1, jitter 0.01   200    200   191     200    194      200
    behind a collective, own 0.1, jitter 0.03   107    162    87     102     62        8
    behind a collective, own 0.3, jitter 0.03   194    200   191     200    194      200
    behind a collective, own 0.3, jitter 0.1    90    135    75      45     47        0
    behind a collective, own 1, jitter 0.1     194    200   191     200    194      200

Where jitter is as large as what steps differ by, a log behind a collective is like one
of own computation. Where all workers are slow in the same steps by another cause, a log
of own computation is like one behind a collective. So both are said.
"""

import math

import numpy as np

# Less of the time than this is lost: nothing waits, whatever the cause. Own choice.
_EQUAL = 0.01
# Common to all workers of a step, over between them. In own computation recorded by the
# four sources of `experiments` it is at most 1.0 for any 8 steps in a row.
_COMMON = 2.0
# More by this over the number of differences between workers, of which short logs have
# few.
_FOR_FEW = 4.0
# Behind a collective nobody takes so many times as long as the median worker of the
# step,
_FAR = 2.0
# but in this share of all times, as where a clock fails.
_SELDOM = 1e-3
# Workers of a step that differ by less, ln of the ratio, may do so by jitter alone.
_JITTER = 0.1
# In fewer steps two workers are alike by chance too often.
FEWEST_STEPS = 8
# The deviation of a normal distribution over the median distance from 0.
_OF_MEDIAN = 1.4826

NOT_TIMED_APART = (
    "All workers of a step take the same time, or nearly. Were they timed behind a "
    "collective (an all-reduce, a barrier), where each has waited for the slowest? "
    "Then nothing can be learnt here. Record the seconds of each worker's own "
    "computation, up to the collective. Or add a column `wait`: the seconds that each "
    "worker was in the collective."
)
# The same of a log that has waits.
WAITED_ELSEWHERE = (
    "All workers of a step take the same time, or nearly, also without their `wait`. "
    "Have they waited for the slowest elsewhere (a barrier, a copy to the host, a "
    "collective that was not recorded)? Then nothing can be learnt here: put that into "
    "`wait` too."
)


def equal(times: np.ndarray) -> bool:
    """Whether the slowest worker takes hardly more than the mean one, `[S, W]`."""
    return bool(1 - times.mean() / times.max(axis=1).mean() < _EQUAL)


def deviations(times: np.ndarray) -> tuple[float, float]:
    """Return how much ln seconds differ: from step to step for all workers, and between
    workers.

    Args:
      times: `[S, W]`, S and W ≥ 2, steps in their order.

    The first is 0 where chance between workers explains what the means of steps change
    by.

    >>> times = np.exp([[0.0, 0.2], [1.0, 1.2], [0.0, 0.2]])
    >>> [round(deviation, 2) for deviation in deviations(times)]
    [1.04, 0.14]
    """
    workers = times.shape[1]
    logs = np.log(times)
    means = logs.mean(axis=1)
    between = float(np.sum((logs - means[:, None]) ** 2)) / (len(times) * (workers - 1))
    change = _OF_MEDIAN * float(np.median(np.abs(np.diff(means))))
    common = max(change**2 / 2 - between / workers, 0.0)
    return math.sqrt(common), math.sqrt(between)


def perhaps_jitter(times: np.ndarray) -> list[str]:
    """Say that times, `[S, W]`, may differ by jitter alone; nothing if by more."""
    _, between = deviations(times)
    if between > _JITTER:
        return []
    return [
        f"The workers of a step deviate by {100 * between:.2g} %. If they were timed "
        "behind a collective, that is jitter, and nothing can be learnt here without a "
        "column `wait`."
    ]


def workers_alike(times: np.ndarray) -> bool:
    """Whether whole steps, `[S, W]`, look as if workers had waited for the slowest."""
    if equal(times):
        return True
    if len(times) < FEWEST_STEPS:
        return False
    far = np.mean(times > _FAR * np.median(times, axis=1, keepdims=True))
    common, between = deviations(times)
    differences = len(times) * (times.shape[1] - 1)
    least_ratio = _COMMON * (1 + _FOR_FEW / differences)
    return bool(far <= _SELDOM and common >= least_ratio * between)
