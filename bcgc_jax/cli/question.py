"""What commands are asked alike: a trace in place of a law, methods, start-up and link; without JAX."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import (
    SEED,
    Argument,
    CycleTime,
    Number,
    NumberOrDistribution,
    refuse_without_effect,
)
from bcgc_jax.cli.names import LAYOUTS, OBJECTIVES, TRACE_LAWS
from bcgc_jax.cli.options import format_option, group, option

if TYPE_CHECKING:
    from bcgc_jax.distributions import Distribution
    from bcgc_jax.solvers.methods import Method
    from bcgc_jax.solvers.schemes import Scheme

# Before the names of the parameters of a start-up's law, where they are columns.
START_UP = "start_up."

START_UP_HELP = (
    "S, before a worker's first cycle, in the unit of runtimes: a number, or a law as for --cycle-time."
)
SEND_TIME_HELP = "c, of a worker's link, for one coordinate."
OVERLAP_HELP = "The link sends while the worker computes."
CHAIN_CYCLES_HELP = "h, cycles per sample, subset and coordinate that a cotangent is carried past."
NO_DEADLINE = (
    "the most probable plan, --method deadline, --objective completion-probability or --min-completion, "
    "needs a --deadline"
)
_NUMBER = Number(include=True)


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Start-up, link and chain of one problem, whose workers do not only compute."""

    start_up: "Distribution | float | None" = option(
        NumberOrDistribution(_NUMBER, CycleTime()), START_UP_HELP
    )
    send_time: float | None = option(_NUMBER, SEND_TIME_HELP)
    overlap: bool = option(bool, OVERLAP_HELP)
    chain_cycles: float | None = option(_NUMBER, CHAIN_CYCLES_HELP)

    def __post_init__(self) -> None:
        if self.send_time is None:
            refuse_without_effect("without --send-time", "overlap")

    @property
    def random(self) -> bool:
        """Whether the start-ups have a law."""
        return not isinstance(self.start_up, float | None)

    def keywords(self) -> dict[str, Any]:
        """Those of `Problem` that were given."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the file of a trace is laid out: keywords of `load_trace`."""

    step: str = option(str, "Column of the step.", typed="--step-column", default="step")
    worker: str = option(str, "Column of the worker.", typed="--worker-column", default="worker")
    seconds: str = option(str, "Column of the times.", typed="--seconds-column", default="seconds")
    censored: str | None = option(
        str, "Column of 0 or 1: the worker was cut off, the time a lower bound.", typed="--censored-column"
    )
    load: str | None = option(
        str,
        "Column of what a worker had done by then, in cycles; `load` where there is one.",
        typed="--load-column",
    )
    layout: str = option(
        LAYOUTS,
        "A row for each step and worker (long), or a column for each worker (wide).",
        default=LAYOUTS[0],
    )

    def __post_init__(self) -> None:
        if self.layout == "wide":
            refuse_without_effect("in the wide layout", "worker", "seconds", "load")


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """A trace in place of a law."""

    path: str | None = option(
        click.Path(allow_dash=True),
        "CSV (also .csv.gz) or Parquet of measured times, in place of a law; - is standard input.",
        typed="--trace",
    )
    kind: str = option(
        TRACE_LAWS,
        "Each measured time an atom, or a smooth law, perhaps with a Pareto tail fitted to it; auto: atoms "
        "where that is quick, else a smooth law as near to them as the trace can tell.",
        typed="--trace-law",
        default=TRACE_LAWS[0],
    )
    columns: Layout = group(Layout)
    keep_workers: bool = option(bool, "Keep the steps of the trace whole: its workers are not alike.")

    def __post_init__(self) -> None:
        if self.path is None:
            layout = [field.name for field in dataclasses.fields(Layout)]
            refuse_without_effect("without --trace", "keep_workers", "kind", *layout)
        if self.keep_workers:
            refuse_without_effect("with --keep-workers, for which steps are whole", "kind")


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

    def asked(self, *names: str, **options: Any) -> "dict[str, Method]":
        """Methods by their names, each with those of the options that it has."""
        from bcgc_jax.solvers.methods import method_of

        found = {}
        for method in (method_of(name, self.schemes) for name in names):
            known = {name: value for name, value in options.items() if hasattr(method, name)}
            found[method.name] = dataclasses.replace(method, **known) if known else method  # type: ignore[type-var]
        return found

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
