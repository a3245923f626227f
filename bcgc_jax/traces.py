"""Measured cycle times: one row for each step and worker."""

import csv
import math
from typing import NamedTuple

import numpy as np

from bcgc_jax.distributions import Empirical

_COLUMNS = ("step", "worker", "seconds")


class Trace(NamedTuple):
    """Rows of a trace: `steps`, `workers` (labels, `[R]`) and `seconds`, `[R]`, float64."""

    steps: np.ndarray
    workers: np.ndarray
    seconds: np.ndarray

    @property
    def num_workers(self) -> int:
        return len(np.unique(self.workers))

    @property
    def num_steps(self) -> int:
        return len(np.unique(self.steps))

    def law(self) -> Empirical:
        """The law of all measured times together, workers taken as alike."""
        return Empirical(self.seconds)

    def rows(self) -> np.ndarray:
        """The times of each step, `[steps, workers]`, in the order of the file's first mentions.

        Raises ValueError where a step has no time, or two, of a worker.
        """
        steps, workers = (list(dict.fromkeys(x.tolist())) for x in (self.steps, self.workers))
        place = {name: i for i, name in enumerate(steps)}, {name: i for i, name in enumerate(workers)}
        times = np.full((len(steps), len(workers)), np.nan)
        for step, worker, seconds in zip(self.steps, self.workers, self.seconds, strict=True):
            i, j = place[0][step], place[1][worker]
            if not np.isnan(times[i, j]):
                raise ValueError(f"step {step} has two times of worker {worker}: a replay needs one")
            times[i, j] = seconds
        if np.isnan(times).any():
            i, j = np.argwhere(np.isnan(times))[0]
            raise ValueError(f"step {steps[i]} has no time of worker {workers[j]}: a replay needs all")
        return times


def load_trace(path: str) -> Trace:
    """Read a CSV file with the columns step, worker, seconds (others are ignored).

    Raises ValueError, with the line of the file, for a missing column, a time that is no positive
    number, or fewer than two workers; OSError for a file that cannot be read.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            header = reader.fieldnames
            if not header:
                raise ValueError(f"{path} is empty: a trace has the columns {', '.join(_COLUMNS)}")
            missing = [c for c in _COLUMNS if c not in header]
            if missing:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}: a trace has the columns "
                    f"{', '.join(_COLUMNS)}, this file has {', '.join(map(str, header))}"
                )
            rows = [(r["step"], r["worker"], _seconds(r["seconds"], path, reader.line_num)) for r in reader]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file (UTF-8): {error.reason}") from None
        except csv.Error as error:
            raise ValueError(f"{path}: not a CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    steps, workers, seconds = zip(*rows, strict=True)
    trace = Trace(np.array(steps, str), np.array(workers, str), np.array(seconds))
    if trace.num_workers < 2:
        raise ValueError(f"{path} has one worker only: coding needs the times of at least two")
    return trace


def _seconds(text: str | None, path: str, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{path}, line {line}: seconds must be a positive number, got {text!r}")
    return value
