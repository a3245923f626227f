"""The options of `bcgc sweep`; `bcgc_jax.cli.sweep` answers."""

from typing import Any

import click

from bcgc_jax.cli.arguments import (
    AT_MOST,
    SEED,
    WORKERS,
    Axis,
    NamedAxis,
    Number,
    OpenCycleTime,
    answered_by,
    format_option,
    law_help,
    method_help,
    objective_option,
    round_trip_option,
    schemes_option,
)
from bcgc_jax.cli.deliveries import delivery_axes
from bcgc_jax.cli.trace_options import trace_options

_WHOLE, _POSITIVE = Axis(Number(1, include=True, whole=True)), Axis(Number())


@click.command(
    name="sweep",
    short_help="Solve a grid of problems over the number of workers and any other number.",
    epilog=f"""\b
Examples:
  bcgc sweep --workers 2:50 --coordinates 20000 --samples 50 --cycle-time shifted-exponential:shift=50 \\
             --axis rate=1e-4:1e-1:33:log --method optimal --method single_block --out sweep.parquet
  bcgc sweep --workers 4,8,16 --coordinates 1e6 --cycle-time weibull:scale=1,shift=0.1 \\
             --axis concentration=0.5,1,2
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
@click.option(
    "--workers", type=Axis(WORKERS), help=f"N, {AT_MOST}: an axis; by default the workers of the trace."
)
@click.option("--coordinates", type=_WHOLE, required=True, help="L, the gradient's length: an axis.")
@click.option("--samples", type=_POSITIVE, default=1, show_default=True, help="M, over all workers: an axis.")
@click.option("--cycles", type=_POSITIVE, default=1, show_default=True, help="b, CPU cycles: an axis.")
@click.option("--setup-cycles", type=Axis(Number(include=True)), help="f, before the first: an axis.")
@delivery_axes
@click.option(
    "--cycle-time", type=OpenCycleTime(), help="Law, NAME:PARAMETER=VALUE,…; an --axis may give more."
)
@trace_options(": the law.")
@click.option(
    "--axis",
    "axes",
    type=NamedAxis(),
    multiple=True,
    help="A parameter of the law, or start_up.PARAMETER: an axis; repeat it.",
)
@click.option("--deadline", type=_POSITIVE, help="Also P(runtime ≤ deadline): an axis.")
@objective_option
@click.option(
    "--method", "methods", multiple=True, help="Scheme to solve for; repeat it; optimal by default."
)
@click.option(
    "--tolerance", type=Number(), default=1e-7, show_default=True, help="Relative gap of `optimal`."
)
@click.option("--partitions", is_flag=True, help="Also give the partitions, rounded.")
@round_trip_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of methods that draw.")
@click.option("--out", type=click.Path(), help="Write to FILE.csv or FILE.parquet, chunk by chunk.")
@click.option("--resume", is_flag=True, help="Go on with --out where an earlier call was cut off.")
@click.option("--coordinator", help="HOST:PORT of the first of several processes.")
@click.option("--processes", type=Number(1, include=True, whole=True), help="How many there are.")
@click.option("--process", type=Number(0, include=True, whole=True), help="Which one this is, from 0 on.")
@schemes_option
@format_option
@answered_by("sweep")
def sweep_command(**options: Any) -> None:
    """Solve all combinations of the axes, each with its certificate.

    Without --out the rows are printed; with it they go to the file as they come, and a summary is printed.
    A cell that cannot be solved has its status and stops no other.
    """
