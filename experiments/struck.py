"""A worker is killed or frozen in the middle of a step: what that step takes, and the next one.

Six equal workers, whose layers sleep in proportion to their samples, train by each scheme. In every tenth
step, after a random share of it, one worker is struck. Steps are given in units of the median of those
before the first strike. Five minutes; nothing else should run beside it.
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
from experiments.report import each, number, print_table, run_command, save

METHODS = ("uncoded", "nested:2", "sharing:2:8")
KINDS = ("killed", "frozen", "frozen for 3 steps")
_EVERY, _SUBSET = 10, 0.29


def run(
    out: Path,
    seed: int = 0,
    *,
    workers: int = 6,
    strikes: int = 4,
    subset: float = _SUBSET,
    methods: Sequence[str] = METHODS,
    kinds: Sequence[str] = KINDS,
) -> None:
    """So many `strikes` of each kind, with a subset of so many seconds."""
    tasks = [(kind, method) for kind in kinds for method in methods]
    rows = []
    for kind, method in each(tasks, "training"):
        setting = Setting(kind, workers, 1.0, _EVERY * (strikes + 1), (method,))
        with Cluster(workers) as cluster:
            striker = _Striker(np.random.default_rng(seed), kind, subset)
            found = trained(cluster, seed, setting, method, subset, striker)
        rows.append(_row(kind, method, np.asarray(found.seconds)))
    print_table(
        f"Steps with a strike and after it, in medians of a step; {workers} workers, {strikes} strikes",
        ("worker", "scheme", "median, s", "struck step", "longest", "next step", "longest"),
        [
            (row["worker"], row["scheme"], *(number(value, 3) for value in list(row.values())[2:]))
            for row in rows
        ],
    )
    save(out, {"struck": rows})


def _row(kind: str, method: str, seconds: np.ndarray) -> dict[str, Any]:
    median = float(np.median(seconds[1:_EVERY]))
    struck, following = (seconds[_EVERY + more :: _EVERY] / median for more in (0, 1))
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
    """Called before each step: in every tenth one, some time later, it strikes one worker after the other."""

    def __init__(self, rng: np.random.Generator, kind: str, subset: float) -> None:
        self._rng, self._kind, self._subset = rng, kind, subset

    def __call__(self, step: int, cluster: Cluster) -> None:
        if step and step % _EVERY == 0:
            after = self._rng.uniform(0.1, 0.9) * self._subset
            threading.Timer(after, self._strike, [cluster, step // _EVERY]).start()

    def _strike(self, cluster: Cluster, worker: int) -> None:
        is_killed = self._kind == "killed"
        signal_workers(cluster, [worker], signal.SIGKILL if is_killed else signal.SIGSTOP)
        if self._kind.startswith("frozen for"):
            time.sleep(3 * self._subset)
            signal_workers(cluster, [worker], signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(run_command(run))
