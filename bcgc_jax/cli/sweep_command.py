"""What `bcgc sweep` is asked; `bcgc_jax.cli.sweep` answers."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import (
    AT_MOST,
    WORKERS,
    Axis,
    NamedAxis,
    Number,
    NumberOrDistribution,
    OpenCycleTime,
    law_help,
    method_help,
    refuse_without_effect,
)
from bcgc_jax.cli.names import OBJECTIVES, SWEPT
from bcgc_jax.cli.options import answered_by, option, options_of
from bcgc_jax.cli.output_paths import check_file
from bcgc_jax.cli.question import (
    CHAIN_CYCLES_HELP,
    NO_DEADLINE,
    OVERLAP_HELP,
    SEND_TIME_HELP,
    START_UP,
    START_UP_HELP,
    Planning,
    objective_option,
    round_trip_option,
)

if TYPE_CHECKING:
    import numpy as np


_WHOLE, _POSITIVE = Axis(Number(1, include=True, whole=True)), Axis(Number())
_FROM_ZERO = Axis(Number(include=True))


@dataclasses.dataclass(frozen=True)
class SweepOptions(Planning):
    """What `bcgc sweep` is asked: its options."""

    workers: "np.ndarray | None" = option(
        Axis(WORKERS), f"N, {AT_MOST}: an axis; by default the workers of the trace."
    )
    coordinates: "np.ndarray" = option(_WHOLE, "L, the gradient's length: an axis.", required=True)
    samples: "np.ndarray" = option(_POSITIVE, "M, over all workers: an axis.", default=1)
    cycles: "np.ndarray" = option(_POSITIVE, "b, CPU cycles: an axis.", default=1)
    setup_cycles: "np.ndarray | None" = option(_FROM_ZERO, "f, before the first: an axis.")
    start_up: "np.ndarray | tuple[str, dict[str, float]] | None" = option(
        NumberOrDistribution(_FROM_ZERO, OpenCycleTime()), START_UP_HELP
    )
    send_time: "np.ndarray | None" = option(_FROM_ZERO, SEND_TIME_HELP)
    overlap: bool = option(bool, OVERLAP_HELP)
    chain_cycles: "np.ndarray | None" = option(_FROM_ZERO, CHAIN_CYCLES_HELP)
    cycle_time: tuple[str, dict[str, float]] | None = option(
        OpenCycleTime(), "Distribution, NAME:PARAMETER=VALUE,…; an --axis may give more."
    )
    axes: "tuple[tuple[str, np.ndarray], ...]" = option(
        NamedAxis(),
        "A parameter of the law, or start_up.PARAMETER: an axis; repeat it.",
        typed="--axis",
        multiple=True,
    )
    deadline: "np.ndarray | None" = option(_POSITIVE, "Also P(runtime ≤ deadline): an axis.")
    objective: str = objective_option()
    tolerance: float = option(Number(), "Relative gap of `optimal`.", default=1e-7)
    partitions: bool = option(bool, "Also give the partitions, rounded.")
    round_trip: float = round_trip_option()
    out: str | None = option(click.Path(), "Write to FILE.csv or FILE.parquet, chunk by chunk.")
    resume: bool = option(bool, "Go on with --out where an earlier call was cut off.")
    coordinator: str | None = option(str, "HOST:PORT of the first of several processes.")
    processes: int | None = option(Number(1, include=True, whole=True), "How many there are.")
    process: int | None = option(Number(0, include=True, whole=True), "Which one this is, from 0 on.")

    def __post_init__(self) -> None:
        self.check(self.cycle_time, self.start_up_law)
        if self.send_time is None:
            refuse_without_effect("without --send-time", "overlap")
        if self.resume and self.out is None:
            raise click.UsageError("--resume goes on with a file: give it with --out")
        if self.out is not None:
            check_file("--out", self.out, SWEPT)
        if len(dict(self.axes)) < len(self.axes):
            raise click.UsageError("a parameter has two axes: give each --axis once")
        if self.trace.path is not None and not all(name.startswith(START_UP) for name, _ in self.axes):
            raise click.UsageError("the law of a --trace has no parameters: drop --axis")
        if self.deadline is None and (self.for_deadline or "deadline" in self.methods):
            raise click.UsageError(NO_DEADLINE)
        if self.methods and "optimal" not in self.methods:
            refuse_without_effect("without --method optimal", "tolerance")
        several = (self.coordinator, self.processes, self.process)
        if several != (None, None, None) and (None in several or self.out is None):
            raise click.UsageError("several processes need --coordinator, --processes, --process and --out")

    @property
    def start_up_law(self) -> tuple[str, dict[str, float]] | None:
        """Its name, and its parameters that are not left to --axis."""
        return self.start_up if isinstance(self.start_up, tuple) else None

    @property
    def for_deadline(self) -> bool:
        return self.objective == OBJECTIVES[1]


@click.command(
    name="sweep",
    short_help="Solve a grid of problems over the number of workers and any other number.",
    epilog=f"""\b
Examples:
  bcgc sweep --workers 2:50 --coordinates 20000 --samples 50 --cycle-time shifted-exponential:shift=50 \\
             --axis rate=1e-4:1e-1:33:log --method optimal --method single_block --out sweep.parquet
  bcgc sweep --workers 10 --coordinates 40000 --cycle-time shifted-exponential:rate=0.1,shift=1 \\
             --deadline 1e6:8e6:29 --objective completion-probability --format csv
  bcgc sweep --workers 10 --coordinates 2000 --cycle-time gamma:shape=4,rate=4 --start-up exponential \\
             --axis start_up.rate=1e-3,1e-2 --send-time 0,0.1
  bcgc sweep … --out sweep.csv --resume       goes on where it was cut off

An axis: 3, or 1,2,5, or LOW:HIGH:COUNT in equal steps, LOW:HIGH:COUNT:log in equal ratios; of whole
numbers also LOW:HIGH, all of them.

Several processes share the work and write one file, each started with the same command and
  --coordinator HOST:PORT --processes K --process 0 … K-1

Laws: {law_help()}

Methods: {method_help()}""",
)
@options_of(SweepOptions)
@answered_by("sweep")
def sweep_command(**_: Any) -> None:
    """Solve all combinations of the axes, each with its certificate.

    Without --out the rows are printed; with it they go to the file as they come, and a summary is printed.
    A cell that cannot be solved has its status and stops no other.
    """
