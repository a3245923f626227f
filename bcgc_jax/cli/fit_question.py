"""What `bcgc fit` is asked: its options, checked before the work."""

import dataclasses
from typing import Any

from bcgc_jax.cli.destinations import PICTURES, check_file
from bcgc_jax.plotting import require_matplotlib


@dataclasses.dataclass(frozen=True)
class Question:
    """What `bcgc fit` was asked: its options."""

    file: str
    columns: dict[str, Any]
    laws: tuple[str, ...]
    workers: int | None
    coordinates: int
    samples: float
    cycles: float | None
    replicates: int | None
    seed: int
    figure: str | None
    out: str | None
    output: str

    @property
    def cycles_or_one(self) -> float:
        return 1.0 if self.cycles is None else self.cycles

    def __post_init__(self) -> None:
        if self.out is not None:
            check_file("--out", self.out)
        if self.figure is not None:
            check_file("--figure", self.figure, PICTURES)
            require_matplotlib()
