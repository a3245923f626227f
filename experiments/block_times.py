"""Measure the time of each block of a gradient: compiled operations, and CPU seconds.

The worker is the package's worker (`bcgc_jax.coding.worker`), in its own process on one
core.
"""

import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.coding.gradients import coding_plan, split_batch, unit_sizes
from bcgc_jax.coding.stages import backward_order
from bcgc_jax.coding.worker import BlockWorker, encoded, places_of
from experiments.models import Model, PyTree


class Blocks(NamedTuple):
    """A partition, `operations` of its blocks `[B]`, `cpu` seconds `[repeats, B]`."""

    partition: tuple[int, ...]
    operations: np.ndarray
    cpu: np.ndarray


class Operations(NamedTuple):
    """Counts by the compiler, on a subset's samples; units are in the order of the
    backward pass.

    Attributes:
      gradient: of the loss and its whole gradient, in one program.
      forward: of the forward pass that keeps what the backward pass needs.
      gradients: of each unit's gradient, once the cotangent has come to it, `[U]`.
      reach: to carry the cotangent from the loss to a unit, `[U]`. That past the last
        unit but one is counted with the last unit's own: no gradient tells them apart,
        and whoever wants the one needs the other.
    """

    gradient: float
    forward: float
    gradients: np.ndarray
    reach: np.ndarray


class Measured(NamedTuple):
    """A model's work, and that of a worker for each partition.

    Attributes:
      title: of the model.
      samples: of a subset.
      sizes: coordinates of each unit, `[U]`, in the order of the backward pass: the
        last layer first.
      operations: of the units, whoever computes them.
      cpu: seconds of the loss and its whole gradient in one program, `[repeats]`.
      blocks: what the worker takes, for each partition.
    """

    title: str
    samples: int
    sizes: np.ndarray
    operations: Operations
    cpu: np.ndarray
    blocks: list[Blocks]


def measure_alone(
    make: Callable[[], Model], partitions: Sequence[Sequence[int]], repeats: int
) -> Measured:
    """`measure` in a new process that has one core."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="bcgc-") as folder,
        ProcessPoolExecutor(1, context, _stay_on_one_core, (folder,)) as pool,
    ):
        return pool.submit(measure, make, partitions, repeats).result()


def _stay_on_one_core(programs: str) -> None:
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false"  # read when JAX is first used
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", False)
    # Many programs are needed twice: run, and counted.
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])


def measure(
    make: Callable[[], Model], partitions: Sequence[Sequence[int]], repeats: int
) -> Measured:
    """Return the work of worker 0 for partitions of the layers, with as many levels as
    workers.

    In each repeat every partition has its turn: a machine that is busy for a while is
    so for all.
    """
    model = make()
    workers = len(partitions[0])
    data = jax.tree.map(np.asarray, split_batch(model.batch, workers))
    subsets = [jax.tree.map(lambda x, j=j: x[j], data) for j in range(workers)]
    order = backward_order(model.loss, model.params, subsets[0])
    ready = []
    for counts in partitions:
        plan = coding_plan(
            jax.random.key(0),
            model.params,
            np.array(counts),
            units="layers",
            order=order,
        )
        held = {j: subsets[j] for j in plan.held(0)}
        ready.append(BlockWorker(model.loss, plan, 0, held, np.ones(workers)))
        for _ in ready[-1].messages(model.params):  # compile
            pass
    whole = jax.jit(jax.value_and_grad(model.loss))
    jax.block_until_ready(whole(model.params, subsets[0]))
    alone: list[float] = []
    times: list[list[np.ndarray]] = [[] for _ in ready]
    for _ in range(repeats):
        begun = time.process_time()
        jax.block_until_ready(whole(model.params, subsets[0]))
        alone.append(time.process_time() - begun)
        for worker, seconds in zip(ready, times, strict=True):
            seconds.append(_seconds(worker, model.params))
    return Measured(
        model.title,
        len(jax.tree.leaves(subsets[0])[0]),
        unit_sizes(model.params, "layers", order),
        operations_of_units(model, subsets[0], order),
        np.array(alone),
        [
            Blocks(
                tuple(counts),
                operations_of_worker(worker, model.params),
                np.array(seconds),
            )
            for counts, worker, seconds in zip(partitions, ready, times, strict=True)
        ],
    )


def _seconds(worker: BlockWorker, params: PyTree) -> np.ndarray:
    """Time a step's blocks, `[B]`, in CPU seconds, messages on the host."""
    clocks = [time.process_time()]
    for _ in worker.messages(params):
        clocks.append(time.process_time())
    return np.diff(clocks)


