"""The options of `bcgc fit`; `bcgc_jax.cli.fit` answers."""

from typing import Any

import click

from bcgc_jax.cli.arguments import (
    AT_MOST,
    SEED,
    WORKERS,
    Number,
    answered_by,
    format_option,
    plan_option,
)
from bcgc_jax.cli.names import FITTED_LAWS
from bcgc_jax.cli.trace_options import layout_options


@click.command(
    name="fit",
    short_help="Which law describes a trace, and what plan follows.",
    epilog="""\b
Examples:
  bcgc fit steps.csv
  bcgc fit steps.csv --law gamma --law lognormal
  bcgc fit log.parquet --worker-column rank --seconds-column time_s --coordinates 1e6 --format json
  bcgc fit cut.csv --censored-column cut
  bcgc fit loads.csv --load-column samples
  ssh NODE cat steps.csv | bcgc fit -""",
)
@click.argument("file", type=click.Path(allow_dash=True))
@layout_options
@click.option(
    "--law",
    "laws",
    multiple=True,
    type=click.Choice(FITTED_LAWS),
    help="Law to fit; repeat it; all by default, or with a column of loads none.",
)
@click.option("--workers", type=WORKERS, help=f"N of the plans, {AT_MOST}; those of the trace.")
@click.option(
    "--coordinates",
    type=Number(1, include=True, whole=True),
    default=1_000_000,
    show_default=True,
    help="L of the plans.",
)
@click.option("--samples", type=Number(), default=1, show_default=True, help="M, samples over all workers.")
@click.option(
    "--cycles",
    type=Number(),
    help="b, CPU cycles per coordinate and sample: 1, or with a column of loads as many as make the work of "
    "a worker without redundancy the mean load.",
)
@click.option(
    "--replicates",
    type=Number(20, include=True, whole=True),
    default=200,
    show_default=True,
    help="Samples behind each standard error and p-value of a law.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of these samples.")
@plan_option("the plan for the best law")
@format_option
@answered_by("fit")
def fit_command(**options: Any) -> None:
    """Which law describes the cycle times in FILE, how sure is that, and how much does the plan depend on it?

    FILE is CSV (also .csv.gz) or Parquet, - is standard input: a row for each step and worker, or a row for
    each step and a column for each worker, in seconds. Parameters and runtimes are in seconds, or in whatever
    unit the file has. With a column of loads, in cycles, the time before the first cycle is told apart.
    """
