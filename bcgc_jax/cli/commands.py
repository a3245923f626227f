"""The commands, and what each may be asked. A file of its name answers each, and only that needs JAX."""

import dataclasses
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from bcgc_jax._extras import to_install
from bcgc_jax.cli import names
from bcgc_jax.cli.arguments import (
    COUNT,
    SEED,
    WORKERS,
    Argument,
    Number,
    axis,
    did_you_mean,
    law_help,
    number_or_law,
    read_law,
    read_law_of_workers,
    read_levels,
    read_named_axis,
    read_open_law,
    read_where,
    refuse_without_effect,
)
from bcgc_jax.cli.options import Command, argument, group, option
from bcgc_jax.cli.output_paths import check_file

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.distributions import Distribution
    from bcgc_jax.solvers.methods import Method
    from bcgc_jax.solvers.schemes import Scheme

# Before the names of the parameters of a start-up's law, where they are columns.
START_UP = "start_up."

_START_UP = (
    "S, time before a worker's first cycle, in the unit of runtimes: a number, or a LAW as for --cycle-time."
)
_SEND_TIME = "c, time of a worker's link for one coordinate."
_OVERLAP = "The link sends while the worker computes."
_CHAIN_CYCLES = "h, cycles per sample, subset and coordinate to carry the derivative back through it."
_AT_MOST = f"at most {names.MOST_WORKERS:,}"

_POSITIVE, _FROM_ZERO = Number(), Number(include=True)
_SHARE = Number(0, 1)
_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


def format_option() -> Any:
    return option(("table", "json", "csv"), "What is printed.", typed="--format")


def plan_option(which: str) -> Any:
    text = f"Also write {which}, with its certificate, to a JSON file; in Python "
    return option(click.Path(), f"{text}bcgc_jax.Solution.load(FILE.json) reads it.", metavar="FILE.json")


def figure_option(what: str) -> Any:
    return option(click.Path(), f"Also draw {what}: .png, .svg or .pdf.", metavar="PICTURE")


def check_figure(option: str, path: str | None) -> None:
    """What is wrong with a picture's name, or with what draws it."""
    if path is not None:
        check_file(option, path, names.PICTURES)
        if find_spec("matplotlib") is None:
            raise click.UsageError(f"{option} needs matplotlib: {to_install('plot')}")


def round_trip_option() -> Any:
    text = "Time of one query of the master, in the unit of runtimes; for sharing:CHUNKS."
    return option(_FROM_ZERO, text, default=0.0)


def objective_option() -> Any:
    text = "What is to be best; the second is the method `deadline`, and needs --deadline."
    return option(names.OBJECTIVES, text)


def check_one(what: str, **given: Any) -> None:
    """UsageError where none of two options is given, and where both are."""
    typed = [f"--{name.replace('_', '-')}" for name in given]
    if all(given.values()):
        raise click.UsageError(f"{' and '.join(typed)} both give {what}: drop one of them")
    if not any(given.values()):
        raise click.UsageError(f"give {what}, with {' or '.join(typed)}")


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Start-up, link and chain"""

    start_up: "Distribution | float | None" = option(number_or_law(_FROM_ZERO, read_law), _START_UP)
    send_time: float | None = option(_FROM_ZERO, _SEND_TIME)
    overlap: bool = option(bool, _OVERLAP)
    chain_cycles: float | None = option(_FROM_ZERO, _CHAIN_CYCLES)

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
    """Layout of the trace's file"""

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
        names.LAYOUTS,
        "A row for each step and worker (long), or a column for each worker (wide).",
    )

    def __post_init__(self) -> None:
        if self.layout == "wide":
            refuse_without_effect("in the wide layout", "worker", "seconds", "load")


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """Measured times in place of a distribution"""

    path: str | None = option(
        _FILE,
        "CSV (also .csv.gz) or Parquet of measured times, in place of --cycle-time; - is standard input.",
        typed="--trace",
    )
    kind: str = option(
        names.TRACE_LAWS,
        "The distribution of a trace. atoms: each measured time as it is. smooth: a smooth curve through "
        "them. pareto-tail: one with a heavy tail. auto: atoms where that is quick, else smooth.",
        typed="--trace-law",
    )
    columns: Layout = group(Layout)
    keep_workers: bool = option(
        bool, "Keep the steps of the trace whole: which times came together then counts."
    )

    def __post_init__(self) -> None:
        if self.path is None:
            refuse_without_effect("without --trace", "keep_workers", "kind", *vars(self.columns))
        if self.keep_workers:
            refuse_without_effect("with --keep-workers, for which steps are whole", "kind")


