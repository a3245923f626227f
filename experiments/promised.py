"""Compare the savings that `bcgc advise` predicts from a log with measured savings.

Processes sleep for their chunks without interruption, and record a log without sharing.
Then `bcgc advise` reads the log, and the same steps run again with work sharing.
Savings are relative to the measured steps without sharing. The study takes ten minutes.
Run nothing else at the same time.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bcgc_jax.balancing.placement import Placement
from bcgc_jax.diagnosis.advice import Advice, advise
from bcgc_jax.traces import load_trace
from experiments.own_loop import Setting, measured
from experiments.own_loop_worker import CHUNKS
from experiments.report import print_table, run_command, save, with_progress


class Case(NamedTuple):
    """Workers, whether they know chunks' lengths, and the schemes that are run."""

    setting: Setting
    knows_lengths: bool
    remedies: tuple[str, ...]


_WITH_LENGTHS = ("sharing:2", "sharing:2, lengths", "sharing:3, lengths")
CASES = (
    Case(Setting("heavy tails", 6, 8 * 0.06), True, _WITH_LENGTHS),
    Case(Setting("exponential", 6, 8 * 0.06), False, ("sharing:2", "sharing:3")),
    Case(Setting("exponential", 6, 8 * 0.001), False, ("sharing:2", "sharing:all")),
    Case(Setting("exponential", 32, 8 * 0.02), False, ("sharing:2", "sharing:all")),
)


def run(
    out: Path, seed: int = 0, *, cases: Sequence[Case] = CASES, steps: int = 40
) -> None:
    rows: list[dict[str, Any]] = []
    for case in with_progress(cases, "settings"):
        rows += _rows(case, seed, steps)
    print_table(
        (
            f"Saved of the step without sharing, %; {steps} steps of processes on this "
            "machine"
        ),
        ["workers", "N", "chunk (ms)", "scheme", "promised", "measured", "less"],
        [
            [row["law"], row["workers"], f"{1e3 * row['chunk']:.3g}", row["remedy"]]
            + [f"{100 * row[name]:.1f}" for name in ("promised", "measured", "less")]
            for row in rows
        ],
    )
    save(out, {"promised": rows})


def _rows(case: Case, seed: int, steps: int) -> list[dict[str, Any]]:
    setting = case.setting
    uncoded = measured(setting, seed, steps, None).mean()
    advice = _advice(case, seed, steps)
    rows = []
    for remedy in case.remedies:
        place = placement_of(advice, remedy)
        sends = place.load_line is not None
        seconds = measured(setting, seed, steps, place, sends_lengths=sends).mean()
        promised = advice.row(remedy).saved.value
        saved = float(1 - seconds / uncoded)
        rows.append(
            {
                "law": setting.law,
                "workers": setting.workers,
                "chunk": setting.subset / CHUNKS,
                "remedy": remedy,
                "advised": advice.advised == remedy,
                "promised": promised,
                "measured": saved,
                "less": promised - saved,
            }
        )
    return rows


def _advice(case: Case, seed: int, steps: int) -> Advice:
    """Ask a log that the workers record without sharing."""
    setting = case.setting
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "chunks.csv"
        alone = Placement(setting.workers, 1, CHUNKS)
        measured(
            setting, seed, steps, alone, sends_lengths=case.knows_lengths, record=record
        )
        return advise(load_trace(record))


def placement_of(advice: Advice, remedy: str) -> Placement:
    """The placement of a row of work sharing, as `bcgc advise --out` writes it."""
    row = advice.row(remedy)
    return Placement(
        num_workers=advice.num_workers,
        max_subsets=row.stored_subsets,
        chunks=advice.num_chunks,
        equal_chunks=row.equal_chunks,
        load_line=advice.load_line if row.scheme.by_length else None,
    )


if __name__ == "__main__":
    sys.exit(run_command(run))