def operations_of_worker(worker: BlockWorker, params: PyTree) -> np.ndarray:
    """Count operations of tasks, `[tasks]`, in the warmed-up worker's programs."""
    # The programs are the worker's own affair; what they cost is not to be found in any
    # copy of them.
    (cut,) = worker._stages.values()  # of all subsets, which have the same shape
    plan = worker.plan
    leaves = jax.tree.leaves(params)
    shapes = tuple(np.shape(leaf) for leaf in leaves)
    dtypes = tuple(leaf.dtype for leaf in leaves)
    progress: dict[int, int] = {}  # how far the passes of the subsets are
    counted = functools.cache(
        lambda program: _count(program.run, *(v.aval for v in program.takes))
    )
    counts = []
    for block, held in worker.tasks:
        places = places_of(plan, block, shapes, dtypes)
        gradients = [[np.zeros(p.shape, p.dtype) for p in places]] * len(held)
        weights = np.ones(len(held))
        wide = plan.codes[block].wide
        counts.append(
            _count(encoded, places, wide, worker._rows[block], weights, gradients)
        )
        for subset in held:
            counts[-1] += sum(
                counted(program) for program in cut.due(progress.get(subset, 0), block)
            )
            progress[subset] = max(progress.get(subset, 0), block + 1)
    return np.array(counts)


def operations_of_units(
    model: Model, samples: PyTree, order: Sequence[int]
) -> Operations:
    """Take costs from programs for each unit alone, and for all up to it."""
    forward = jax.jit(
        lambda params, batch: jax.vjp(lambda p: model.loss(p, batch), params)
    )
    value, pull = jax.eval_shape(forward, model.params, samples)

    def backward(leaves: Sequence[int]) -> float:
        def gradients(pull: Any) -> list[jax.Array]:
            gradient = jax.tree.leaves(pull(np.ones(value.shape, value.dtype))[0])
            return [gradient[leaf] for leaf in leaves]

        return _count(jax.jit(gradients), pull)

    units = _leaves_of_units(model.params, order)
    alone = np.array([backward(unit) for unit in units])
    together = np.array(
        [backward(list(chain(*units[: k + 1]))) for k in range(len(units))]
    )
    # The cotangent takes the same way for a unit alone as for all up to it.
    own_operations = np.append(np.diff(together - alone), 0.0)
    reach = alone - own_operations
    if len(units) > 1:
        reach[-1] = reach[-2]
    own_operations[-1] = alone[-1] - reach[-1]
    whole = jax.jit(jax.value_and_grad(model.loss))
    return Operations(
        _count(whole, model.params, samples),
        _count(forward, model.params, samples),
        own_operations,
        reach,
    )


def _leaves_of_units(params: PyTree, order: Sequence[int]) -> list[list[int]]:
    """Numbers of each layer's leaves, as `unit_sizes` of "layers" adds them up."""
    leaves = jax.tree.leaves(params)
    ends = np.cumsum(unit_sizes(params, "layers", order))
    of = np.searchsorted(ends, np.cumsum([np.size(leaves[leaf]) for leaf in order]))
    return [
        [leaf for leaf, k in zip(order, of, strict=True) if k == unit]
        for unit in range(len(ends))
    ]


def _count(program: Any, *args: Any) -> float:
    """A program that only moves numbers has none to count."""
    return float(program.lower(*args).compile().cost_analysis().get("flops", 0.0))