@dataclasses.dataclass(frozen=True)
class Planning:
    """Schemes and output"""

    trace: TraceOptions = group(TraceOptions)
    methods: tuple[str, ...] = option(
        str,
        "Scheme; repeat it. By default those of the paper and its rivals, in `sweep` optimal alone.",
        typed="--method",
        multiple=True,
    )
    own: str | None = option(
        click.Path(exists=True, dir_okay=False),
        "Python file with a list SCHEMES of bcgc_jax.Scheme: schemes of your own.",
        typed="--schemes",
    )
    seed: int = option(SEED, "Seed of the random draws.", default=0)
    output: str = format_option()

    @functools.cached_property
    def schemes(self) -> "list[Scheme]":
        """Those of the user's own."""
        if self.own is None:
            return []
        from bcgc_jax.solvers.schemes import load_schemes

        return load_schemes(self.own)

    def asked(self, *methods: str, **options: Any) -> "dict[str, Method]":
        """Methods by their names, each with those of the options that it has."""
        from bcgc_jax.solvers.methods import method_of

        found = {}
        for method in (method_of(name, self.schemes) for name in methods):
            known = {name: value for name, value in options.items() if hasattr(method, name)}
            found[method.name] = dataclasses.replace(method, **known) if known else method  # type: ignore[type-var]
        return found

    def check(self, cycle_time: Any, random_start_up: Any, *, several: bool = False) -> None:
        """UsageError for no law of the cycle time and for two, for a law of start-ups of unlike workers, for
        methods that are none, and for options that none of the methods has a use for.
        """
        check_one("the distribution of the cycle time", cycle_time=cycle_time, trace=self.trace.path)
        if random_start_up and (several or self.trace.keep_workers):
            raise click.UsageError(
                "--start-up may be a law only where all workers have one distribution, not with "
                f"{'several --cycle-time' if several else '--keep-workers'}: give a number"
            )
        own = [scheme.name for scheme in self.schemes]
        known = {*own, *(name.partition(":")[0] for name in names.METHODS.split(", "))}
        kinds = [name.partition(":")[0] for name in self.methods]
        for unknown in [kind for kind in kinds if kind not in known]:
            near = did_you_mean(unknown, known)
            raise click.UsageError(f"no method {unknown!r}{near}; known: {', '.join([names.METHODS, *own])}")
        if self.methods and not {*own} & {*self.methods}:
            refuse_without_effect("unless a --method is one of these", "own")
        if "sharing" not in kinds:
            refuse_without_effect("without a --method sharing:CHUNKS", "round_trip")

    def check_deadline(self, deadline: Any, *, needed: bool) -> None:
        """UsageError where a method is in need of one."""
        if deadline is None and (needed or "deadline" in self.methods):
            raise click.UsageError(
                "the most probable plan, --method deadline, --objective completion-probability or "
                "--min-completion, needs a --deadline"
            )


