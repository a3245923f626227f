"""The commands, and what each may be asked.

A file of its name answers each command, and only that needs JAX.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

import click

import bcgc_jax
from bcgc_jax.balancing.scheme_names import METHODS
from bcgc_jax.cli import arguments as typed
from bcgc_jax.cli.arguments import COUNT, FORWARD, LAW, OPEN_LAW, WORKERS, axis, number
from bcgc_jax.cli.exit import check_file
from bcgc_jax.cli.options import Command, Commands, argument, option
from bcgc_jax.plotting import require_matplotlib

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.distributions import Distribution
    from bcgc_jax.solvers.methods import Method

# Keywords of `load_trace` and of `Problem`.
LAYOUT = ("step", "worker", "seconds", "censored", "load", "layout", "unit")
DELIVERY = ("start_up", "send_time", "overlap")

_POSITIVE = number()
_FROM_ZERO = number(include=True)
_MODERATE = number(high=1e100)  # its square is finite too
_SECONDS = number(0, 10**9, include=True)
_SHARE = number(0, 1)
_NEW_FILE = click.Path()
_UNIT = "Of the times in the file: s, ms, us or ns; by default s."
_FILE_OR_INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True)

_AT_MOST = f"at most {typed.MOST_WORKERS:,}"
_SAMPLES = "M, samples of a whole step."
_CYCLES = "b, cycles (units of work) per coordinate and sample."
_SETUP_CYCLES = "f, cycles per sample and subset of the forward pass."
_FORWARD = (
    "In place of f: the forward pass as a ratio to the backward pass, L (b + h) "
    "cycles; 0.47 or 47%."
)
_START_UP = "S, time before a worker's first cycle, in the unit of runtimes."
_SEND_TIME = "c, time in which a worker sends one coordinate."
_CHAIN_CYCLES = (
    "h, cycles per sample, subset and coordinate to carry the derivative back."
)
_PLAN = "Also write the best plan, with its certificate, for bcgc_jax.Solution.load."

_LAWS = (
    f"A DISTRIBUTION of times is one of {', '.join(map(typed.law_usage, typed.LAWS))}"
)
_METHODS = f"""Methods: {METHODS}.
NUMBER is the most subsets that a worker stores (nested, cyclic, sharing, limit), the
workers left out (backup), the chunks of a subset (drop), the level (tandon), or the
layers (ferdinand). sharing:NUMBER:CHUNKS has so many chunks a subset, else 8; NUMBER
may be all, and CHUNKS best. In tandon_partial α is E[T | T > median] /
E[T | T ≤ median]; the paper takes 6."""


def check_picture(option: str, path: str | None) -> None:
    """What is wrong with a picture's name, or with what draws it."""
    check_file(option, path, typed.PICTURES)
    if path is not None:
        require_matplotlib()


def check_not_both(what: str, **values: Any) -> None:
    """Raise UsageError where both of two options are given."""
    if all(values.values()):
        options = " and ".join(f"--{name.replace('_', '-')}" for name in values)
        raise click.UsageError(f"{options} both give {what}: drop one of them")


def check_one(what: str, **values: Any) -> None:
    """Raise UsageError unless exactly one of two options is given."""
    check_not_both(what, **values)
    if not any(values.values()):
        options = " or ".join(f"--{name.replace('_', '-')}" for name in values)
        raise click.UsageError(f"give {what}, with {options}")


def cycles_of_forward(
    ratio: Any, coordinates: Any, cycles: Any, chain_cycles: Any = None
) -> Any:
    """f of a forward pass, from its ratio to a backward pass of L (b + h) cycles."""
    for_coordinate = cycles
    if chain_cycles is not None:
        for_coordinate = cycles + chain_cycles
    return ratio * coordinates * for_coordinate


@dataclasses.dataclass(frozen=True)
class Files:
    """Files and output"""

    step: str = option(str, "Column of the step.", "--step-column", default="step")
    worker: str = option(
        str, "Column of the worker.", "--worker-column", default="worker"
    )
    seconds: str = option(
        str, "Column of the times.", "--seconds-column", default="seconds"
    )
    censored: str | None = option(
        str, "Column: 1 if the worker was cut off, or 0.", "--censored-column"
    )
    load: str | None = option(
        str, "Column of the cycles done by then; by default load.", "--load-column"
    )
    layout: str = option(
        typed.LAYOUTS, "A row for each time (long), or a column for each worker (wide)"
    )
    unit: str | None = option(typed.TIME_UNIT, _UNIT)
    figure: str | None = option(
        _NEW_FILE, "Also draw the answer: .png, .svg or .pdf.", metavar="PICTURE"
    )
    seed: int = option(
        number(include=True, whole=True), "Seed of the random draws.", default=0
    )
    output: str = option(("table", "json", "csv"), "What is printed", "--format")

    def __post_init__(self) -> None:
        check_picture("--figure", self.figure)


