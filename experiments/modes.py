"""Measure costs and savings of a loop in which a step is shared only if it saves time.

Processes sleep for their chunks, as in `experiments.own_loop`. Either workers are
equal, with chunks of 50 to 5 ms, or of 20 ms of which a third does not depend on the
size. Or each worker takes five times as long in one of seven steps.

Three loops alternate, round by round: without a coordinator, with a coordinator that
decides for each step, and with a coordinator that shares every step. A row has the
medians over the rounds. The study takes a quarter of an hour. Run nothing else at the
same time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bcgc_jax.balancing.placement import Placement
from experiments.own_loop import Setting, measured
from experiments.own_loop_worker import CHUNKS
from experiments.report import print_table, run_command, save, with_progress

ROUNDS = 3
STEPS = 60


class Case(NamedTuple):
    """Workers whose whole chunks take `chunk` seconds, in so many steps.

    `fixed` is the share of a chunk that does not depend on its size. `target` is the
    ratio at most: to uncoded steps, or where workers are slow to steps that are all
    shared.
    """

    law: str
    chunk: float
    fixed: float
    steps: int
    target: float


CASES = (
    Case("equal", 0.05, 0.0, STEPS, 1.005),
    Case("equal", 0.02, 0.0, STEPS, 1.01),
    Case("equal", 0.005, 0.0, STEPS, 1.03),
    Case("equal", 0.02, 1 / 3, STEPS, 1.01),
    Case("one in seven", 0.02, 0.0, STEPS, 1.15),
    Case("one in seven", 0.02, 0.0, 200, 1.03),
)


class Row(NamedTuple):
    """Seconds of a training, the median of rounds, and the ratio with its target."""

    workers: str
    chunk: float
    fixed: float
    steps: int
    uncoded: float
    adapting: float
    sharing: float
    ratio: float
    target: float


def row(case: Case, workers: int, rounds: int, seed: int) -> Row:
    setting = Setting(case.law, workers, CHUNKS * case.chunk, case.fixed)
    place = Placement(workers, 2, CHUNKS)
    took: dict[str, list[float]] = {"uncoded": [], "adapting": [], "sharing": []}
    for number in range(rounds):
        steps = seed + number, case.steps
        took["uncoded"].append(measured(setting, *steps, None).sum())
        took["adapting"].append(measured(setting, *steps, place, adapt=True).sum())
        took["sharing"].append(measured(setting, *steps, place).sum())
    seconds = {
        name: float(median(rounds_of_mode)) for name, rounds_of_mode in took.items()
    }
    against = "sharing"
    if case.law == "equal":
        against = "uncoded"
    ratios = [a / b for a, b in zip(took["adapting"], took[against], strict=True)]
    ratio = float(median(ratios))
    return Row(
        case.law,
        case.chunk,
        case.fixed,
        case.steps,
        **seconds,
        ratio=ratio,
        target=case.target,
    )


def run(
    out: Path,
    seed: int = 0,
    *,
    cases: Sequence[Case] = CASES,
    workers: int = 6,
    rounds: int = ROUNDS,
) -> None:
    rows = [row(case, workers, rounds, seed) for case in with_progress(cases, "cases")]
    print_table(
        f"Seconds of a training of {workers} processes, medians of {rounds}",
        [
            "workers",
            "chunk, ms",
            "fixed",
            "steps",
            "uncoded",
            "adapting",
            "sharing",
            "ratio",
        ],
        [
            [
                *(
                    result.workers,
                    f"{1e3 * result.chunk:g}",
                    f"{result.fixed:.2f}",
                    result.steps,
                ),
                *(
                    f"{x:.2f}"
                    for x in (result.uncoded, result.adapting, result.sharing)
                ),
                f"{result.ratio:.3f} (at most {result.target:g})",
            ]
            for result in rows
        ],
    )
    print(
        "\nratio: of adapting against uncoded where workers are equal, else against "
        "sharing."
    )
    save(out, {"modes": rows}, {})


if __name__ == "__main__":
    sys.exit(run_command(run))