@dataclasses.dataclass(frozen=True)
class SolveOptions(Planning):
    """Which redundancy should each block of coordinates get, how long does an iteration take, and how
    does that compare with earlier schemes?

    The table is followed by the best plan, as level: coordinates, and by what it needs. Runtimes are in the
    unit of the cycle time. They are exact, not simulated. Only for workers that are not alike, and for
    multi_message, alternating and sharing, they are means of random draws.
    """

    workers: int | None = option(WORKERS, f"N, {_AT_MOST}; by default those of the trace, or of COUNT* laws.")
    coordinates: int | None = option(COUNT, "L, the gradient's length.")
    samples: float = option(_POSITIVE, "M, samples over all workers.", default=1)
    cycles: float = option(_POSITIVE, "b, CPU cycles per coordinate and sample.", default=1)
    cycle_times: "tuple[tuple[int | None, Distribution], ...]" = option(
        Argument("law", read_law_of_workers),
        "Distribution of a worker's cycle time, NAME:PARAMETER=VALUE,…; if workers differ, repeat it,"
        " one for each, 'COUNT*NAME:…' for several.",
        typed="--cycle-time",
        multiple=True,
    )
    deadline: float | None = option(_POSITIVE, "Also print P(runtime ≤ deadline).")
    min_completion: float | None = option(
        _SHARE, "The fastest plan with P(runtime ≤ deadline) at least this; needs --deadline."
    )
    objective: str = objective_option()
    levels: tuple[str, tuple[int, ...]] | None = option(
        Argument("levels", read_levels), "Also the best plan of these levels alone, such as 0,3,7-9."
    )
    setup_cycles: float | None = option(
        _FROM_ZERO, "f, cycles per sample and subset before the first coordinate: the forward pass."
    )
    delivery: Delivery = group(Delivery)
    unit_costs: TextIO | None = option(
        click.File(encoding="utf-8", errors="replace"),
        "File of costs, one a line: units, such as layers, in place of coordinates.",
    )
    round_trip: float = round_trip_option()
    out: str | None = plan_option("the best plan")
    figure: str | None = figure_option("the runtimes and the blocks")

    def __post_init__(self) -> None:
        check_figure("--figure", self.figure)
        self.check(self.cycle_times, self.delivery.random, several=len(self.cycle_times) > 1)
        check_one("the length of the gradient", coordinates=self.coordinates, unit_costs=self.unit_costs)
        self.check_deadline(self.deadline, needed=self.for_deadline)
        if self.min_completion is not None and self.objective == names.OBJECTIVES[1]:
            raise click.UsageError(
                "--objective completion-probability and --min-completion are two objectives, the most "
                "probable plan and the fastest one that is probable enough: drop one of them"
            )
        if self.methods and "deadline" not in self.methods:
            refuse_without_effect("unless a --method is deadline", "min_completion")
        if self.out is not None:
            check_file("--out", self.out, (".json",))

    @property
    def for_deadline(self) -> bool:
        named = self.objective == names.OBJECTIVES[1] or "deadline" in self.methods
        return named or self.min_completion is not None


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """Which distribution describes the cycle times in FILE, how sure is that, and how much does the plan
    depend on it?

    FILE is CSV (also .csv.gz) or Parquet, - is standard input: a row for each step and worker, or a row for
    each step and a column for each worker, in seconds. Parameters and runtimes are in seconds, or in whatever
    unit the file has. With a column of loads, in cycles, the time before the first cycle is told apart.
    """

    file: str = argument(_FILE)
    layout: Layout = group(Layout)
    laws: tuple[str, ...] = option(
        names.FITTED_LAWS,
        "Distribution to fit; repeat it; all by default, or with a column of loads none.",
        typed="--law",
        multiple=True,
    )
    workers: int | None = option(WORKERS, f"N of the plans, {_AT_MOST}; those of the trace.")
    coordinates: int = option(COUNT, "L of the plans.", default=1_000_000)
    samples: float = option(_POSITIVE, "M, samples over all workers.", default=1)
    cycles: float | None = option(
        _POSITIVE,
        "b, CPU cycles per coordinate and sample: 1, or with a column of loads as many as make the work of a "
        "worker without redundancy the mean load.",
    )
    replicates: int = option(
        Number(20, include=True, whole=True),
        "Samples behind each standard error and p-value.",
        default=200,
    )
    seed: int = option(SEED, "Seed of these samples.", default=0)
    out: str | None = plan_option("the plan for the best distribution")
    figure: str | None = figure_option("the measured times and the four best distributions")
    output: str = format_option()

    def __post_init__(self) -> None:
        check_figure("--figure", self.figure)
        if self.out is not None:
            check_file("--out", self.out, (".json",))

    @property
    def trace(self) -> TraceOptions:
        return TraceOptions(self.file, names.TRACE_LAWS[0], self.layout, keep_workers=False)


