"""What a person may type on the command line: numbers, laws; each refused in one clear line.

JAX comes with a law that is typed, and with nothing else here.
"""

import difflib
import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bcgc_jax.cli.names import LAWS, METHODS, MOST_WORKERS, SYNONYMS

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.distributions import Distribution


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


SEED = click.IntRange(0, 2**63 - 1)  # what a key is made of
_LARGEST = 2**53  # beyond it not all whole numbers are numbers
_LONGEST = 1_000_000  # numbers on an axis


class Argument(click.ParamType):
    """What `read` makes of the text that was typed; its ValueError is the refusal."""

    name = "text"

    def read(self, text: str) -> Any:
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.read(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Number(Argument):
    """A finite number above (or from) a bound, perhaps up to another; whole ones may be typed as 1e6."""

    name = "number"

    def __init__(
        self, low: float = 0, high: float = math.inf, *, include: bool = False, whole: bool = False
    ) -> None:
        self.low, self.include, self.whole = low, include, whole
        self.high = min(high, _LARGEST) if whole else high

    def read(self, text: str) -> float | int:
        what = "a whole number" if self.whole else "a finite number"
        bound = f"{'at least' if self.include else 'above'} {self.low:g}" if math.isfinite(self.low) else ""
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        good = math.isfinite(number) and (number > self.low or (self.include and number == self.low))
        if not good or (self.whole and number != int(number)):
            raise ValueError(f"must be {what} {bound}".rstrip() + f", got {text!r}")
        if number > self.high:
            raise ValueError(f"must be at most {self.high:,}, got {text!r}")
        return int(number) if self.whole else number


WORKERS = Number(1, MOST_WORKERS, include=True, whole=True)
AT_MOST = f"at most {MOST_WORKERS:,}"


class OpenCycleTime(Argument):
    """NAME:PARAMETER=VALUE,… where parameters may be left to axes: (name, those that were typed)."""

    name = "law"

    def read(self, text: str) -> Any:
        name, _, parameters = text.partition(":")
        if name not in LAWS:
            near = difflib.get_close_matches(name, LAWS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"unknown law {name!r}{hint}; known: {', '.join(LAWS)}")
        given: dict[str, float] = {}
        for part in filter(None, parameters.split(",")):
            key, equals, number = part.partition("=")
            key = SYNONYMS.get(key.strip(), key.strip())
            if not equals or key not in LAWS[name]:
                raise ValueError(f"cannot read {part!r} in {text!r}; expected {_usage(name)}")
            if key in given:
                raise ValueError(f"{key} is given twice in {text!r}")
            try:
                given[key] = float(number)
            except ValueError:
                raise ValueError(f"{key} must be a number, got {number!r}; expected {_usage(name)}") from None
        return name, given


class CycleTime(OpenCycleTime):
    """NAME:PARAMETER=VALUE,… of a law."""

    def read(self, text: str) -> Any:
        name, given = super().read(text)
        missing = missing_parameters(name, given)
        if missing:
            raise ValueError(f"{', '.join(missing)} missing in {text!r}; expected {_usage(name)}")
        return law_class(name)(**given)


class WorkersCycleTime(CycleTime):
    """NAME:PARAMETER=VALUE,… of a law, or COUNT*NAME:… for some workers: (count or None, law)."""

    def read(self, text: str) -> Any:
        count, star, law = text.rpartition("*")
        return Number(1, include=True, whole=True).read(count) if star else None, super().read(law)


class NumberOrDistribution(Argument):
    """Numbers of one kind, or NAME:PARAMETER=VALUE,… of a law of another."""

    name = "number or law"

    def __init__(self, number: Argument, law: Argument) -> None:
        self.number, self.law = number, law

    def read(self, text: str) -> Any:
        try:
            float(re.split("[:,]", text)[0])
        except ValueError:
            return self.law.read(text)
        return self.number.read(text)


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


class Axis(Argument):
    """Numbers: 3, or 1,2,5, or LOW:HIGH:COUNT with equal steps, LOW:HIGH:COUNT:log with equal ratios."""

    name = "axis"

    def __init__(self, number: Number) -> None:
        self.number = number

    def read(self, text: str) -> "np.ndarray":
        import numpy as np

        if ":" not in text:
            return np.unique([self.number.read(part) for part in text.split(",")])
        low, high, *rest = text.split(":")
        first, last = self.number.read(low), self.number.read(high)
        logarithmic, whole = rest[-1:] == ["log"], self.number.whole
        rest = rest[:-1] if logarithmic else rest
        if len(rest) > 1 or (not rest and (logarithmic or not whole)) or last < first:
            raise ValueError(
                f"must be numbers such as 1,2,5, or LOW:HIGH:COUNT, LOW:HIGH:COUNT:log, LOW not above HIGH, "
                f"got {text!r}"
            )
        if logarithmic and first <= 0:
            raise ValueError(f"a logarithmic axis starts above 0, got {text!r}")
        count = int(Number(1, include=True, whole=True).read(rest[0]) if rest else last - first + 1)
        if count > _LONGEST:
            raise ValueError(f"an axis has at most {_LONGEST:,} numbers, got {text!r}")
        values = np.geomspace(first, last, count) if logarithmic else np.linspace(first, last, count)
        return np.unique(np.round(values).astype(int)) if whole else values


class NamedAxis(Argument):
    """PARAMETER=AXIS."""

    name = "parameter=axis"

    def read(self, text: str) -> "tuple[str, np.ndarray]":
        name, equals, numbers = text.partition("=")
        if not equals:
            raise ValueError(f"must be PARAMETER=NUMBERS such as rate=1e-4:1e-1:33:log, got {text!r}")
        return SYNONYMS.get(name.strip(), name.strip()), Axis(Number(-math.inf)).read(numbers)


class Levels(Argument):
    """Whole numbers and ranges: 0,3,7-9; as they were typed, and all of them."""

    name = "levels"

    def read(self, text: str) -> tuple[str, tuple[int, ...]]:
        levels: set[int] = set()
        for part in text.split(","):
            low, dash, high = part.strip().partition("-")
            if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
                raise ValueError(f"must be levels and ranges such as 0,3,7-9, got {text!r}")
            if int(high or low) >= MOST_WORKERS:
                raise ValueError(f"levels are below N, and N is at most {MOST_WORKERS:,}: got {text!r}")
            levels.update(range(int(low), int(high or low) + 1))
        return text, tuple(sorted(levels))


def refuse_without_effect(reason: str, *names: str) -> None:
    """UsageError for the first of these parameters that was typed: here it would change nothing."""
    context = click.get_current_context()
    for param in context.command.params:
        typed = context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if param.name in names and typed:
            raise click.UsageError(f"{param.opts[0]} has no effect {reason}")
