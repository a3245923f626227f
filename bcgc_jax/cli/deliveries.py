"""Start-up, link and chain on the command line: options of problems whose workers do not only compute."""

import dataclasses
from typing import TYPE_CHECKING, Any

from bcgc_jax.cli.arguments import CycleTime, Number, NumberOrLaw, refuse_without_effect
from bcgc_jax.cli.options import option

if TYPE_CHECKING:
    from bcgc_jax.distributions import Law

# Before the names of the parameters of a start-up's law, where they are columns.
START_UP = "start_up."

_NUMBER = Number(include=True)
# What the options say.
START_UP_HELP = (
    "S, before a worker's first cycle, in the unit of runtimes: a number, or a law as for --cycle-time."
)
SEND_TIME_HELP = "c, of a worker's link, for one coordinate."
OVERLAP_HELP = "The link sends while the worker computes."
CHAIN_CYCLES_HELP = "h, cycles per sample, subset and coordinate that a cotangent is carried past."


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What was asked of one problem."""

    start_up: "Law | float | None" = option(NumberOrLaw(_NUMBER, CycleTime()), START_UP_HELP)
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
