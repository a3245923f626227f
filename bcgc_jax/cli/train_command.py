"""What `bcgc train` is asked; `bcgc_jax.cli.train` answers."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import CycleTime, Number, law_help, refuse_without_effect
from bcgc_jax.cli.names import ENGINES, MODELS, MOST_IMAGES, UNITS
from bcgc_jax.cli.options import answered_by, group, option, options_of
from bcgc_jax.cli.output_paths import check_file
from bcgc_jax.cli.question import Delivery, Planning

if TYPE_CHECKING:
    from bcgc_jax.distributions import Distribution

_COUNT = Number(1, include=True, whole=True)


@dataclasses.dataclass(frozen=True)
class TrainOptions(Planning):
    """What `bcgc train` is asked: its options."""

    workers: int | None = option(
        Number(1, MOST_IMAGES, include=True, whole=True),
        f"N, at most {MOST_IMAGES:,}; with --trace that of the trace.",
    )
    cycle_time: "Distribution | None" = option(
        CycleTime(), "Distribution of a worker's cycle time, NAME:PARAMETER=VALUE,…"
    )
    model: str = option(MODELS, default=MODELS[0])
    units: str = option(UNITS, "What a block is made of.", default=UNITS[0])
    cycles: float = option(Number(), "b, cycles per coordinate, sample.", default=1)
    setup_cycles: float | None = option(Number(include=True), "f, cycles per sample and subset at first.")
    delivery: Delivery = group(Delivery)
    steps: int = option(_COUNT, default=200)
    seeds: int | None = option(_COUNT, "Runs of each scheme; 8, with ray 1.")
    learning_rate: float = option(Number(), default=0.5)
    batch_size: int | None = option(_COUNT, "Samples of each subset per step; all.")
    target: float = option(Number(0, 1), "Test accuracy to be reached.", default=0.9)
    engine: str = option(
        ENGINES, "A simulated clock, or worker processes and the wall clock.", default=ENGINES[0]
    )
    pace: float = option(
        Number(include=True),
        "With ray: seconds that the fastest scheme's expected iteration takes, its workers slowed on "
        "purpose; 0 for workers as they are.",
        default=0.2,
    )
    address: str | None = option(str, "With ray: a running cluster to join; by default one on this machine.")
    checkpoints: str | None = option(click.Path(), "With ray: keep states and logs in this folder.")
    resume: bool = option(bool, "Go on with --checkpoints where an earlier call was cut off.")
    curves: str | None = option(click.Path(), "Also write every iteration to this CSV file.")

    def __post_init__(self) -> None:
        self.check(self.cycle_time is not None, self.delivery.random)
        if self.simulated:
            refuse_without_effect("without --engine ray", "pace", "address", "checkpoints", "resume")
        self._check_checkpoints()
        if self.curves is not None:
            check_file("--curves", self.curves)
        for name in {"deadline", "limit"} & {*self.methods}:
            raise click.UsageError(f'"{name}" is no scheme to train with')

    def _check_checkpoints(self) -> None:
        if self.checkpoints is None:
            if self.resume:
                raise click.UsageError("--resume goes on with what --checkpoints DIR holds: give that too")
            return
        folder = Path(self.checkpoints)
        if folder.exists() and not folder.is_dir():
            raise click.UsageError(f"--checkpoints: {folder} is no folder")
        filled = folder.is_dir() and any(folder.iterdir())
        if filled and not self.resume:
            raise click.UsageError(
                f"--checkpoints: {folder} holds a training: go on with it (--resume), or name another folder"
            )
        if self.resume and not filled:
            raise click.UsageError(f"--resume: {folder} holds no training to go on with")

    @property
    def simulated(self) -> bool:
        return self.engine == ENGINES[0]

    @property
    def num_seeds(self) -> int:
        return self.seeds or (8 if self.simulated else 1)


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
@options_of(TrainOptions)
@answered_by("train")
def train_command(**_: Any) -> None:
    """Train a model on handwritten digits with N workers, under several schemes.

    All schemes take the same steps; what differs is the time they take: on a simulated clock, in the unit of
    the cycle time, or with --engine ray on N processes, in seconds. A trace is replayed step by step, and
    planned for as its law, --trace-law or --keep-workers, says.
    """
