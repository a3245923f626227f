"""What `bcgc fit` is asked; `bcgc_jax.cli.fit` answers."""

import dataclasses
from typing import Any

import click

from bcgc_jax.cli.arguments import AT_MOST, SEED, WORKERS, Number
from bcgc_jax.cli.names import FITTED_LAWS, TRACE_LAWS
from bcgc_jax.cli.options import answered_by, argument, format_option, group, option, options_of, plan_option
from bcgc_jax.cli.output_paths import check_file
from bcgc_jax.cli.question import Layout, TraceOptions


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """What `bcgc fit` is asked: its options."""

    file: str = argument(click.Path(allow_dash=True))
    layout: Layout = group(Layout)
    laws: tuple[str, ...] = option(
        FITTED_LAWS,
        "Distribution to fit; repeat it; all by default, or with a column of loads none.",
        typed="--law",
        multiple=True,
    )
    workers: int | None = option(WORKERS, f"N of the plans, {AT_MOST}; those of the trace.")
    coordinates: int = option(Number(1, include=True, whole=True), "L of the plans.", default=1_000_000)
    samples: float = option(Number(), "M, samples over all workers.", default=1)
    cycles: float | None = option(
        Number(),
        "b, CPU cycles per coordinate and sample: 1, or with a column of loads as many as make the work of a "
        "worker without redundancy the mean load.",
    )
    replicates: int = option(
        Number(20, include=True, whole=True),
        "Samples behind each standard error and p-value of a law.",
        default=200,
    )
    seed: int = option(SEED, "Seed of these samples.", default=0)
    out: str | None = plan_option("the plan for the best law")
    output: str = format_option()

    def __post_init__(self) -> None:
        if self.out is not None:
            check_file("--out", self.out)

    @property
    def trace(self) -> TraceOptions:
        return TraceOptions(self.file, TRACE_LAWS[0], self.layout, keep_workers=False)


@click.command(
    name="fit",
    short_help="Which law describes a trace, and what plan follows.",
    epilog="""\b
Examples:
  bcgc fit steps.csv
  bcgc fit steps.csv --law gamma --law lognormal
  bcgc fit log.parquet --worker-column rank --seconds-column time_s --coordinates 1e6 --format json
  bcgc fit loads.csv --load-column samples
  ssh NODE cat steps.csv | bcgc fit -""",
)
@options_of(FitOptions)
@answered_by("fit")
def fit_command(**_: Any) -> None:
    """Which law describes the cycle times in FILE, how sure is that, and how much does the plan depend on it?

    FILE is CSV (also .csv.gz) or Parquet, - is standard input: a row for each step and worker, or a row for
    each step and a column for each worker, in seconds. Parameters and runtimes are in seconds, or in whatever
    unit the file has. With a column of loads, in cycles, the time before the first cycle is told apart.
    """
