"""A worker is killed or frozen in the middle of a step: what that step takes, and the
next one.

Six equal workers, whose layers sleep in proportion to their samples, train by each
scheme. In every fortieth step, after a random share of it, one worker is struck: by
then the one before has been replaced. Steps are given in units of the median of those
before the first strike. Ten minutes; nothing else should run beside it.
"""

import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcgc_jax.cluster import Cluster
from experiments.busy import Setting, trained
from experiments.endurance import signal_workers
from experiments.report import number, print_table, run_command, save, with_progress

METHODS = ("uncoded", "nested:2", "sharing:2:8")
KINDS = ("killed", "frozen", "frozen for 3 steps")
_SUBSET = 0.29
_PATIENCE = 2.0  # seconds


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int = 6,
    strikes: int = 3,
    steps_between: int = 40,
    subset: float = _SUBSET,
    methods: Sequence[str] = METHODS,
    kinds: Sequence[str] = KINDS,
) -> None:
    """Make `strikes` of each kind, one in `steps_between` steps.

    A worker takes `subset` seconds for a subset.
    """
    tasks = [(kind, method) for kind in kinds for method in methods]
    rows = []
    for kind, method in with_progress(tasks, "training"):
        setting = Setting(kind, workers, 1.0, steps_between * (strikes + 1), (method,))
        with Cluster(workers, patience=_PATIENCE) as cluster:
            striker = _Striker(np.random.default_rng(seed), kind, subset, steps_between)
            training = trained(cluster, seed, setting, method, subset, striker)
        rows.append(_row(kind, method, np.asarray(training.seconds), steps_between))
    print_table(
        f"Steps with a strike and after it, in medians of a step; {workers} workers, "
        f"{strikes} strikes",
        (
            "worker",
            "scheme",
            "median, s",
            "struck step",
            "longest",
            "next step",
            "longest",
        ),
        [
            (
                row["worker"],
                row["scheme"],
                *(number(value, 3) for value in list(row.values())[2:]),
            )
            for row in rows
        ],
    )
    save(out, {"struck": rows})


def _row(kind: str, method: str, seconds: np.ndarray, period: int) -> dict[str, Any]:
    median = float(np.median(seconds[1:period]))
    struck, following = (
        seconds[period + offset :: period] / median for offset in (0, 1)
    )
    return {
        "worker": kind,
        "scheme": method,
        "median_seconds": median,
        "struck": float(struck.mean()),
        "struck_longest": float(struck.max()),
        "next": float(following.mean()),
        "next_longest": float(following.max()),
    }


class _Striker:
    """Strike one worker after the other before some steps, a part of a step later."""

    def __init__(
        self, rng: np.random.Generator, kind: str, subset: float, period: int
    ) -> None:
        self._rng = rng
        self._kind = kind
        self._subset = subset
        self._period = period

    def __call__(self, step: int, cluster: Cluster) -> None:
        if step and step % self._period == 0:
            after = self._rng.uniform(0.1, 0.9) * self._subset
            threading.Timer(
                after, self._strike, [cluster, step // self._period]
            ).start()

    def _strike(self, cluster: Cluster, worker: int) -> None:
        is_killed = self._kind == "killed"
        signal_workers(
            cluster, [worker], signal.SIGKILL if is_killed else signal.SIGSTOP
        )
        if self._kind.startswith("frozen for"):
            time.sleep(3 * self._subset)
            signal_workers(cluster, [worker], signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(run_command(run))
