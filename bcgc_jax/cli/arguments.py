"""What a person may type on the command line: numbers, laws; each refused in one clear line.

JAX comes with a law that is typed, and with nothing else here.
"""

import dataclasses
import difflib
import functools
import importlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bcgc_jax.cli.names import LAWS, METHODS, MOST_WORKERS, OBJECTIVES

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.laws import Law
    from bcgc_jax.solvers.methods import Method
    from bcgc_jax.solvers.schemes import Scheme

NO_DEADLINE = (
    "the most probable plan, --method deadline, --objective completion-probability or --min-completion, "
    "needs a --deadline"
)


def method_help() -> str:
    """The methods, and what is not in their names."""
    alpha = "the law's E[T | T > median] / E[T | T ≤ median]; the paper's figures take 6"
    return f"{METHODS}\n\ntandon_partial has α, {alpha}."


def law_help() -> str:
    """Each law with its parameters, those with a default in brackets."""
    return ", ".join(map(_usage, LAWS))


def _usage(law: str) -> str:
    given = (f"{name}=" if value is None else f"[{name}={value:g}]" for name, value in LAWS[law].items())
    return f"{law}:{','.join(given)}"


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """Around what imports JAX: click would write a line of its own for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.Abort from None


SEED = click.IntRange(0, 2**63 - 1)  # what a key is made of
_LARGEST = 2**53  # beyond it not all whole numbers are numbers
_LONGEST = 1_000_000  # numbers on an axis


class Number(click.ParamType):
    """A finite number above (or from) a bound, perhaps up to another; whole ones may be typed as 1e6."""

    name = "number"

    def __init__(
        self, low: float = 0, high: float = math.inf, *, include: bool = False, whole: bool = False
    ) -> None:
        self.low, self.include, self.whole = low, include, whole
        self.high = min(high, _LARGEST) if whole else high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | int:
        what = "a whole number" if self.whole else "a finite number"
        bound = f"{'at least' if self.include else 'above'} {self.low:g}" if math.isfinite(self.low) else ""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        good = math.isfinite(number) and (number > self.low or (self.include and number == self.low))
        if not good or (self.whole and number != int(number)):
            self.fail(f"must be {what} {bound}".rstrip() + f", got {value!r}", param, ctx)
        if number > self.high:
            self.fail(f"must be at most {self.high:,}, got {value!r}", param, ctx)
        return int(number) if self.whole else number


WORKERS = Number(1, MOST_WORKERS, include=True, whole=True)
AT_MOST = f"at most {MOST_WORKERS:,}"


class CycleTime(click.ParamType):
    """NAME:PARAMETER=VALUE,… of a law."""

    name = "law"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, given = self.read(str(value), param, ctx)
        missing = missing_parameters(name, given)
        if missing:
            self.fail(f"{', '.join(missing)} missing in {value!r}; expected {_usage(name)}", param, ctx)
        try:
            return law_class(name)(**given)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def read(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, dict[str, float]]:
        """The law's name and the parameters that were typed."""
        name, _, text = value.partition(":")
        if name not in LAWS:
            near = difflib.get_close_matches(name, LAWS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.fail(f"unknown law {name!r}{hint}; known: {', '.join(LAWS)}", param, ctx)
        usage, known = _usage(name), LAWS[name]
        given: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            key, equals, number = part.partition("=")
            key = key.strip()
            if not equals or key not in known:
                self.fail(f"cannot read {part!r} in {value!r}; expected {usage}", param, ctx)
            if key in given:
                self.fail(f"{key} is given twice in {value!r}", param, ctx)
            try:
                given[key] = float(number)
            except ValueError:
                self.fail(f"{key} must be a number, got {number!r}; expected {usage}", param, ctx)
        return name, given


class WorkersCycleTime(CycleTime):
    """NAME:PARAMETER=VALUE,… of a law, or COUNT*NAME:… for some workers: (count or None, law)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        count, star, text = str(value).rpartition("*")
        number = Number(1, include=True, whole=True).convert(count, param, ctx) if star else None
        return number, super().convert(text, param, ctx)


class OpenCycleTime(CycleTime):
    """NAME:PARAMETER=VALUE,… where parameters may be left to axes: (name, those that were typed)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.read(str(value), param, ctx)


def missing_parameters(law: str, given: Collection[str]) -> list[str]:
    """Parameters of a law that have no default and are not given."""
    return [name for name, default in LAWS[law].items() if default is None and name not in given]


def law_class(law: str) -> type["Law"]:
    """What a name stands for."""
    with interrupted_at_once():
        from bcgc_jax import laws
    found: type[Law] = getattr(laws, "".join(part.capitalize() for part in law.split("-")))
    return found


def law_name(law: type["Law"]) -> str:
    """What a law is called on the command line."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", law.__name__).lower()


class Axis(click.ParamType):
    """Numbers: 3, or 1,2,5, or LOW:HIGH:COUNT with equal steps, LOW:HIGH:COUNT:log with equal ratios."""

    name = "axis"

    def __init__(self, number: Number) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "np.ndarray":
        import numpy as np

        if isinstance(value, np.ndarray | int | float):
            return np.atleast_1d(np.asarray(value, int if self.number.whole else float))

        def number(text: str) -> float:
            return self.number.convert(text, param, ctx)

        if ":" not in str(value):
            return np.unique([number(text) for text in str(value).split(",")])
        low, high, *rest = str(value).split(":")
        first, last = number(low), number(high)
        logarithmic = rest[-1:] == ["log"]
        rest = rest[:-1] if logarithmic else rest
        whole = self.number.whole
        if len(rest) > 1 or (not rest and (logarithmic or not whole)) or last < first:
            self.fail(
                f"must be numbers such as 1,2,5, or LOW:HIGH:COUNT, LOW:HIGH:COUNT:log, LOW not above HIGH, "
                f"got {value!r}",
                param,
                ctx,
            )
        if logarithmic and first <= 0:
            self.fail(f"a logarithmic axis starts above 0, got {value!r}", param, ctx)
        count = Number(1, include=True, whole=True).convert(rest[0], param, ctx) if rest else last - first + 1
        if count > _LONGEST:
            self.fail(f"an axis has at most {_LONGEST:,} numbers, got {value!r}", param, ctx)
        count = int(count)
        values = np.geomspace(first, last, count) if logarithmic else np.linspace(first, last, count)
        return np.unique(np.round(values).astype(int)) if whole else values


class NamedAxis(click.ParamType):
    """PARAMETER=AXIS."""

    name = "parameter=axis"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "tuple[str, np.ndarray]":
        name, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"must be PARAMETER=NUMBERS such as rate=1e-4:1e-1:33:log, got {value!r}", param, ctx)
        return name.strip(), Axis(Number(-math.inf)).convert(text, param, ctx)


def ranges(levels: Sequence[int]) -> str:
    """Ascending whole numbers as `Levels` reads them, three and more in a row as a range.

    >>> ranges([0, 1, 4, 5, 6])
    '0,1,4-6'
    """
    runs: list[list[int]] = []
    for level in levels:
        if runs and level == runs[-1][-1] + 1:
            runs[-1].append(level)
        else:
            runs.append([level])
    texts = (f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
    return ",".join(texts)


def refuse_without_effect(reason: str, *names: str) -> None:
    """UsageError for the first of these parameters that was typed: here it would change nothing."""
    context = click.get_current_context()
    for param in context.command.params:
        typed = context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if param.name in names and typed:
            raise click.UsageError(f"{param.opts[0]} has no effect {reason}")


round_trip_option = click.option(
    "--round-trip",
    type=Number(include=True),
    default=0.0,
    show_default=True,
    help="What a question of the master takes, in the unit of runtimes: of sharing:CHUNKS.",
)


def with_round_trip(method: "Method | Scheme", round_trip: float) -> "Method | Scheme":
    """`method`; one that asks for chunks does so in `round_trip`."""
    from bcgc_jax.solvers.methods import Sharing

    return dataclasses.replace(method, round_trip=round_trip) if isinstance(method, Sharing) else method


def refuse_round_trip_of_none(methods: Sequence[str]) -> None:
    """UsageError for --round-trip where no method asks for chunks."""
    if not any(name.partition(":")[0] == "sharing" for name in methods):
        refuse_without_effect("without a --method sharing:CHUNKS", "round_trip")


class Levels(click.ParamType):
    """Whole numbers and ranges: 0,3,7-9."""

    name = "levels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        levels: set[int] = set()
        for part in str(value).split(","):
            low, dash, high = part.strip().partition("-")
            if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
                self.fail(f"must be levels and ranges such as 0,3,7-9, got {value!r}", param, ctx)
            if int(high or low) >= MOST_WORKERS:
                self.fail(f"levels are below N, and N is at most {MOST_WORKERS:,}: got {value!r}", param, ctx)
            levels.update(range(int(low), int(high or low) + 1))
        return tuple(sorted(levels))


objective_option = click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default=OBJECTIVES[0],
    show_default=True,
    help="What is to be best; the second is the method `deadline`, and needs --deadline.",
)

format_option = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="What is printed.",
)


def _load_schemes(ctx: click.Context, param: click.Parameter, path: str | None) -> "list[Scheme]":
    if path is None:
        return []
    with interrupted_at_once():
        from bcgc_jax.solvers.schemes import load_schemes
    try:
        return load_schemes(path)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


schemes_option = click.option(
    "--schemes",
    type=click.Path(),
    callback=_load_schemes,
    help="Python file with a list SCHEMES of bcgc_jax.Scheme: schemes of your own.",
)


def plan_option(which: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --out of a command whose plans are solutions."""
    return click.option(
        "--out",
        type=click.Path(),
        metavar="FILE.json",
        help=f"Also write {which}, with its certificate, to a JSON file; in Python "
        "bcgc_jax.Solution.load(FILE.json) reads it.",
    )


def answered_by(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of a command go to the function `answer` of a file beside this one.

    It is imported now, and JAX with it: not for help, nor to refuse what was typed.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def answer(**options: Any) -> None:
            with interrupted_at_once():
                module = importlib.import_module(f"bcgc_jax.cli.{name}")
                compilation = importlib.import_module("bcgc_jax.cli.compilation")
            compilation.keep_programs(click.get_current_context().find_root().params["compilation_cache"])
            module.answer(**options)

        return answer

    return decorate
