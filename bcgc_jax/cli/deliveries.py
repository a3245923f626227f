"""Start-up, link and chain on the command line: options of problems whose workers do not only compute."""

import dataclasses
from typing import TYPE_CHECKING, Any

from bcgc_jax.cli.arguments import (
    Axis,
    CycleTime,
    Number,
    NumberOrLaw,
    OpenCycleTime,
    refuse_without_effect,
)
from bcgc_jax.cli.options import option

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.laws import Law

# Before the names of the parameters of a start-up's law, where they are columns.
START_UP = "start_up."

_NUMBER = Number(include=True)
_AXIS = Axis(_NUMBER)


# What the options say, with the use of a number.
_START_UP = (
    "S, before a worker's first cycle, in the unit of runtimes: a number{}, or a law as for --cycle-time."
)
_SEND_TIME = "c, of a worker's link, for one coordinate{}."
_OVERLAP = "The link sends while the worker computes."
_CHAIN_CYCLES = "h, cycles per sample, subset and coordinate that a cotangent is carried past{}."
_USE = ": an axis"


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What was asked of one problem."""

    start_up: "Law | float | None" = option(NumberOrLaw(_NUMBER, CycleTime()), _START_UP.format(""))
    send_time: float | None = option(_NUMBER, _SEND_TIME.format(""))
    overlap: bool = option(bool, _OVERLAP)
    chain_cycles: float | None = option(_NUMBER, _CHAIN_CYCLES.format(""))

    def __post_init__(self) -> None:
        _refuse_idle_overlap(self.send_time)

    @property
    def random(self) -> bool:
        """Whether the start-ups have a law."""
        return not isinstance(self.start_up, float | None)

    def keywords(self) -> dict[str, Any]:
        """Those of `Problem` that were given."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


@dataclasses.dataclass(frozen=True)
class DeliveryAxes:
    """The same of a grid of problems: axes; of a law of start-ups the name, and its parameters that are not
    left to --axis.
    """

    start_up: "np.ndarray | tuple[str, dict[str, float]] | None" = option(
        NumberOrLaw(_AXIS, OpenCycleTime()), _START_UP.format(_USE)
    )
    send_time: "np.ndarray | None" = option(_AXIS, _SEND_TIME.format(_USE))
    overlap: bool = option(bool, _OVERLAP)
    chain_cycles: "np.ndarray | None" = option(_AXIS, _CHAIN_CYCLES.format(_USE))

    def __post_init__(self) -> None:
        _refuse_idle_overlap(self.send_time)

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


def _refuse_idle_overlap(send_time: Any) -> None:
    if send_time is None:
        refuse_without_effect("without --send-time", "overlap")
