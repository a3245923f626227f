"""When a step has ended: what every rule answers."""

from abc import ABC, abstractmethod

import numpy as np

from bcgc_jax.steps.steps import Outcome, Steps


class Rule(ABC):
    """Says when the steps of a log have ended, for workers that go by a plan."""

    @abstractmethod
    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        """How the steps end, or those of `which` alone, `[S]` bool.

        A rule may look at steps before these.
        """
