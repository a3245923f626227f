"""The options of `bcgc solve`; `bcgc_jax.cli.solve` answers."""

from typing import Any

import click

from bcgc_jax.cli.arguments import (
    AT_MOST,
    SEED,
    WORKERS,
    Levels,
    Number,
    WorkersCycleTime,
    answered_by,
    format_option,
    law_help,
    method_help,
    objective_option,
    plan_option,
    round_trip_option,
    schemes_option,
)
from bcgc_jax.cli.deliveries import delivery_options
from bcgc_jax.cli.trace_options import trace_options


@click.command(
    name="solve",
    short_help="Plan the blocks and compare with every known scheme.",
    epilog=f"""\b
Examples:
  bcgc solve --workers 20 --coordinates 20000 --samples 50 \\
             --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc solve --trace steps.csv --coordinates 1e6 --format json
  bcgc solve --trace steps.csv --keep-workers --coordinates 1e6
  bcgc solve --coordinates 1e6 --cycle-time '6*weibull:scale=1,concentration=2,shift=1' \\
             --cycle-time '2*shifted-exponential:rate=0.2,shift=2' --out plan.json
  bcgc solve --workers 8 --coordinates 1e6 --cycle-time pareto:scale=1,shape=2.5 \\
             --method subgradient --method tandon:3 --deadline 2e6
  bcgc solve --workers 20 --coordinates 40000 --samples 50 --objective completion-probability \\
             --deadline 3.16e6 --cycle-time shifted-exponential:rate=0.1,shift=1
  bcgc solve --workers 12 --unit-costs layers.txt --setup-cycles 2e5 --levels 0,1,2,3,5,11 \\
             --cycle-time weibull:scale=1,concentration=0.8,shift=0.5
  bcgc solve --workers 20 --coordinates 20000 --cycle-time gamma:shape=4,rate=4 \\
             --start-up weibull:scale=4000,concentration=0.7 --send-time 0.02 --chain-cycles 0.1

Laws: {law_help()}

Methods: {method_help()}""",
)
@click.option(
    "--workers",
    type=WORKERS,
    help=f"N, {AT_MOST}; by default those of the trace, or of COUNT* laws.",
)
@click.option("--coordinates", type=Number(1, include=True, whole=True), help="L, the gradient's length.")
@click.option("--samples", type=Number(), default=1, show_default=True, help="M, samples over all workers.")
@click.option(
    "--cycles", type=Number(), default=1, show_default=True, help="b, CPU cycles per coordinate and sample."
)
@click.option(
    "--cycle-time",
    "cycle_times",
    type=WorkersCycleTime(),
    multiple=True,
    help="Law of a worker's cycle time, NAME:PARAMETER=VALUE,…; where workers are not alike, repeat it: one "
    "for each, 'COUNT*NAME:…' for several.",
)
@trace_options(": the law.")
@click.option("--method", "methods", multiple=True, help="Scheme to solve for; repeat it; all by default.")
@click.option("--deadline", type=Number(), help="Also print P(runtime ≤ deadline).")
@click.option(
    "--min-completion",
    type=Number(0, 1),
    help="The fastest plan with P(runtime ≤ deadline) at least this; needs --deadline.",
)
@objective_option
@click.option("--levels", type=Levels(), help="Also the best plan of these levels alone, such as 0,3,7-9.")
@click.option(
    "--setup-cycles", type=Number(include=True), help="f, cycles per sample and subset before the first."
)
@delivery_options
@click.option("--unit-costs", type=click.Path(), help="File, one cost a line: units in place of coordinates.")
@round_trip_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the subgradient method.")
@schemes_option
@plan_option("the best plan")
@format_option
@answered_by("solve")
def solve_command(**options: Any) -> None:
    """Which redundancy should each block of coordinates get, how long does an iteration take, and how
    does that compare with every known scheme?

    The table is followed by the best plan, level: coordinates, and by what it needs. Runtimes carry the unit
    of the cycle time. That of a scheme is exact, not simulated; only for laws of workers that are not alike
    it is a mean of draws.
    """