@dataclasses.dataclass(frozen=True)
class SweepOptions(Planning):
    """Solve all combinations of the axes, each with its certificate.

    Without --out the rows are printed; with it they go to the file as they come, and a summary is printed.
    A cell that cannot be solved has its status and stops no other.
    """

    workers: "np.ndarray | None" = option(
        axis(WORKERS), f"N, {_AT_MOST}: an axis; by default the workers of the trace."
    )
    coordinates: "np.ndarray" = option(axis(COUNT), "L, the gradient's length: an axis.", required=True)
    samples: "np.ndarray" = option(axis(_POSITIVE), "M, over all workers: an axis.", default=1)
    cycles: "np.ndarray" = option(axis(_POSITIVE), "b, CPU cycles: an axis.", default=1)
    setup_cycles: "np.ndarray | None" = option(axis(_FROM_ZERO), "f, before the first: an axis.")
    start_up: "np.ndarray | tuple[str, dict[str, float]] | None" = option(
        number_or_law(axis(_FROM_ZERO), read_open_law), _START_UP
    )
    send_time: "np.ndarray | None" = option(axis(_FROM_ZERO), _SEND_TIME)
    overlap: bool = option(bool, _OVERLAP)
    chain_cycles: "np.ndarray | None" = option(axis(_FROM_ZERO), _CHAIN_CYCLES)
    cycle_time: tuple[str, dict[str, float]] | None = option(
        Argument("law", read_open_law), "Distribution, NAME:PARAMETER=VALUE,…; an --axis may give more."
    )
    axes: "tuple[tuple[str, np.ndarray], ...]" = option(
        Argument("parameter=axis", read_named_axis),
        "A parameter of the distribution, or start_up.PARAMETER: an axis; repeat it.",
        typed="--axis",
        multiple=True,
    )
    deadline: "np.ndarray | None" = option(axis(_POSITIVE), "Also P(runtime ≤ deadline): an axis.")
    objective: str = objective_option()
    tolerance: float = option(_POSITIVE, "Relative gap of `optimal`.", default=1e-7)
    partitions: bool = option(bool, "Also give the partitions, rounded.")
    round_trip: float = round_trip_option()
    out: str | None = option(click.Path(), "Write to FILE.csv or FILE.parquet, chunk by chunk.")
    figure: str | None = figure_option("runtimes over the one or two numbers that vary")
    resume: bool = option(bool, "Go on with --out where an earlier call was cut off.")
    coordinator: str | None = option(str, "HOST:PORT of the first of several processes.")
    processes: int | None = option(COUNT, "How many there are.")
    process: int | None = option(Number(0, include=True, whole=True), "Which one this is, from 0 on.")

    def __post_init__(self) -> None:
        check_figure("--figure", self.figure)
        self.check(self.cycle_time, self.start_up_law)
        self.check_deadline(self.deadline, needed=self.objective == names.OBJECTIVES[1])
        if self.send_time is None:
            refuse_without_effect("without --send-time", "overlap")
        if self.resume and self.out is None:
            raise click.UsageError("--resume goes on with a file: give it with --out")
        if self.out is not None:
            check_file("--out", self.out, names.SWEPT)
        if len(dict(self.axes)) < len(self.axes):
            raise click.UsageError("a parameter has two axes: give each --axis once")
        if self.trace.path is not None and not all(name.startswith(START_UP) for name, _ in self.axes):
            raise click.UsageError("the distribution of a --trace has no parameters: drop --axis")
        if self.methods and "optimal" not in self.methods:
            refuse_without_effect("without --method optimal", "tolerance")
        several = (self.coordinator, self.processes, self.process)
        if several != (None, None, None) and (None in several or self.out is None):
            raise click.UsageError("several processes need --coordinator, --processes, --process and --out")

    @property
    def start_up_law(self) -> tuple[str, dict[str, float]] | None:
        """Its name, and its parameters that are not left to --axis."""
        return self.start_up if isinstance(self.start_up, tuple) else None


