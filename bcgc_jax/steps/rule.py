"""When a step has ended: the base of all rules."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from bcgc_jax.steps.steps import Outcome, Steps


class Rule:
    """Says when a step has ended, for workers that go by a plan.

    Those of `plans` answer for a law, by what workers have spent after each task; a
    `LogRule` for the steps of a log.

    Attributes:
      exact_gradient: whether what comes of it is the gradient of all data.
      bound_of: which plans a lower bound of such a plan is for: "levels", all
        partitions of the levels in question; "groups", all sizes of blocks of these
        groups; "storage", every exact scheme of workers that store as much; "" if there
        is none.
    """

    exact_gradient: bool = True
    bound_of: ClassVar[str] = ""


class LogRule(Rule, ABC):
    """Says when the steps of a log have ended."""

    @abstractmethod
    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        """How the steps end, or those of `which` alone, `[S]` bool.

        A rule may look at steps before these.
        """
