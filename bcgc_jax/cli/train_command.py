"""The options of `bcgc train`; `bcgc_jax.cli.train` answers."""

from typing import Any

import click

from bcgc_jax.cli.arguments import (
    SEED,
    CycleTime,
    Number,
    answered_by,
    format_option,
    law_help,
    schemes_option,
)
from bcgc_jax.cli.deliveries import delivery_options
from bcgc_jax.cli.names import ENGINES, MODELS, MOST_IMAGES, UNITS
from bcgc_jax.cli.trace_options import trace_options


@click.command(
    name="train",
    short_help="Train on handwritten digits: loss against simulated time, scheme against scheme.",
    epilog=f"""\b
Examples:
  bcgc train --workers 20 --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc train --workers 10 --model perceptron --method optimal --method uncoded \\
             --cycle-time pareto:scale=1,shape=2.5 --curves curves.csv
  bcgc train --trace steps.csv --units layers --setup-cycles 500 --format json
  bcgc train --engine ray --workers 8 --steps 50 --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc train --engine ray … --checkpoints state --resume      goes on where it was cut off

Laws: {law_help()}""",
)
@click.option(
    "--workers",
    type=Number(1, MOST_IMAGES, include=True, whole=True),
    help=f"N, at most {MOST_IMAGES:,}; with --trace that of the trace.",
)
@click.option("--cycle-time", type=CycleTime(), help="Law of a worker's cycle time, NAME:PARAMETER=VALUE,…")
@trace_options(", replayed step by step.")
@click.option("--model", type=click.Choice(MODELS), default="softmax", show_default=True)
@click.option("--method", "methods", multiple=True, help="Scheme of `solve` to train with; repeat it.")
@click.option(
    "--units",
    type=click.Choice(UNITS),
    default=UNITS[0],
    show_default=True,
    help="What a block is made of.",
)
@click.option(
    "--cycles", type=Number(), default=1, show_default=True, help="b, cycles per coordinate, sample."
)
@click.option("--setup-cycles", type=Number(include=True), help="f, cycles per sample and subset at first.")
@delivery_options
@click.option("--steps", type=Number(1, include=True, whole=True), default=200, show_default=True)
@click.option("--seeds", type=Number(1, include=True, whole=True), help="Runs of each scheme; 8, with ray 1.")
@click.option("--learning-rate", type=Number(), default=0.5, show_default=True)
@click.option(
    "--batch-size", type=Number(1, include=True, whole=True), help="Samples of each subset per step; all."
)
@click.option("--target", type=Number(), default=0.9, show_default=True, help="Test accuracy to be reached.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the seeds.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=ENGINES[0],
    show_default=True,
    help="A simulated clock, or worker processes and the wall clock.",
)
@click.option(
    "--pace",
    type=Number(include=True),
    default=0.2,
    show_default=True,
    help="With ray: seconds that the fastest scheme's expected iteration takes, its workers slowed on "
    "purpose; 0 for workers as they are.",
)
@click.option("--address", help="With ray: a running cluster to join; by default one on this machine.")
@click.option("--checkpoints", type=click.Path(), help="With ray: keep states and logs in this folder.")
@click.option("--resume", is_flag=True, help="Go on with --checkpoints where an earlier call was cut off.")
@click.option("--curves", type=click.Path(), help="Also write every iteration to this CSV file.")
@schemes_option
@format_option
@answered_by("train")
def train_command(**options: Any) -> None:
    """Train a model on handwritten digits with N workers, under several schemes.

    All schemes take the same steps; what differs is the time they take: on a simulated clock, in the unit of
    the cycle time, or with --engine ray on N processes, in seconds. A trace is replayed step by step, and
    planned for as its law, --trace-law or --keep-workers, says.
    """