@dataclasses.dataclass(frozen=True)
class TrainOptions(Planning):
    """Train a model on handwritten digits with N workers, under several schemes.

    All schemes take the same steps; what differs is the time they take: on a simulated clock, in the unit of
    the cycle time, or with --engine ray on N processes, in seconds. A trace is replayed step by step, and
    planned for as its law, --trace-law or --keep-workers, says.
    """

    workers: int | None = option(
        Number(1, names.MOST_IMAGES, include=True, whole=True),
        f"N, at most {names.MOST_IMAGES:,}; with --trace that of the trace.",
    )
    cycle_time: "Distribution | None" = option(
        Argument("law", read_law), "Distribution of a worker's cycle time, NAME:PARAMETER=VALUE,…"
    )
    model: str = option(names.MODELS)
    units: str = option(names.UNITS, "What a block is made of.")
    cycles: float = option(_POSITIVE, "b, cycles per coordinate, sample.", default=1)
    setup_cycles: float | None = option(_FROM_ZERO, "f, cycles per sample and subset at first.")
    delivery: Delivery = group(Delivery)
    steps: int = option(COUNT, default=200)
    seeds: int | None = option(COUNT, "Runs of each scheme; 8, with ray 1.")
    learning_rate: float = option(_POSITIVE, default=0.5)
    batch_size: int | None = option(COUNT, "Samples of each subset per step; all.")
    target: float = option(_SHARE, "Test accuracy to be reached.", default=0.9)
    engine: str = option(names.ENGINES, "A simulated clock, or worker processes and the wall clock.")
    pace: float = option(
        _FROM_ZERO,
        "With ray: seconds that the fastest scheme's expected iteration takes, its workers slowed on "
        "purpose; 0 for workers as they are.",
        default=0.2,
    )
    address: str | None = option(str, "With ray: a running cluster to join; by default one on this machine.")
    checkpoints: str | None = option(
        click.Path(file_okay=False), "With ray: keep states and logs in this folder."
    )
    resume: bool = option(bool, "Go on with --checkpoints where an earlier call was cut off.")
    curves: str | None = option(click.Path(), "Also write every iteration to this CSV file.")
    figure: str | None = figure_option("the loss over time")

    def __post_init__(self) -> None:
        check_figure("--figure", self.figure)
        self.check(self.cycle_time, self.delivery.random)
        if self.simulated:
            refuse_without_effect("without --engine ray", "pace", "address", "checkpoints", "resume")
        if self.resume and self.checkpoints is None:
            raise click.UsageError("--resume goes on with what --checkpoints DIR holds: give that too")
        if self.checkpoints is not None:
            folder = Path(self.checkpoints)
            filled = folder.is_dir() and any(folder.iterdir())
            if filled and not self.resume:
                other = "go on with it (--resume), or name another folder"
                raise click.UsageError(f"--checkpoints: {folder} holds a training: {other}")
            if self.resume and not filled:
                raise click.UsageError(f"--resume: {folder} holds no training to go on with")
        if self.curves is not None:
            check_file("--curves", self.curves)
        for name in {"deadline", "limit"} & {*self.methods}:
            raise click.UsageError(f'"{name}" is no scheme to train with')

    @property
    def simulated(self) -> bool:
        return self.engine == names.ENGINES[0]

    @property
    def num_seeds(self) -> int:
        return self.seeds or (8 if self.simulated else 1)


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw FILE, which `bcgc sweep --out`, `bcgc train --curves` or `bcgc solve --out` wrote.

    Of a sweep over one number, each scheme is a curve; over two numbers it is a heat map. Of a training, each
    scheme is a curve over time. A plan is drawn as its blocks, with how many workers compute each subset of
    the data for them.
    """

    file: str = argument(click.Path(exists=True, dir_okay=False))
    x: str | None = option(str, "Column of the horizontal axis; by default what varies.")
    y: str | None = option(str, "Column of the vertical axis of heat maps.")
    value: str | None = option(
        str, "Column that is drawn; by default expected_runtime, or the loss of a training."
    )
    where: tuple[tuple[str, float], ...] = option(
        Argument("column=number", read_where), "Only rows with this number; repeat it.", multiple=True
    )
    methods: tuple[str, ...] = option(str, "Only this scheme; repeat it.", typed="--method", multiple=True)
    out: str | None = option(
        click.Path(),
        "The picture: .png, .svg or .pdf; by default FILE with the ending .png.",
        metavar="PICTURE",
    )

    def __post_init__(self) -> None:
        if Path(self.file).suffix == ".json":
            refuse_without_effect("on a plan", "x", "y", "value", "where", "methods")
        check_figure("--out", str(Path(self.file).with_suffix(".png")) if self.out is None else self.out)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bcgc-jax")
def cli() -> None:
    """Block coordinate gradient coding: which redundancy should each block of a gradient get?"""


_LAWS = f"A LAW is a distribution of times: {law_help()}"
_METHODS = f"""Methods: {names.METHODS}

