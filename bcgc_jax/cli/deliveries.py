"""Start-up, link and chain on the command line: options of problems whose workers do not only compute."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import (
    Axis,
    CycleTime,
    Number,
    OpenCycleTime,
    refuse_without_effect,
)

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.laws import Law

_NUMBER = Number(include=True)
# Before the names of the parameters of a start-up's law, where they are columns.
START_UP = "start_up."


class StartUp(click.ParamType):
    """Numbers of one kind, or NAME:PARAMETER=VALUE,… of a law of another."""

    name = "number or law"

    def __init__(self, number: click.ParamType, law: click.ParamType) -> None:
        self.number, self.law = number, law

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        first = str(value).partition(":")[0].partition(",")[0]
        try:
            float(first)
        except ValueError:
            return self.law.convert(value, param, ctx)
        return self.number.convert(value, param, ctx)


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What was asked of one problem."""

    start_up: "Law | float | None" = None
    send_time: float | None = None
    overlap: bool = False
    chain_cycles: float | None = None

    @property
    def random(self) -> bool:
        """Whether the start-ups have a law."""
        return not isinstance(self.start_up, float | None)

    def keywords(self) -> dict[str, Any]:
        """Those of `Problem` that were given."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}

    def refuse_unlike(self, cycle_times: Sequence[Any], keep_workers: bool) -> None:
        """UsageError for a law of start-ups beside workers that are not alike."""
        if self.random:
            refuse_law_of_unlike(cycle_times, keep_workers)


@dataclasses.dataclass(frozen=True)
class DeliveryAxes:
    """The same of a grid of problems: axes; of a law of start-ups the name, and its parameters that are not
    left to --axis.
    """

    start_up: "np.ndarray | tuple[str, dict[str, float]] | None" = None
    send_time: "np.ndarray | None" = None
    overlap: bool = False
    chain_cycles: "np.ndarray | None" = None

    @property
    def law(self) -> tuple[str, dict[str, float]] | None:
        """Of the start-ups, if they have one."""
        return self.start_up if isinstance(self.start_up, tuple) else None

    def axes(self) -> "dict[str, np.ndarray]":
        """Those of one number each, by their names."""
        return {name: value for name, value in vars(self).items() if hasattr(value, "shape")}

    def labels(self) -> dict[str, str]:
        """Columns of what is no number."""
        found = {} if self.law is None else {"start_up_law": self.law[0]}
        return found | ({"overlap": "true"} if self.overlap else {})


def refuse_law_of_unlike(cycle_times: Sequence[Any], keep_workers: bool) -> None:
    """UsageError where workers are not alike."""
    if keep_workers or len(cycle_times) > 1:
        what = "--keep-workers" if keep_workers else "several --cycle-time"
        raise click.UsageError(
            "--start-up may be a law only where all workers have one law of the cycle time, not with "
            f"{what}: give a number"
        )


def _options(start_up: StartUp, number: click.ParamType, kind: type, use: str) -> Callable[..., Any]:
    """Options of start-up, link and chain, given to a command as `delivery`, of `kind`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_delivery(
            *args: Any, start_up: Any, send_time: Any, overlap: bool, chain_cycles: Any, **given: Any
        ) -> None:
            if send_time is None:
                refuse_without_effect("without --send-time", "overlap")
            return command(*args, delivery=kind(start_up, send_time, overlap, chain_cycles), **given)

        for option in (
            click.option(
                "--chain-cycles",
                type=number,
                help=f"h, cycles per sample, subset and coordinate that a cotangent is carried past{use}.",
            ),
            click.option("--overlap", is_flag=True, help="The link sends while the worker computes."),
            click.option("--send-time", type=number, help=f"c, of a worker's link, for one coordinate{use}."),
            click.option(
                "--start-up",
                type=start_up,
                help=f"S, before a worker's first cycle, in the unit of runtimes: a number{use}, or a law "
                "as for --cycle-time.",
            ),
        ):
            with_delivery = option(with_delivery)
        return with_delivery

    return decorate


delivery_options = _options(StartUp(_NUMBER, CycleTime()), _NUMBER, Delivery, "")
delivery_axes = _options(StartUp(Axis(_NUMBER), OpenCycleTime()), Axis(_NUMBER), DeliveryAxes, ": an axis")