@dataclasses.dataclass(frozen=True)
class Passes(Files):
    """Passes through the model"""

    # A sweep has axes of the numbers.
    setup_cycles: Any = option(_FROM_ZERO, _SETUP_CYCLES)
    forward: Any = option(FORWARD, _FORWARD)
    chain_cycles: Any = option(_FROM_ZERO, _CHAIN_CYCLES)

    def __post_init__(self) -> None:
        super().__post_init__()
        given_options = {
            name: getattr(self, name) is not None
            for name in ("forward", "setup_cycles")
        }
        check_not_both("the forward pass", **given_options)

    @property
    def asks_forward(self) -> bool:
        return self.forward is not None or self.setup_cycles is not None

    def passes(
        self, coordinates: float, cycles: float, measured_forward: float | None = None
    ) -> dict[str, Any]:
        """Keywords of `Problem`; `coordinates` may be the sum of the units' costs.

        Where nothing was asked, the forward pass is that of the trace, if it is known.
        """
        setup = self.setup_cycles
        forward = self.forward
        if not self.asks_forward:
            forward = measured_forward
        if forward is not None:
            setup = cycles_of_forward(forward, coordinates, cycles, self.chain_cycles)
        return {"setup_cycles": setup, "chain_cycles": self.chain_cycles}


