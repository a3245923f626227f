"""What a sweep's programs would take on accelerators that are not here: a prediction, not a measurement.

Operations and bytes are those that the compiler counts in the programs for this machine, in float32: each
array that a fused loop reads or writes counts once, caches do not. A machine then takes at least the larger
of bytes / bandwidth and operations / peak.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import bcgc_jax as bcgc
from bcgc_jax.exact.order_statistics import simulate_max
from experiments.report import number, print_table, run_command, save

PROBLEMS, DRAWS = 4096, 2**20
# Workers: up to 12 the evaluation is written out, without loops whose rounds the compiler counts once.
WRITTEN_OUT, WORKERS = 12, 50


class Machine(NamedTuple):
    """Bytes a second of its memory, float32 operations a second, and how many a transcendental counts."""

    bandwidth: float
    peak: float
    costly: float


# NVIDIA's data sheet of the H100 SXM5: 3.35 TB/s, 66.9 Tflop/s; its special function units do a sixteenth of
# that. Google's of the TPU v5e: 819 GB/s, 197 Tflop/s in bfloat16 by the matrix units; for its vector unit it
# has no figure, and four units of 8 x 128 lanes at 1.5 GHz would be 6.1 Tflop/s: taken here.
MACHINES: Mapping[str, Machine] = {
    "H100": Machine(3.35e12, 66.9e12, 16.0),
    "TPU v5e": Machine(8.19e11, 6.1e12, 16.0),
}


class Row(NamedTuple):
    """`repeated`: how often what the compiler counts is run, of programs that are a loop."""

    program: str
    repeated: int
    operations: float
    transcendentals: float
    moved: float
    seconds: dict[str, float]


def counted(program: str, function: Callable[..., Any], *arguments: Any, repeated: int | None = None) -> Row:
    """What the compiler counts; ValueError where a loop, whose rounds it counts once, is not `repeated`."""
    compiled = jax.jit(function).lower(*arguments).compile()
    if repeated is None and re.search(r"\bwhile\(", compiled.as_text() or ""):
        raise ValueError(f"{program} has a loop, of which the compiler counts one round")
    found = compiled.cost_analysis()
    costs = found[0] if isinstance(found, list) else found
    assert costs is not None
    rounds = repeated or 1
    operations, costly, moved = (
        rounds * float(costs.get(name, 0.0)) for name in ("flops", "transcendentals", "bytes accessed")
    )
    seconds = {
        name: max(moved / machine.bandwidth, (operations + machine.costly * costly) / machine.peak)
        for name, machine in MACHINES.items()
    }
    return Row(program, rounds, operations, costly, moved, seconds)


def _problem(workers: int, rate: Any) -> bcgc.Problem:
    return bcgc.Problem(bcgc.ShiftedExponential(rate, 50.0), workers, 20_000, 50.0)


def _certified(rate: Array, partition: Array) -> Any:
    return bcgc.certificate(_problem(WRITTEN_OUT, rate), partition)[:3]


def _planned(rate: Array) -> Any:
    return bcgc.solve(_problem(WORKERS, rate), "time").partition


def _drawn(key: Array) -> Array:
    law, load = bcgc.ShiftedExponential(1e-3, 50.0), jnp.arange(1.0, WORKERS + 1)
    return simulate_max(key, law, load, WORKERS, DRAWS)


def rows() -> list[Row]:
    """All programs, in float32."""
    with jax.enable_x64(False):
        rates = jnp.geomspace(1e-4, 1e-1, PROBLEMS)
        even = jnp.full((PROBLEMS, WRITTEN_OUT), 20_000 / WRITTEN_OUT)
        return [
            counted(
                f"value, slope and bound of {PROBLEMS} plans, N = {WRITTEN_OUT}",
                jax.vmap(_certified),
                rates,
                even,
            ),
            counted(f"x^(t) of {PROBLEMS} problems, N = {WORKERS}", jax.vmap(_planned), rates),
            # Its loop takes two levels a round.
            counted(
                f"{DRAWS} draws of a runtime, N = {WORKERS}", _drawn, jax.random.key(0), repeated=WORKERS // 2
            ),
        ]


def run(out: Path) -> None:
    found = rows()
    print_table(
        "What accelerators would take at least, predicted from the compiler's counts; milliseconds",
        ["program", "Gflop", "GB", "flop / byte", *MACHINES],
        [
            [
                row.program,
                number(row.operations / 1e9, 3),
                number(row.moved / 1e9, 3),
                number(row.operations / row.moved, 2),
                *(number(1e3 * seconds, 3) for seconds in row.seconds.values()),
            ]
            for row in found
        ],
    )
    save(out, {"roofline": map(_flat, found)})


def _flat(row: Row) -> dict[str, Any]:
    counts = row._asdict()
    seconds = counts.pop("seconds")
    return counts | seconds


if __name__ == "__main__":
    sys.exit(run_command(run))
