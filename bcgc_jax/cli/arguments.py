"""What may be typed on the command line: names, numbers, distributions; else one line
refuses it.

JAX comes with a distribution that is typed, and with nothing else here. What the names
stand for is the library's, and `tests/cli/test_imports.py` tests that both agree.
"""

import difflib
import glob
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bcgc_jax._limits import MOST_WORKERS
from bcgc_jax.balancing.scheme_names import ALONE, METHODS, NUMBERED, REPLACED

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.distributions import Distribution

MOST_CHUNKS = 2**10  # as in Python
_MOST_COST = 1e30
_MOST_FORWARD = 10  # 47 is rather 47 %
OBJECTIVES = ("expected-runtime", "completion-probability")

# Parameters of distributions, with their defaults. The class of shifted-exponential is
# ShiftedExponential.
LAWS: dict[str, dict[str, float | None]] = {
    "shifted-exponential": {"rate": None, "shift": 0.0},
    "exponential": {"rate": None},
    "weibull": {"scale": None, "shape": None, "shift": 0.0},
    "pareto": {"scale": None, "shape": None},
    "lognormal": {"location": None, "scale": None, "shift": 0.0},
    "gamma": {"shape": None, "rate": None, "shift": 0.0},
    "uniform": {"low": None, "high": None},
    "two-speed": {"fast": None, "slow": None, "probability": None},
    "deterministic": {"value": None},
}
SYNONYMS = {"concentration": "shape"}  # read as well
_NOT_FITTED = ("two-speed", "deterministic")
FITTED_LAWS = tuple(law for law in LAWS if law not in _NOT_FITTED)

LAYOUTS = ("auto", "long", "wide")
LOG_COLUMNS = (
    *("step", "worker", "host", "seconds", "wait"),
    *("chunk", "forward_seconds", "load"),
)
TIME_UNITS = ("s", "ms", "us", "ns")
TRACE_LAWS = ("auto", "atoms", "smooth", "pareto-tail")

PICTURES = (".png", ".svg", ".pdf")


def law_usage(law: str) -> str:
    """A distribution with its parameters, those with a default in brackets."""
    parameters = (
        f"{name}=" if value is None else f"[{name}={value:g}]"
        for name, value in LAWS[law].items()
    )
    return f"{law}:{','.join(parameters)}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of the `names`, in brackets, if one is near."""
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f" (did you mean {near[0]}?)"
    return ""


