"""Gradients of millions of parameters on processes: time, master's share, bytes."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cluster import Cluster
from bcgc_jax.cluster.engine import load_ray
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import CodingPlan, coding_plan, split_unevenly
from bcgc_jax.plans.sharing import WorkSharing
from benchmarks.timing import Measured, result_row, spread
from experiments.models import Model, perceptron

_WORKERS = 4
_SAMPLES = 64
_WIDTHS = (784, 1800, 1800, 194)
_ROUNDS = 5
_ITERATIONS = 10


def cluster_large() -> list[dict[str, Any]]:
    """Train 5·10⁶ parameters on 4 processes, beside plain Ray: time, CPU, bytes."""
    model = perceptron(_WIDTHS, _SAMPLES)
    params = model.params
    loss = model.loss
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    exact = jax.jit(jax.grad(loss))(params, model.batch)
    rows = []
    with Cluster(_WORKERS, store_bytes=2**29) as running:
        ray = load_ray()
        counted = running.ray = _Counted(ray)
        subsets = split_unevenly(model.batch, _WORKERS)
        plain = _plain_loop(ray, model, subsets)
        bare = _bare_loop(ray, size, params)
        for name, partition in (
            ("uncoded", [size, 0, 0, 0]),
            ("coded", [size // 2, size // 4, 0, size - size // 2 - size // 4]),
            ("replicated", [0, 0, 0, size]),
            ("sharing:2:8", None),
        ):
            plan: CodingPlan | SharedPlan = SharedPlan(WorkSharing(_WORKERS, 2, 8))
            if partition is not None:
                plan = coding_plan(jax.random.key(0), params, np.array(partition))
            running.assign(loss, plan, params, subsets)
            before = counted.bytes
            running.gradient(params)
            moved = (counted.bytes - before) / _bytes_needed(plan, params)
            functions = {
                "package": lambda: running.gradient(params).gradient,
                "parameter server": plain,
                "bare": bare,
            }
            results = _measured(functions)
            error = _error(results["package"].value, exact)
            rows += [_row(name, size, results, peer, moved, error) for peer in _PEERS]
    return rows


_PEERS = {
    "parameter server": "actors that return jax.grad, summed by NumPy (uncoded)",
    "bare": "actors that return zeros of that size, not looked at",
}


def _row(
    name: str,
    size: int,
    results: dict[str, Measured],
    peer: str,
    moved: float,
    error: float,
) -> dict[str, Any]:
    seconds = results["package"].seconds
    peer_seconds = results[peer].seconds
    against = _PEERS[peer]
    busy = seconds["cpu"] / seconds["median"]
    what = f"an iteration, N={_WORKERS}, {size:,} parameters, {name}"
    accuracy = (
        f"the master computes {1e3 * seconds['cpu']:.3g} ms of it "
        f"({100 * busy:.0f} %), the peer's {1e3 * peer_seconds['cpu']:.3g} ms "
        f"({100 * peer_seconds['cpu'] / peer_seconds['median']:.0f} %); {moved:.3f} of "
        "the bytes that the scheme must move; relative error of the gradient "
        f"{error:.0e}"
    )
    figures = {"error": error, "busy": busy, "moved": moved}
    return result_row(
        "cluster_large",
        what,
        results,
        accuracy,
        figures,
        peer=peer,
        against=against,
        dtype="float32",
    )


def _error(gradient: Any, exact: Any) -> float:
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def _bytes_needed(plan: CodingPlan | SharedPlan, params: Any) -> int:
    """The least bytes: parameters once, and N-n messages, or N sums, a block."""
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if isinstance(plan, SharedPlan):
        return (1 + plan.num_workers) * parameters
    messages = sum(
        (plan.num_workers - block.level) * block.size * (8 if code.wide else 4)
        for block, code in zip(plan.blocks, plan.codes, strict=True)
    )
    return messages + parameters


def _measured(functions: dict[str, Callable[[], Any]]) -> dict[str, Measured]:
    """Seconds and seconds of this process's CPU of an iteration, in rounds by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    first = {}
    values = {}
    for name, function in functions.items():
        begin = time.perf_counter()
        function()
        first[name] = time.perf_counter() - begin
    for _ in range(_ROUNDS):
        for name, function in functions.items():
            function()  # who ran before is done
            begin = time.perf_counter()
            spent = time.process_time()
            for _ in range(_ITERATIONS):
                values[name] = function()
            seconds[name].append((time.perf_counter() - begin) / _ITERATIONS)
            cpu[name].append((time.process_time() - spent) / _ITERATIONS)
    results = {}
    for name, seconds_of_rounds in seconds.items():
        times = {
            "first_call": first[name],
            **spread(seconds_of_rounds),
            "cpu": statistics.median(cpu[name]),
        }
        results[name] = Measured(times, values[name], _ROUNDS * _ITERATIONS)
    return results


class _Counted:
    """Ray, with a count of the bytes that its caller puts into its store and gets."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ray, name)

    def put(self, value: Any) -> Any:
        self._count(value)
        return self._ray.put(value)

    def get(self, references: Any) -> Any:
        values = self._ray.get(references)
        self._count(values)
        return values

    def _count(self, value: Any) -> None:
        self.bytes += sum(
            leaf.nbytes
            for leaf in jax.tree.leaves(value)
            if isinstance(leaf, np.ndarray)
        )


def _plain_loop(ray: Any, model: Model, subsets: Sequence[Any]) -> Callable[[], Any]:
    """A parameter server as one writes it: each worker's gradient, and their mean."""

    loss = model.loss
    shape = jax.tree.structure(model.params)

    class Server:
        def __init__(self, batch: Any) -> None:
            self._batch = batch
            self._gradient = jax.jit(jax.grad(loss))

        def gradient(self, leaves: Any) -> Any:
            gradients = self._gradient(jax.tree.unflatten(shape, leaves), self._batch)
            return [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]

    actors = [
        ray.remote(Server).options(num_cpus=0).remote(subset) for subset in subsets
    ]

    def loop() -> Any:
        reference = ray.put(
            [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]
        )
        gradients = ray.get([actor.gradient.remote(reference) for actor in actors])
        return [
            sum(leaves) / np.float32(len(actors))
            for leaves in zip(*gradients, strict=True)
        ]

    return loop


def _bare_loop(ray: Any, size: int, params: Any) -> Callable[[], Any]:
    """Send the same messages, and do nothing with them."""

    class Sender:
        def __init__(self) -> None:
            self._values = np.zeros(size, np.float32)

        def send(self, params: Any) -> Any:
            return self._values

    actors = [ray.remote(Sender).options(num_cpus=0).remote() for _ in range(_WORKERS)]

    def loop() -> Any:
        reference = ray.put([np.asarray(leaf) for leaf in jax.tree.leaves(params)])
        return ray.get([actor.send.remote(reference) for actor in actors])

    return loop
