"""What a training says of itself while it runs: after each iteration, in a thread, to whoever listens."""

import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._extras import to_install
from bcgc_jax.coding.gradients import PyTree

# Evaluations that may wait for the one that runs; then the training waits for them.
_WAITING = 2


class Step(NamedTuple):
    """An iteration that is done: its number from 0, its `seconds`, the `scheme` and the workers that did it.

    `metrics` are what `evaluate` said of the parameters after it.
    """

    step: int
    seconds: float
    scheme: str
    num_workers: int
    metrics: Any


class Watch:
    """Evaluates parameters and tells listeners beside the training, one iteration after the other.

    At its end all is told. What was raised there a later `add` raises, or the end.
    """

    def __init__(self, evaluate: Callable[[PyTree], Any], told: Callable[[Step], None] | None) -> None:
        self._evaluate, self._told = evaluate, told
        self._x64 = bool(jnp.result_type(float) == jnp.float64)  # a setting of each thread
        self._thread = ThreadPoolExecutor(1)
        self._coming: list[Future[Any]] = []
        self.metrics: list[Any] = []

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._thread.shutdown()  # also after an error: what is done is to be on record
        if kind is None:
            self._take(0)

    def add(self, step: Step, params: PyTree) -> None:
        """An iteration's end; its metrics are to come."""
        self._take(_WAITING)
        self._coming.append(self._thread.submit(self._watched, step, params))

    def _watched(self, step: Step, params: PyTree) -> Any:
        with jax.enable_x64(self._x64):
            found = self._evaluate(params)
            if self._told is not None:
                self._told(step._replace(metrics=found))
        return found

    def _take(self, left: int) -> None:
        while len(self._coming) > left:
            self.metrics.append(self._coming.pop(0).result())


def _numbers(step: Step) -> dict[str, float]:
    """The metrics that are numbers, by their path in the pytree."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.metrics):
        if np.ndim(leaf) == 0 and np.asarray(leaf).dtype.kind in "biuf":
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[name or "metric"] = float(leaf)
    return found


def json_lines(path: str | os.PathLike[str]) -> Callable[[Step], None]:
    """For `after_step`: a line for each iteration at the end of a file, with the numbers of its metrics.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> json_lines(path)(Step(0, 0.25, "uncoded", 4, {"loss": 2.0}))
    >>> json.loads(path.read_text())["loss"]
    2.0
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def told(step: Step) -> None:
        line = {**_numbers(step), **step._replace(metrics=None)._asdict()}
        del line["metrics"]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return told


def tensorboard(folder: str | os.PathLike[str]) -> Callable[[Step], None]:
    """For `after_step`: TensorBoard's events, by tensorboardX (the extra `log`): metrics, seconds, workers.

    What is told is on disk a second later.

    Raises ImportError without tensorboardX.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(f"TensorBoard's events need tensorboardX: {to_install('log')}") from error
    writer = SummaryWriter(str(folder), flush_secs=1)

    def told(step: Step) -> None:
        numbers = {**_numbers(step), "seconds": step.seconds, "num_workers": float(step.num_workers)}
        for name, value in numbers.items():
            writer.add_scalar(name, value, step.step)
        writer.add_text("scheme", step.scheme, step.step)

    return told