class Argument(click.ParamType):
    """What `read` makes of the text that was typed; its ValueError is the refusal."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self.read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        try:
            return self.read(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class LogPath(click.Path):
    """A file, a folder, standard input, or a pattern that no shell has expanded."""

    def __init__(self) -> None:
        super().__init__(exists=True, allow_dash=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if glob.glob(value, recursive=True):
            return value
        return super().convert(value, param, ctx)


def number(
    low: float = 0,
    high: float = math.inf,
    *,
    include: bool = False,
    whole: bool = False,
) -> Argument:
    """A finite number above (or from) `low`, at most `high`; 1e6 counts as whole."""
    # a larger float may be no whole number that was typed
    if whole:
        high = min(high, 2**53)
    bound = ""
    if low > -math.inf:
        if include:
            bound = f" at least {low:g}"
        else:
            bound = f" above {low:g}"

    kind = "finite"
    if whole:
        kind = "whole"

    def read(text: str) -> float | int:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        good = math.isfinite(value) and (value > low or (include and value == low))
        if not good or (whole and value != int(value)):
            raise ValueError(f"must be a {kind} number{bound}, got {text!r}")
        if value > high:
            highest = f"{high:,}" if isinstance(high, int) else f"{high:g}"
            raise ValueError(f"must be at most {highest}, got {text!r}")
        if whole:
            return int(value)
        return value

    return Argument("number", read)


COUNT = number(1, include=True, whole=True)
WORKERS = number(1, MOST_WORKERS, include=True, whole=True)
_POINTS = number(1, 10**6, include=True, whole=True)  # on an axis


def read_open_law(text: str) -> tuple[str, dict[str, float]]:
    """Read NAME:PARAMETER=VALUE,…: the name, and those typed; axes may give others."""
    name, _, parameters = text.partition(":")
    if name not in LAWS:
        raise ValueError(
            f"unknown distribution {name!r}{did_you_mean(name, LAWS)}; known: "
            f"{', '.join(LAWS)}"
        )
    values: dict[str, float] = {}
    for part in filter(None, parameters.split(",")):
        key, _, number = (word.strip() for word in part.partition("="))
        key = SYNONYMS.get(key, key)
        expected = key in LAWS[name] and key not in values
        try:
            values[key] = float(number if expected else "")
        except ValueError:
            hint = ""
            if key not in LAWS[name]:
                hint = did_you_mean(key, LAWS[name])
            refusal = (
                f"cannot read {part!r} in {text!r}{hint}; expected {law_usage(name)}"
            )
            raise ValueError(refusal) from None
    return name, values


def read_law(text: str) -> "Distribution":
    """NAME:PARAMETER=VALUE,… of a distribution."""
    name, values = read_open_law(text)
    if missing := missing_parameters(name, values):
        raise ValueError(
            f"{', '.join(missing)} missing in {text!r}; expected {law_usage(name)}"
        )
    return law_class(name)(**values)


def read_law_of_workers(text: str) -> "tuple[int | None, Distribution]":
    """Read NAME:PARAMETER=VALUE,… or COUNT*NAME:…: count or None, distribution."""
    count, star, law = text.rpartition("*")
    return WORKERS.read(count) if star else None, read_law(law)


def missing_parameters(law: str, names: Collection[str]) -> list[str]:
    return [
        name
        for name, default in LAWS[law].items()
        if default is None and name not in names
    ]


def law_class(law: str) -> type["Distribution"]:
    from bcgc_jax import distributions

    kind: type[Distribution] = getattr(distributions, law.title().replace("-", ""))
    return kind


def law_name(law: type) -> str:
    """What a distribution is called on the command line."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", law.__name__).lower()


def axis(number: Argument) -> Argument:
    """Return the argument that reads 3, or 1,2,5, or LOW:HIGH:COUNT in equal steps.

    LOW:HIGH:COUNT:log is in equal ratios.
    """

    def read(text: str) -> "np.ndarray":
        import numpy as np

        if ":" not in text:
            return np.unique([number.read(part) for part in text.split(",")])
        low, high, *tail = text.split(":")
        first = number.read(low)
        last = number.read(high)
        logarithmic = tail[1:] == ["log"]
        whole = isinstance(first, int)
        in_order = first <= last and not (logarithmic and first <= 0)
        complete = (tail or whole) and len(tail) <= 1 + logarithmic
        if not (in_order and complete):
            raise ValueError(
                "must be numbers such as 1,2,5, LOW:HIGH:COUNT, or above 0 "
                f"LOW:HIGH:COUNT:log, LOW not above HIGH, got {text!r}"
            )
        count = _POINTS.read(tail[0] if tail else str(last - first + 1))
        values = (np.geomspace if logarithmic else np.linspace)(first, last, count)
        if whole:
            return np.unique(np.round(values).astype(int))
        return values

    return Argument("axis", read)


def named(form: str, example: str, value: Argument) -> Argument:
    """NAME=VALUE, which the help calls `form`: the name, and the value read."""

    def read(text: str) -> tuple[str, Any]:
        name, equals, typed = (word.strip() for word in text.partition("="))
        if not equals:
            raise ValueError(f"must be {form} such as {example}, got {text!r}")
        return SYNONYMS.get(name, name), value.read(typed)

    return Argument(form, read)


