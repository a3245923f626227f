"""What `bcgc solve` is asked; `bcgc_jax.cli.solve` answers."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import (
    AT_MOST,
    WORKERS,
    Levels,
    Number,
    WorkersCycleTime,
    law_help,
    method_help,
)
from bcgc_jax.cli.names import OBJECTIVES
from bcgc_jax.cli.options import answered_by, group, option, options_of, plan_option
from bcgc_jax.cli.output_paths import check_file
from bcgc_jax.cli.question import NO_DEADLINE, Delivery, Planning, objective_option, round_trip_option

if TYPE_CHECKING:
    from bcgc_jax.distributions import Distribution


@dataclasses.dataclass(frozen=True)
class SolveOptions(Planning):
    """What `bcgc solve` is asked: its options."""

    workers: int | None = option(WORKERS, f"N, {AT_MOST}; by default those of the trace, or of COUNT* laws.")
    coordinates: int | None = option(Number(1, include=True, whole=True), "L, the gradient's length.")
    samples: float = option(Number(), "M, samples over all workers.", default=1)
    cycles: float = option(Number(), "b, CPU cycles per coordinate and sample.", default=1)
    cycle_times: "tuple[tuple[int | None, Distribution], ...]" = option(
        WorkersCycleTime(),
        "Distribution of a worker's cycle time, NAME:PARAMETER=VALUE,…; if workers differ, repeat it,"
        " one for each, 'COUNT*NAME:…' for several.",
        typed="--cycle-time",
        multiple=True,
    )
    deadline: float | None = option(Number(), "Also print P(runtime ≤ deadline).")
    min_completion: float | None = option(
        Number(0, 1), "The fastest plan with P(runtime ≤ deadline) at least this; needs --deadline."
    )
    objective: str = objective_option()
    levels: tuple[str, tuple[int, ...]] | None = option(
        Levels(), "Also the best plan of these levels alone, such as 0,3,7-9."
    )
    setup_cycles: float | None = option(
        Number(include=True), "f, cycles per sample and subset before the first."
    )
    delivery: Delivery = group(Delivery)
    unit_costs: str | None = option(click.Path(), "File, one cost a line: units in place of coordinates.")
    round_trip: float = round_trip_option()
    out: str | None = plan_option("the best plan")

    def __post_init__(self) -> None:
        self.check(self.cycle_times, self.delivery.random, several=len(self.cycle_times) > 1)
        if (self.coordinates is None) == (self.unit_costs is None):
            raise click.UsageError("give the length of the gradient: either --coordinates or --unit-costs")
        if self.for_deadline and self.deadline is None:
            raise click.UsageError(NO_DEADLINE)
        if self.out is not None:
            check_file("--out", self.out)

    @property
    def for_deadline(self) -> bool:
        named = self.objective == OBJECTIVES[1] or "deadline" in self.methods
        return named or self.min_completion is not None


@click.command(
    name="solve",
    short_help="Plan the blocks and compare with every known scheme.",
    epilog=f"""\b
Examples:
  bcgc solve --workers 20 --coordinates 20000 --samples 50 \\
             --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc solve --trace steps.csv --coordinates 1e6 --format json
  bcgc solve --coordinates 1e6 --cycle-time '6*weibull:scale=1,shape=2,shift=1' \\
             --cycle-time '2*shifted-exponential:rate=0.2,shift=2' --out plan.json
  bcgc solve --workers 20 --coordinates 40000 --samples 50 --objective completion-probability \\
             --deadline 3.16e6 --cycle-time shifted-exponential:rate=0.1,shift=1

Laws: {law_help()}

Methods: {method_help()}""",
)
@options_of(SolveOptions)
@answered_by("solve")
def solve_command(**_: Any) -> None:
    """Which redundancy should each block of coordinates get, how long does an iteration take, and how
    does that compare with every known scheme?

    The table is followed by the best plan, level: coordinates, and by what it needs. Runtimes carry the unit
    of the cycle time. That of a scheme is exact, not simulated; it is a mean of draws only for laws of
    workers that are not alike, and of multi_message, alternating and sharing.
    """
