"""The worker as an actor of Ray: what it is ordered to do, what it keeps compiled, and data that it makes."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.cluster.folders import is_safe, private_folder
from bcgc_jax.cluster.worker import WorkerProcess
from bcgc_jax.coding.gradients import PyTree, num_samples

# (j, N) to subset j of N, a pytree of arrays `[m, …]`: from a file, a database, a generator.
Source = Callable[[int, int], PyTree]


class Made(NamedTuple):
    """Subset `number` of `total`, to be made by `source` on the worker; `name` is the source's own."""

    source: Source
    name: int
    number: int
    total: int

    def make(self) -> PyTree:
        made = jax.tree.map(np.asarray, self.source(self.number, self.total))
        try:
            num_samples(made)
        except ValueError as error:
            raise ValueError(
                f"the function that makes the data returned no arrays of samples for subset {self.number} of "
                f"{self.total}, but {made!r:.60}: it must return a pytree of arrays [m, …]"
            ) from error
        return made


class Order(NamedTuple):
    """What a worker is to do: the `number` of the plan, by reference what all are told, whose row it has and
    its data; the numbers of other plans that are to be kept ready, and the folder of `shared_programs`."""

    number: int
    duty: Any
    worker: int
    subsets: dict[int, Any]
    kept: tuple[int, ...]
    programs: str


@contextlib.contextmanager
def shared_programs() -> Iterator[str]:
    """Where workers keep compiled programs for each other: where the master does, or a folder of their own.

    The workers hardly gain at their start, when all compile the same at once; a worker that replaces another
    starts in half the time (1.1 s for 1.9 s), and a plan of the same blocks is taken up in a tenth.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder and is_safe(os.path.realpath(folder)):
        yield os.path.realpath(folder)
    else:
        with private_folder() as own:
            yield own


class Bench:
    """Workers that a process has compiled, by the number of the plan and whose row they have; made data."""

    def __init__(self, fetched: Callable[[Any], Any]) -> None:
        self._fetched = fetched  # what a reference is of
        self._workers: dict[tuple[int, int], WorkerProcess] = {}
        self._made: dict[tuple[int, int, int], PyTree] = {}

    def worker(self, order: Order) -> WorkerProcess:
        """As ordered, compiled once; what is not to be kept is forgotten."""
        if is_safe(order.programs):  # else this is another machine
            jax.config.update("jax_compilation_cache_dir", order.programs)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        name = order.number, order.worker
        worker = self._workers.get(name)
        if worker is None:
            worker = WorkerProcess(self._fetched(order.duty), order.worker, self.subsets(order.subsets))
            worker.warm_up()
        kept = {key: one for key, one in self._workers.items() if key[0] in order.kept}
        self._workers = {**kept, name: worker}
        return worker

    def subsets(self, wanted: Mapping[int, Any]) -> dict[int, PyTree]:
        """By number: those to be made are, once, others are fetched; those not wanted are forgotten."""
        made = {data[1:]: data for data in wanted.values() if isinstance(data, Made)}
        self._made = {key: self._made[key] if key in self._made else made[key].make() for key in made}
        return {
            j: self._made[data[1:]] if isinstance(data, Made) else self._fetched(data)
            for j, data in wanted.items()
        }


def actor_class(ray: Any) -> Any:
    """The worker as an actor: one thread computes, one listens, one compiles what is to be done next."""

    class Actor:
        worker: Any = None

        def __init__(self) -> None:
            self._bench = Bench(ray.get)

        def load(self, order: Order) -> set[int]:
            """Do from now on as ordered; ends once all is compiled: how many samples the subsets have."""
            self.worker = self._bench.worker(order)
            return {num_samples(data) for data in self.worker.subsets.values()}

        @ray.method(concurrency_group="beside")
        def prepare(self, order: Order) -> None:
            """Compile what will be ordered, beside what is being computed."""
            self._bench.worker(order)

        def compute(self, call: int, iteration: int, leaves: Any, finish: Any) -> Iterator[tuple]:
            for message in self.worker.compute(call, iteration, leaves, finish):
                yield tuple(message)

        @ray.method(concurrency_group="control")
        def stop(self, call: int) -> None:
            self.worker.stop(call)

        # Beside what is being computed: a slow worker does not hold back what it has.
        @ray.method(concurrency_group="control")
        def deliver(self, call: int, block: int, subsets: tuple[int, ...]) -> Any:
            return self.worker.deliver(call, block, subsets)

        @ray.method(concurrency_group="control")
        def answer(self) -> tuple[str, int]:
            """That the process runs at all: its node and its number."""
            return ray.get_runtime_context().get_node_id(), os.getpid()

    return ray.remote(concurrency_groups={"control": 1, "beside": 1})(Actor)