def read_levels(text: str) -> tuple[str, tuple[int, ...]]:
    """Whole numbers and ranges: 0,3,7-9; as they were typed, and all of them."""
    levels: set[int] = set()
    for part in text.split(","):
        part_levels = _range_of_levels(part)
        if not part_levels:
            below = f"below N, which is at most {MOST_WORKERS:,}"
            raise ValueError(
                f"must be levels and ranges such as 0,3,7-9, {below}, got {text!r}"
            )
        levels.update(part_levels)
    return text, tuple(sorted(levels))


def _range_of_levels(text: str) -> range:
    """Read 3 or 7-9; the range is empty where it is neither."""
    ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", text)
    if ends is None:
        return range(0)
    low = int(ends[1])
    high = int(ends[2] or ends[1])
    if high < MOST_WORKERS:
        return range(low, high + 1)
    return range(0)


def read_method(text: str) -> str:
    """NAME or NAME:NUMBER; what the number may be the library knows."""
    kind = text.partition(":")[0]
    kinds = {*ALONE, *NUMBERED}
    # The library says what to take in place of a name of old.
    if kind not in kinds | {*REPLACED}:
        raise ValueError(
            f"no method {kind!r}{did_you_mean(kind, kinds)}; known: {METHODS}"
        )
    return text


def read_forward(text: str) -> float:
    """0.47 or 47%: a forward pass as a ratio to a backward pass."""
    digits, percent, remainder = text.partition("%")
    try:
        ratio = float("" if remainder.strip() else digits) / (100 if percent else 1)
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= _MOST_FORWARD:
        expected = (
            f"a ratio to the backward pass from 0 to {_MOST_FORWARD}, such as 0.47 or "
            "47%"
        )
        raise ValueError(f"must be {expected}, got {text!r}")
    return ratio


def read_columns(text: str) -> dict[str, str]:
    """NAME=COLUMN,…: how a file calls its columns."""
    columns: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, column = (word.strip() for word in part.partition("="))
        if name not in LOG_COLUMNS or not equals or not column:
            expected = f"NAME=COLUMN,… with names of {', '.join(LOG_COLUMNS)}"
            raise ValueError(
                f"must be {expected}, got {part!r}{did_you_mean(name, LOG_COLUMNS)}"
            )
        columns[name] = column
    return columns


def read_cost(text: str) -> tuple[float, float]:
    """a,b of a L + b L²: what a chunk of length L costs."""
    try:
        a, b = map(float, text.split(","))
    except ValueError:
        a = b = math.nan
    is_known = 0 <= a <= _MOST_COST and 0 <= b <= _MOST_COST
    if not is_known or a + b < 1 / _MOST_COST:
        expected = (
            f"a,b of a L + b L², from 0 to {_MOST_COST:g} and not both 0, such as "
            "1,0.0001"
        )
        raise ValueError(f"must be {expected}, got {text!r}")
    return a, b


METHOD = Argument("method", read_method)
COST = Argument("a,b", read_cost)
FORWARD = Argument("ratio", read_forward)
LAW = Argument("distribution", read_law)
OPEN_LAW = Argument("distribution", read_open_law)
LAW_OF_WORKERS = Argument("distribution", read_law_of_workers)
LEVELS = Argument("levels", read_levels)
_ANY_NUMBER = number(-math.inf)
PARAMETER = named("PARAMETER=NUMBERS", "rate=1e-4:1e-1:33:log", axis(_ANY_NUMBER))
COLUMNS = Argument("names", read_columns)
TIME_UNIT = click.Choice(TIME_UNITS)


def refuse_without_effect(reason: str, *names: str) -> None:
    """Raise UsageError for the first typed one of parameters that change nothing."""
    context = click.get_current_context()
    for param in context.command.params:
        typed = (
            context.get_parameter_source(param.name or "")
            is ParameterSource.COMMANDLINE
        )
        if param.name in names and typed:
            raise click.UsageError(f"{param.opts[0]} has no effect {reason}")
