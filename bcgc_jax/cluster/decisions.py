"""Uncoded or work sharing on processes: what a `Judge` hears, and what it says."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.cluster.rounds import Work
from bcgc_jax.handout.judge import DoneStep
from bcgc_jax.schemes.sharing import Sharing
from bcgc_jax.steps.mode import Mode
from bcgc_jax.steps.placement import Placement


class Decision(NamedTuple):
    """The scheme of a training was changed, or was not, for all that sharing would
    save.

    Attributes:
      step: the first iteration with the new scheme.
      before, after: "uncoded", or "sharing:D:C".
      uncoded, sharing: mean seconds of the last steps in either scheme, measured or
        replayed.
      reason: in a sentence.
    """

    step: int
    before: str
    after: str
    uncoded: float
    sharing: float
    reason: str = ""


def subset_times(work: Sequence[Work], num_workers: int) -> np.ndarray:
    """Workers' seconds for their subsets, uncoded; the longest if unknown, `[N]`."""
    done = {item.worker: item.done for item in work}
    longest = max(done.values())
    return np.array([done.get(worker, longest) for worker in range(num_workers)])


def uncoded_step(work: Sequence[Work], place: Placement) -> DoneStep:
    """Chunks are not timed one by one: those of a worker are taken to be alike."""
    workers, chunks = place.num_workers, place.chunks
    seconds = np.repeat(subset_times(work, workers) / chunks, chunks)
    who = np.repeat(np.arange(workers), chunks)
    return DoneStep(False, who, seconds, starts=np.zeros(workers))


def shared_step(work: Sequence[Work], place: Placement, took: float) -> DoneStep | None:
    """The first of each chunk's copies that was done; None if one was never heard."""
    first: dict[tuple[int | None, int], Work] = {}
    for item in work:
        first.setdefault((item.subset, item.block), item)
    if len(first) != place.num_workers * len(place.sizes):
        return None
    items = [first[chunk] for chunk in sorted(first)]  # type: ignore[type-var]
    return DoneStep(
        is_shared=True,
        who=np.array([item.worker for item in items]),
        seconds=np.array([item.seconds for item in items]),
        starts=np.zeros(place.num_workers),
        took=took,
    )


def reason(
    mode: Mode, max_subsets: int, compiling: float = 0.0, num_steps: int = 0
) -> str:
    r"""Why steps are shared or not, in a sentence.

    Args:
      mode: by the last steps.
      max_subsets: D.
      compiling: seconds that workers would compile for it, if that is why they do not.
      num_steps: of the training to come, which do not save these.

    >>> mode = Mode().after(0.5, 0.4).after(0.5, 0.4)
    >>> print(reason(mode, 2).replace(": ", ":\n"))
    share the work, with two subsets stored (sharing:2):
    it saves 20 % of the last 2 steps
    >>> print(reason(mode, 2, compiling=3.0, num_steps=20).replace(": ", ":\n"))
    nothing here pays:
    sharing:2 saves 20 % of a step, 2 s in all, and compiling takes 3 s
    """
    scheme = Sharing(str(max_subsets), max_subsets)
    percent = 100 * mode.share
    if compiling:
        saved = num_steps * float(np.mean(mode.saved))
        return (
            f"nothing here pays: {scheme.name} saves {percent:.3g} % of a step, "
            f"{saved:.3g} s in all, and compiling takes {compiling:.3g} s"
        )
    steps = f"of the last {len(mode.saved)} steps"
    if mode.is_shared:
        return f"{scheme.advice}: it saves {percent:.3g} % {steps}"
    return f"nothing here pays: {scheme.name} saves {percent:.3g} % {steps}"
