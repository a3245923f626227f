"""Units of the times in a log, and numbers of things in words."""

import numpy as np

# Seconds.
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Steps that are longer or shorter, in seconds, are seldom: own choice.
_SHORTEST, _LONGEST = 1e-3, 3600.0


def unusual_in_words(step: np.ndarray, seconds: np.ndarray) -> list[str]:
    """Say that times were taken for seconds, where a step would take very long or a
    moment.

    Args:
      step: `[R]`, int, of each time.
      seconds: `[R]`.

    >>> unusual_in_words(np.array([0, 0, 1]), np.array([1.0, 2.0, 2.0]))
    []
    """
    slowest = np.zeros(step.max() + 1)
    np.maximum.at(slowest, step, seconds)
    usual = float(np.median(slowest[slowest > 0]))
    if _SHORTEST <= usual <= _LONGEST:
        return []
    said = f"The times of the log are taken for seconds. So a step takes {usual:.4g} s."
    if usual < _SHORTEST:
        return [said, "Convert the times, if that is not so."]
    likely = {name: usual * of for name, of in UNITS.items()}
    likely_units = [
        f"{name} ({time:.3g} s)"
        for name, time in likely.items()
        if _SHORTEST <= time <= _LONGEST
    ]
    if likely_units:
        return [said, f"If that is not so, give their unit: {', '.join(likely_units)}."]
    return [said]


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, in the plural but for 1.

    >>> counted(1, "step"), counted(0, "step"), counted(2, "subset")
    ('1 step', '0 steps', '2 subsets')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