NUMBER is the most subsets that a worker stores with nested, cyclic, alternating and multi_message, the chunks
of each worker with sharing, the workers left out with backup, the level with tandon, and the layers with
ferdinand.

tandon_partial has α, which is E[T | T > median] / E[T | T ≤ median]; the paper's figures take 6."""
for command in (
    Command(
        "solve",
        SolveOptions,
        short_help="Plan the blocks and compare with earlier schemes.",
        epilog=f"""\b
Examples:
  bcgc solve --workers 20 --coordinates 20000 --samples 50 \\
             --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc solve --trace steps.csv --coordinates 1e6 --format json
  bcgc solve --coordinates 1e6 --cycle-time '6*weibull:scale=1,shape=2,shift=1' \\
             --cycle-time '2*shifted-exponential:rate=0.2,shift=2' --out plan.json
  bcgc solve --workers 20 --coordinates 40000 --samples 50 --objective completion-probability \\
             --deadline 3.16e6 --cycle-time shifted-exponential:rate=0.1,shift=1

{_LAWS}

{_METHODS}""",
    ),
    Command(
        "fit",
        FitOptions,
        short_help="Which distribution describes a trace, and what plan follows.",
        epilog="""\b
Examples:
  bcgc fit steps.csv
  bcgc fit steps.csv --law gamma --law lognormal
  bcgc fit log.parquet --worker-column rank --seconds-column time_s --coordinates 1e6 --format json
  bcgc fit loads.csv --load-column samples
  ssh NODE cat steps.csv | bcgc fit -""",
    ),
    Command(
        "plot",
        PlotOptions,
        short_help="Draw a sweep's, a training's or a plan's file.",
        epilog="""\b
Examples:
  bcgc plot sweep.csv
  bcgc plot sweep.csv --x rate --where num_workers=20 --method optimal --method nested
  bcgc plot sweep.csv --x rate --y num_workers --out map.svg
  bcgc plot curves.csv --value accuracy
  bcgc plot plan.json""",
    ),
    Command(
        "sweep",
        SweepOptions,
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

{_LAWS}

{_METHODS}""",
    ),
    Command(
        "train",
        TrainOptions,
        short_help="Train on handwritten digits: loss against simulated time, scheme against scheme.",
        epilog=f"""\b
Examples:
  bcgc train --workers 20 --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc train --workers 10 --model perceptron --method optimal --method uncoded \\
             --cycle-time pareto:scale=1,shape=2.5 --curves curves.csv
  bcgc train --trace steps.csv --units layers --setup-cycles 500 --format json
  bcgc train --engine ray --workers 8 --steps 50 --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc train --engine ray … --checkpoints state --resume      goes on where it was cut off

{_LAWS}""",
    ),
):
    cli.add_command(command)
