"""What a person may type on the command line: numbers, laws; each refused in one clear line.

JAX comes with a law that is typed, and with nothing else here.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bcgc_jax.cli.names import LAWS, MOST_WORKERS, SYNONYMS

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.distributions import Distribution


def law_help() -> str:
    """Each law with its parameters, those with a default in brackets."""
    return ", ".join(map(_usage, LAWS))


def _usage(law: str) -> str:
    given = (f"{name}=" if value is None else f"[{name}={value:g}]" for name, value in LAWS[law].items())
    return f"{law}:{','.join(given)}"


SEED = click.IntRange(0, 2**63 - 1)  # what a key is made of
_LARGEST = 2**53  # beyond it not all whole numbers are numbers
_LONGEST = 1_000_000  # numbers on an axis


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the `known` names, in brackets, if one is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class Argument(click.ParamType):
    """What `read` makes of the text that was typed; its ValueError is the refusal."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self.read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.read(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Number(Argument):
    """A finite number above (or from) `low`, at most `high`; whole ones may be typed as 1e6."""

    def __init__(
        self, low: float = 0, high: float = math.inf, *, include: bool = False, whole: bool = False
    ) -> None:
        super().__init__("number", self.number)
        self.low, self.include, self.whole = low, include, whole
        self.high = min(high, _LARGEST) if whole else high

    def number(self, text: str) -> float | int:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        good = math.isfinite(number) and (number > self.low or (self.include and number == self.low))
        if not good or (self.whole and number != int(number)):
            what = "a whole number" if self.whole else "a finite number"
            bound = (
                f"{'at least' if self.include else 'above'} {self.low:g}" if math.isfinite(self.low) else ""
            )
            raise ValueError(f"must be {what} {bound}".rstrip() + f", got {text!r}")
        if number > self.high:
            raise ValueError(f"must be at most {self.high:,}, got {text!r}")
        return int(number) if self.whole else number


COUNT = Number(1, include=True, whole=True)
WORKERS = Number(1, MOST_WORKERS, include=True, whole=True)


def read_open_law(text: str) -> tuple[str, dict[str, float]]:
    """NAME:PARAMETER=VALUE,… where parameters may be left to axes: the name, and those that were typed."""
    name, _, parameters = text.partition(":")
    if name not in LAWS:
        raise ValueError(f"unknown distribution {name!r}{did_you_mean(name, LAWS)}; known: {', '.join(LAWS)}")
    given: dict[str, float] = {}
    for part in filter(None, parameters.split(",")):
        key, equals, number = (word.strip() for word in part.partition("="))
        key = SYNONYMS.get(key, key)
        if not equals or key not in LAWS[name]:
            hint = did_you_mean(key, LAWS[name])
            raise ValueError(f"cannot read {part!r} in {text!r}{hint}; expected {_usage(name)}")
        if key in given:
            raise ValueError(f"{key} is given twice in {text!r}")
        try:
            given[key] = float(number)
        except ValueError:
            raise ValueError(f"{key} must be a number, got {number!r}; expected {_usage(name)}") from None
    return name, given


def read_law(text: str) -> "Distribution":
    """NAME:PARAMETER=VALUE,… of a law."""
    name, given = read_open_law(text)
    missing = missing_parameters(name, given)
    if missing:
        raise ValueError(f"{', '.join(missing)} missing in {text!r}; expected {_usage(name)}")
    return law_class(name)(**given)


def read_law_of_workers(text: str) -> "tuple[int | None, Distribution]":
    """NAME:PARAMETER=VALUE,… of a law, or COUNT*NAME:… for some workers: the count, if there is one, too."""
    count, star, law = text.rpartition("*")
    return COUNT.read(count) if star else None, read_law(law)


def number_or_law(number: Argument, law: Callable[[str], Any]) -> Argument:
    """Numbers of one kind, or NAME:PARAMETER=VALUE,… of a law of another."""
    return Argument("number or law", lambda text: (law if text[:1].isalpha() else number.read)(text))


def missing_parameters(law: str, given: Collection[str]) -> list[str]:
    """Parameters of a law that have no default and are not given."""
    return [name for name, default in LAWS[law].items() if default is None and name not in given]


def law_class(law: str) -> type["Distribution"]:
    """What a name stands for."""
    from bcgc_jax import distributions

    found: type[Distribution] = getattr(distributions, "".join(part.capitalize() for part in law.split("-")))
    return found


def law_name(law: type) -> str:
    """What a law is called on the command line."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", law.__name__).lower()


def axis(number: Number) -> Argument:
    """Numbers: 3, or 1,2,5, or LOW:HIGH:COUNT with equal steps, LOW:HIGH:COUNT:log with equal ratios."""

    def read(text: str) -> "np.ndarray":
        import numpy as np

        if ":" not in text:
            return np.unique([number.read(part) for part in text.split(",")])
        low, high, *rest = text.split(":")
        first, last, logarithmic = number.read(low), number.read(high), rest[1:] == ["log"]
        if last < first or (not rest and not number.whole) or len(rest) > 1 + logarithmic:
            raise ValueError(
                f"must be numbers such as 1,2,5, or LOW:HIGH:COUNT, LOW:HIGH:COUNT:log, LOW not above HIGH, "
                f"got {text!r}"
            )
        if logarithmic and first <= 0:
            raise ValueError(f"a logarithmic axis starts above 0, got {text!r}")
        count = int(COUNT.read(rest[0]) if rest else last - first + 1)
        if count > _LONGEST:
            raise ValueError(f"an axis has at most {_LONGEST:,} numbers, got {text!r}")
        values = (np.geomspace if logarithmic else np.linspace)(first, last, count)
        return np.unique(np.round(values).astype(int)) if number.whole else values

    return Argument("axis", read)


def read_named_axis(text: str) -> "tuple[str, np.ndarray]":
    """PARAMETER=AXIS."""
    name, equals, numbers = (word.strip() for word in text.partition("="))
    if not equals:
        raise ValueError(f"must be PARAMETER=NUMBERS such as rate=1e-4:1e-1:33:log, got {text!r}")
    return SYNONYMS.get(name, name), axis(Number(-math.inf)).read(numbers)


def read_where(text: str) -> tuple[str, float]:
    """COLUMN=NUMBER."""
    name, equals, number = (word.strip() for word in text.partition("="))
    if not equals:
        raise ValueError(f"must be COLUMN=NUMBER such as num_workers=20, got {text!r}")
    return name, float(Number(-math.inf).read(number))


def read_levels(text: str) -> tuple[str, tuple[int, ...]]:
    """Whole numbers and ranges: 0,3,7-9; as they were typed, and all of them."""
    levels: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if high < low:
            raise ValueError(f"must be levels and ranges such as 0,3,7-9, got {text!r}")
        if high >= MOST_WORKERS:
            raise ValueError(f"levels are below N, and N is at most {MOST_WORKERS:,}: got {text!r}")
        levels.update(range(low, high + 1))
    return text, tuple(sorted(levels))


def refuse_without_effect(reason: str, *names: str) -> None:
    """UsageError for the first of these parameters that was typed: here it would change nothing."""
    context = click.get_current_context()
    for param in context.command.params:
        typed = context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if param.name in names and typed:
            raise click.UsageError(f"{param.opts[0]} has no effect {reason}")
