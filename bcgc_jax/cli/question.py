"""What `bcgc solve`, `sweep` and `train` are asked alike."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import SEED, Argument, Number, refuse_without_effect
from bcgc_jax.cli.names import OBJECTIVES
from bcgc_jax.cli.options import format_option, group, option
from bcgc_jax.cli.trace_options import TraceOptions

if TYPE_CHECKING:
    from bcgc_jax.solvers.schemes import Scheme


class SchemesFile(Argument):
    """Python file with schemes."""

    name = "path"

    def read(self, text: str) -> "list[Scheme]":
        from bcgc_jax.solvers.schemes import load_schemes

        return load_schemes(text)


@dataclasses.dataclass(frozen=True)
class Planning:
    """A trace in place of a law, schemes, and how the answer is printed."""

    trace: TraceOptions = group(TraceOptions)
    methods: tuple[str, ...] = option(
        str,
        "Scheme; repeat it. By default those of the paper and its rivals, in `sweep` optimal alone.",
        typed="--method",
        multiple=True,
    )
    own: "list[Scheme] | None" = option(
        SchemesFile(),
        "Python file with a list SCHEMES of bcgc_jax.Scheme: schemes of your own.",
        typed="--schemes",
    )
    seed: int = option(SEED, "Seed of what is drawn.", default=0)
    output: str = format_option()

    @property
    def schemes(self) -> "list[Scheme]":
        """Those of the user's own."""
        return self.own or []

    def check(self, cycle_time: Any, random_start_up: Any, *, several: bool = False) -> None:
        """UsageError for no law of the cycle time and for two, for a law of start-ups of unlike workers, and
        for options that none of the methods, if some are named, has a use for.
        """
        if bool(cycle_time) == (self.trace.path is not None):
            raise click.UsageError("give the law of the cycle time: either --cycle-time or --trace")
        if random_start_up and (several or self.trace.keep_workers):
            unlike = "several --cycle-time" if several else "--keep-workers"
            raise click.UsageError(
                "--start-up may be a law only where all workers have one law of the cycle time, not with "
                f"{unlike}: give a number"
            )
        if self.methods and not {scheme.name for scheme in self.schemes} & {*self.methods}:
            refuse_without_effect("unless a --method is one of these", "own")
        if not any(name.partition(":")[0] == "sharing" for name in self.methods):
            refuse_without_effect("without a --method sharing:CHUNKS", "round_trip")


def round_trip_option() -> Any:
    text = "What a question of the master takes, in the unit of runtimes: of sharing:CHUNKS."
    return option(Number(include=True), text, default=0.0)


def objective_option() -> Any:
    text = "What is to be best; the second is the method `deadline`, and needs --deadline."
    return option(OBJECTIVES, text, default=OBJECTIVES[0])


NO_DEADLINE = (
    "the most probable plan, --method deadline, --objective completion-probability or --min-completion, "
    "needs a --deadline"
)