@dataclasses.dataclass(frozen=True)
class Times(Passes):
    """Times of the workers"""

    # A sweep has axes of the numbers.
    cycle_time: Any = option(
        LAW, "Distribution of a worker's cycle time, NAME:PARAMETER=VALUE,…"
    )
    start_up: Any = option(_FROM_ZERO, _START_UP)
    send_time: Any = option(_FROM_ZERO, _SEND_TIME)
    overlap: bool = option(bool, "The link sends while the worker computes.")
    trace: str | None = option(
        _FILE_OR_INPUT, "CSV (also .csv.gz) of measured times; - is standard input."
    )
    trace_distribution: str = option(
        typed.TRACE_LAWS,
        "A trace's distribution, by its size, of measured times, a smooth curve, or "
        "one with a heavy tail",
    )
    keep_workers: bool = option(
        bool, "Plan on the trace's whole steps, not on independent workers."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one(
            "the distribution of the cycle time",
            cycle_time=self.cycle_time,
            trace=self.trace,
        )
        if self.trace is None:
            typed.refuse_without_effect(
                "without --trace", "keep_workers", "trace_distribution", *LAYOUT
            )
        if self.keep_workers:
            typed.refuse_without_effect(
                "with --keep-workers, for which steps are whole", "trace_distribution"
            )
        if self.send_time is None:
            typed.refuse_without_effect("without --send-time", "overlap")

    def delivery(self) -> dict[str, Any]:
        """Keywords of `Problem`."""
        return {name: getattr(self, name) for name in DELIVERY}


@dataclasses.dataclass(frozen=True)
class Comparing(Times):
    """Schemes"""

    deadline: Any = option(_POSITIVE, "Also print P(runtime ≤ deadline).")
    objective: str = option(
        typed.OBJECTIVES, "What a plan is made for; for the second give a --deadline"
    )
    round_trip: float = option(
        _FROM_ZERO, "Time of a question before each chunk, in sharing.", default=0.0
    )
    methods: tuple[str, ...] = option(
        typed.METHOD,
        "Scheme; repeat it. The default is above.",
        "--method",
        multiple=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deadline is None and self.for_deadline:
            raise click.UsageError(
                "--method deadline, --min-completion or --objective needs a --deadline"
            )

    def asked(self, *methods: str, **options: Any) -> "dict[str, Method]":
        """Methods by their names, each with those of the options that it has."""
        from bcgc_jax.solvers.methods import method_of

        asked = {}
        for method in map(method_of, methods):
            own_options = {
                name: value for name, value in options.items() if hasattr(method, name)
            }
            if own_options:
                method = dataclasses.replace(method, **own_options)  # type: ignore[type-var]
            asked[method.name] = method
        return asked

    @property
    def most_probable(self) -> bool:
        return self.objective == typed.OBJECTIVES[1]

    @property
    def for_deadline(self) -> bool:
        """Whether a method has one for its aim."""
        return self.most_probable or "deadline" in self.methods


@dataclasses.dataclass(frozen=True)
class AdviseOptions:
    """What slows the steps of a log, and what can be done.

    LOG is a folder of a profiler's traces, one a rank (PyTorch, JAX), or a log: CSV or
    JSON lines (also .gz), - is standard input; several files are joined. A log has a
    row for each step and worker, with the seconds of the worker's own computation.
    Better it has a row for each chunk, which is a microbatch of a worker's step: then
    slow workers can be told from long chunks. Each remedy is planned on one half of the
    steps and replayed in the other one. Intervals are of 95 %. Nothing is advised that
    may not save time.
    """

    after: ClassVar = """\b
Columns: step, worker, seconds; if there are any chunk, forward_seconds (the part of
the forward pass), load (the length of a chunk, or without chunks of a worker's step,
such as its tokens), wait (the part of seconds that the worker was in an all-reduce,
waiting for others) and host (which machine: workers of one are perhaps slow together).

\b
Examples:
  bcgc advise steps.csv
  bcgc advise traces/ --chunk-name microbatch --log log.csv
  bcgc advise 'worker-*.csv'
  bcgc advise log.csv --columns step=iter,worker=rank,seconds=dur
  bcgc advise chunks.csv --stored 2 --format json
  bcgc advise steps.csv --method nested --method optimal --forward 0.47
  bcgc advise chunks.csv --figure advice.png --out plan.json
  ssh NODE cat steps.csv | bcgc advise -"""

    compiles: ClassVar = False
    logs: tuple[str, ...] = argument(
        typed.LogPath(), metavar="LOG…", nargs=-1, required=True
    )
    chunk_name: str | None = option(
        str,
        "Of traces: the range, or in JAX the jitted function, with which a chunk "
        "begins; by default DistributedDataParallel.forward.",
    )
    made_log: str | None = option(
        _NEW_FILE,
        "Also write the log that was made of traces.",
        "--log",
        metavar="FILE.csv",
    )
    columns: dict[str, str] | None = option(
        typed.COLUMNS, "How the file calls its columns, such as step=iter,worker=rank."
    )
    layout: str = option(
        typed.LAYOUTS, "A row for each time (long), or a column for each worker (wide)"
    )
    unit: str | None = option(typed.TIME_UNIT, _UNIT)
    chunks: int | None = option(
        number(2, typed.MOST_CHUNKS, include=True, whole=True),
        "C, of a worker's step, where LOG has none; by default 8.",
    )
    stored: int | None = option(
        number(2, include=True, whole=True),
        "The most subsets that a worker can store; by default all.",
    )
    round_trip: float | None = option(
        _SECONDS,
        "Seconds of a question before each chunk; by default the log's column asking, "
        "else as measured on one machine, with the coordinator's time.",
    )
    chunk_overhead: float = option(
        _SECONDS,
        "Seconds of a chunk, in its recorded ones, that do not depend on its size.",
        default=0.0,
    )
    methods: tuple[str, ...] = option(
        typed.METHOD,
        "Also replay this code, such as nested:2; repeat it.",
        "--method",
        multiple=True,
    )
    forward: float | None = option(
        FORWARD,
        (
            "With --method: a forward pass over a backward pass; by default as "
            "recorded, or 0."
        ),
    )
    lock_step: bool = option(
        bool,
        "Chunk k of all workers is computed together (FSDP, most reinforcement "
        "learning): replay only what hangs nobody there.",
    )
    cost: tuple[float, float] | None = option(
        typed.COST,
        "LOG has lengths alone (step, worker, chunk, load), and a chunk of length L "
        "costs a L + b L².",
    )
    timed_apart: bool = option(
        bool,
        (
            "LOG has each worker's own computation: advise also where all workers are "
            "alike."
        ),
    )
    seed: int = option(
        number(include=True, whole=True), "Seed of the intervals.", default=0
    )
    figure: str | None = option(
        _NEW_FILE, "Also draw the answer: .png, .svg or .pdf.", metavar="PICTURE"
    )
    out: str | None = option(
        _NEW_FILE,
        (
            "Also write the plan of the work sharing that is advised, for "
            "bcgc_jax.Solution.load."
        ),
        metavar="FILE.json",
    )
    output: str = option(("table", "json", "csv"), "What is printed", "--format")

    def __post_init__(self) -> None:
        check_picture("--figure", self.figure)
        check_file("--out", self.out, (".json",))
        check_file("--log", self.made_log, (".csv",))
        if not self.methods:
            typed.refuse_without_effect("without --method", "forward")
        check_not_both(
            "what is replayed", method=self.methods, lock_step=self.lock_step
        )
        if self.cost is not None:
            alone = "with --cost, for lengths say nothing of it"
            typed.refuse_without_effect(
                alone, "unit", "layout", "timed_apart", "methods"
            )


@dataclasses.dataclass(frozen=True)
class SolveOptions(Comparing):
    """Plan the blocks and compare with earlier schemes.

    How much redundancy should each block get, and how long does a step take? Without
    --method the table has the paper's schemes, nested, work sharing and earlier
    schemes. Below it stands the best plan, as level: coordinates. Runtimes are in the
    unit of the cycle time. They are exact. For workers that are not alike, and for
    sharing, they are means of random draws.
    """

    runs_once: ClassVar = True
    after: ClassVar = f"""\b
Examples:
  bcgc solve --workers 20 --coordinates 20000 --samples 50 \\
             --cycle-time shifted-exponential:rate=1e-3,shift=50
  bcgc solve --trace steps.csv --coordinates 1e6 --format json
  bcgc solve --coordinates 1e6 --cycle-time '6*weibull:scale=1,shape=2,shift=1' \\
             --cycle-time '2*shifted-exponential:rate=0.2,shift=2' --out plan.json
  bcgc solve --workers 20 --coordinates 40000 --samples 50 \\
             --objective completion-probability --deadline 3.16e6 \\
             --cycle-time shifted-exponential:rate=0.1,shift=1

{_LAWS}

{_METHODS}"""

    workers: int | None = option(
        WORKERS, f"N, {_AT_MOST}; by default those of the trace, or all COUNTs."
    )
    coordinates: int | None = option(
        COUNT, "L, the gradient's length: the number of parameters."
    )
    samples: float = option(_POSITIVE, _SAMPLES, default=1)
    cycles: float = option(_POSITIVE, _CYCLES, default=1)
    cycle_time: "tuple[tuple[int | None, Distribution], ...]" = option(
        typed.LAW_OF_WORKERS,
        "Distribution of a worker's cycle time; if workers differ, repeat it, for "
        "several 'COUNT*NAME:…'.",
        multiple=True,
    )
    min_completion: float | None = option(
        _SHARE, "Fastest plan with at least this P(runtime ≤ deadline)."
    )
    levels: tuple[str, tuple[int, ...]] | None = option(
        typed.LEVELS, "Also the best plan with these levels alone, such as 0,3,7-9."
    )
    unit_costs: TextIO | None = option(
        click.File(encoding="utf-8", errors="replace"),
        "In place of --coordinates: costs of layers or other units, one a line.",
    )
    out: str | None = option(_NEW_FILE, _PLAN, metavar="FILE.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file("--out", self.out, (".json",))
        check_one(
            "the length of the gradient",
            coordinates=self.coordinates,
            unit_costs=self.unit_costs,
        )
        if self.min_completion is not None and self.most_probable:
            raise click.UsageError(
                "--min-completion and this --objective are two objectives: drop one"
            )
        if self.methods and "deadline" not in self.methods:
            typed.refuse_without_effect(
                "unless a --method is deadline", "min_completion"
            )

    @property
    def for_deadline(self) -> bool:
        return super().for_deadline or self.min_completion is not None


@dataclasses.dataclass(frozen=True)
class FitOptions(Passes):
    """Find the distribution of measured times, and the plan for it.

    How sure is that, and how much does the plan depend on it? FILE is CSV (also
    .csv.gz), - is standard input. It has a row for each step and worker, or a row for
    each step and a column for each worker. Parameters and runtimes are in seconds, or
    in the file's unit. With a column of loads, in cycles, the time before the first
    cycle is estimated too.
    """

    runs_once: ClassVar = True
    after: ClassVar = """\b
Examples:
  bcgc fit steps.csv
  bcgc fit steps.csv --distribution gamma --distribution lognormal
  bcgc fit log.csv --worker-column rank --seconds-column time_s --coordinates 1e6 \\
           --format json
  bcgc fit loads.csv --load-column samples
  ssh NODE cat steps.csv | bcgc fit -"""

    keep_workers: ClassVar = False
    trace: str = argument(_FILE_OR_INPUT, metavar="FILE")
    laws: tuple[str, ...] = option(
        typed.FITTED_LAWS,
        "To fit; repeat it. By default all, with loads none",
        "--distribution",
        multiple=True,
    )
    workers: int | None = option(
        WORKERS, f"N of the plans, {_AT_MOST}; by default those of the trace."
    )
    coordinates: int = option(
        COUNT, "L of the plans, the gradient's length.", default=1_000_000
    )
    samples: float = option(_MODERATE, _SAMPLES, default=1)
    cycles: float | None = option(
        _MODERATE,
        (
            f"{_CYCLES} By default 1; with loads, such that an uncoded worker has "
            "their mean."
        ),
    )
    replicates: int = option(
        number(20, 100_000, include=True, whole=True),
        "Resamples for standard errors and p-values.",
        default=200,
    )
    out: str | None = option(_NEW_FILE, _PLAN, metavar="FILE.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file("--out", self.out, (".json",))


@dataclasses.dataclass(frozen=True)
class SweepOptions(Comparing):
    """Solve a grid of problems over any of their numbers.

    All combinations of the axes are solved, each with its certificate; by `optimal`, if
    no --method is given. Without --out the rows are printed. With --out they go to the
    file chunk by chunk, and a summary is printed. If one combination cannot be solved,
    its row has a status that says why, and the others go on. With --method uncoded
    among others, rows say what each scheme saves.
    """

    after: ClassVar = f"""\b
Examples:
  bcgc sweep --workers 2:50 --coordinates 20000 --samples 50 \\
             --cycle-time shifted-exponential:shift=50 --axis rate=1e-4:1e-1:33:log \\
             --method optimal --method single_block --out sweep.csv
  bcgc sweep --workers 10 --coordinates 40000 \\
             --cycle-time shifted-exponential:rate=0.1,shift=1 \\
             --deadline 1e6:8e6:29 --objective completion-probability --format csv
  bcgc sweep --workers 10 --coordinates 2000 \\
             --cycle-time gamma:shape=4,rate=4 --send-time 0,0.1 \\
             --start-up 0,1e3
  bcgc sweep … --out sweep.csv --resume       continues an interrupted sweep

An axis: 3, or 1,2,5, or LOW:HIGH:COUNT in equal steps, LOW:HIGH:COUNT:log in equal
ratios; of whole numbers also LOW:HIGH, all of them.

{_LAWS}

{_METHODS}"""

    workers: "np.ndarray | None" = option(
        axis(WORKERS), f"N, {_AT_MOST}; by default those of the trace."
    )
    coordinates: "np.ndarray" = option(
        axis(COUNT), "L, the gradient's length.", required=True
    )
    samples: "np.ndarray" = option(axis(_POSITIVE), _SAMPLES, default=1)
    cycles: "np.ndarray" = option(axis(_POSITIVE), _CYCLES, default=1)
    setup_cycles: "np.ndarray | None" = option(axis(_FROM_ZERO), _SETUP_CYCLES)
    forward: "np.ndarray | None" = option(axis(FORWARD), _FORWARD)
    start_up: "np.ndarray | None" = option(axis(_FROM_ZERO), _START_UP)
    send_time: "np.ndarray | None" = option(axis(_FROM_ZERO), _SEND_TIME)
    chain_cycles: "np.ndarray | None" = option(axis(_FROM_ZERO), _CHAIN_CYCLES)
    cycle_time: tuple[str, dict[str, float]] | None = option(
        OPEN_LAW,
        "Distribution, NAME:PARAMETER=VALUE,…; an --axis may give more parameters.",
    )
    axes: "tuple[tuple[str, np.ndarray], ...]" = option(
        typed.PARAMETER,
        "Values of a parameter of the distribution; repeat it.",
        "--axis",
        multiple=True,
    )
    deadline: "np.ndarray | None" = option(
        axis(_POSITIVE), "Also print P(runtime ≤ deadline)."
    )
    partitions: bool = option(bool, "Also give the partitions, rounded.")
    out: str | None = option(_NEW_FILE, "Write to FILE.csv, chunk by chunk.")
    resume: bool = option(
        bool, "Continue the file of --out where an earlier call was interrupted."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file("--out", self.out, (".csv",))
        if self.resume and self.out is None:
            raise click.UsageError("--resume goes on with a file: give it with --out")
        if len(dict(self.axes)) < len(self.axes):
            raise click.UsageError("a parameter has two axes: give each --axis once")
        if self.trace is not None and self.axes:
            raise click.UsageError(
                "the distribution of a --trace has no parameters: drop --axis"
            )


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the version, also of a clone; it is looked up here, for that takes time."""
    if asked:
        click.echo(f"bcgc, version {bcgc_jax.__version__}")
        context.exit()


_VERSION: Any = {
    "is_flag": True,
    "is_eager": True,
    "expose_value": False,
    "callback": _version,
}


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", help="Show the version and exit.", **_VERSION)
def cli() -> None:
    """Block coordinate gradient coding: how much redundancy should each block get?"""


for _options in (AdviseOptions, SolveOptions, FitOptions, SweepOptions):
    cli.add_command(Command(_options))
