"""A process with four devices, which works through cases and prints what each found, as
JSON.

`python -m tests.balancing.compiled.program CASE…`
"""

import functools
import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing import compiled
from bcgc_jax.balancing.compiled import turns
from bcgc_jax.balancing.compiled.questions import OVER, Questions
from bcgc_jax.balancing.compiled.tracing import varying

# All steps are shared here; test_own_steps.py has those that are not.
SharedWork = functools.partial(compiled.SharedWork, adapt=False)
SAMPLES, WIDTH, HIDDEN, CLASSES = 128, 16, 32, 3
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((SAMPLES, WIDTH)).astype(np.float32)
LABELS = (np.arange(SAMPLES) % CLASSES).astype(np.int32)
PARAMS = {
    "first": (0.2 * RNG.standard_normal((WIDTH, HIDDEN))).astype(np.float32),
    "last": (0.2 * RNG.standard_normal((HIDDEN, CLASSES))).astype(np.float32),
}
CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def mesh_of(workers: int, kind: AxisType = AxisType.Auto) -> Mesh:
    shape = (workers, 4 // workers)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(kind, kind))


def mesh_of_workers() -> Mesh:
    """One axis: a callback in the loss needs all axes manual."""
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def cross_entropy(scores: Any, labels: Any) -> Any:
    logs = jax.nn.log_softmax(scores.astype(jnp.float32))
    return -jnp.take_along_axis(logs, labels[:, None], 1)


def loss(params: Any, rows: Any) -> Any:
    """A mean over the rows, as it is usually written."""
    inputs, labels = rows
    scores = jnp.tanh(inputs @ params["first"]) @ params["last"]
    return jnp.mean(cross_entropy(scores, labels))


def with_dropout(params: Any, rows: Any, key: Any, dot: Any = jnp.matmul) -> Any:
    """A sum, and auxiliary values: how many rows, and the sum of the inputs."""
    inputs, labels = rows
    inputs = inputs * jax.random.bernoulli(key, 0.9, inputs.shape)
    scores = dot(jnp.tanh(inputs @ params["first"]), params["last"])
    return jnp.sum(cross_entropy(scores, labels)), {
        "rows": jnp.int32(len(labels)),
        "sum": inputs.sum(0),
    }


def error_of(arrays: Any, expected: Any) -> float:
    """The largest difference, in units of each array's largest number."""

    def error(array: Any, expected_array: Any) -> float:
        exact = np.asarray(expected_array, np.float64)
        return float(
            np.abs(np.asarray(array, np.float64) - exact).max() / np.abs(exact).max()
        )

    return max(map(error, jax.tree.leaves(arrays), jax.tree.leaves(expected)))


def chunk_by_chunk(shared: compiled.SharedWork, workers: int, step: int) -> Any:
    """The gradient of `with_dropout`, unsharded, a chunk at a time."""
    gradient = jax.jit(jax.grad(with_dropout, has_aux=True))
    total = jax.tree.map(np.zeros_like, PARAMS)
    for worker in range(workers):
        for chunk in shared.shares[worker].own:
            rows = np.array(chunk.rows(SAMPLES, workers))
            key = functools.reduce(
                jax.random.fold_in, (step, chunk.subset, chunk.number), KEY
            )
            part, _ = gradient(PARAMS, (INPUTS[rows], LABELS[rows]), key)
            total = jax.tree.map(np.add, total, part)
    return total


def _layout(workers: int, how: str, kind: AxisType) -> dict[str, Any]:
    mesh = mesh_of(workers, kind)
    shared = SharedWork(mesh)
    specs = {"first": P(None, "model"), "last": P("model", None)}
    sums = lambda x, w: lax.psum(x @ w, "model")  # noqa: E731
    whole = P(None, None) if kind == AxisType.Explicit else None
    plain = functools.partial(jnp.matmul, out_sharding=whole)
    computed = functools.partial(
        with_dropout, dot=plain if how == "partitioner" else sums
    )
    if how == "local":
        run = shared.local(computed, reduction="sum", has_aux=True)
        gradient = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(specs, P("data"), P(), P()),
            out_specs=((P(), P()), specs, P()),
        )
    else:
        params_specs = None if how == "partitioner" else specs
        gradient = shared.value_and_grad(
            computed, reduction="sum", has_aux=True, params=params_specs
        )
    rows = shared.place((INPUTS, LABELS))
    put = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))  # noqa: E731
    params = jax.tree.map(put, PARAMS, specs)
    with jax.set_mesh(mesh):
        for step in range(3):
            (_, aux), slope, ok = jax.jit(gradient)(params, rows, step, KEY)
    error = error_of(slope, chunk_by_chunk(shared, workers, 2))
    return {
        "error": error,
        "rows": int(aux["rows"]),
        "ok": bool(ok),
        "count": shared.count,
    }


def _layout_case(workers: int, how: str, kind: AxisType) -> None:
    name = f"layout_{workers}_{how}_{kind.name}"
    CASES[name] = functools.partial(_layout, workers, how, kind)


for _workers in (4, 2):
    for _how in ("sums", "partitioner"):
        for _kind in (AxisType.Auto, AxisType.Explicit):
            _layout_case(_workers, _how, _kind)
_layout_case(2, "local", AxisType.Auto)


class Asked(NamedTuple):
    """A question: the answer's kind, and when it came and was answered."""

    worker: int
    step: int
    turn: int
    kind: int
    began: float
    ended: float


def noted(asked: list[Asked]) -> None:
    """Note all questions of this process from now on."""
    answer = Questions.answer

    def noting(self: Questions, program: Any, question: Any) -> Any:
        began = time.perf_counter()
        answered = answer(self, program, question)
        step, turn, worker = np.asarray(question)[:3].tolist()
        asked.append(
            Asked(worker, step, turn, int(answered[0]), began, time.perf_counter())
        )
        return answered

    Questions.answer = noting  # type: ignore[method-assign, assignment]


@case
def order() -> dict[str, Any]:
    """75 steps in three programs: whether questions come in the order of the turns."""
    asked: list[Asked] = []
    noted(asked)
    mesh = mesh_of(4)
    shared = SharedWork(mesh)
    gradient = shared.value_and_grad(loss, check=False)
    rows = shared.place((INPUTS, LABELS))

    @jax.jit
    def steps_from(params: Any, first: int) -> Any:
        def update(params: Any, step: Any) -> Any:
            _, slope, ok = gradient(params, rows, first + step)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, slope), ok

        return lax.scan(update, params, jnp.arange(25))

    params = PARAMS
    for first in (0, 25, 50):
        params, ok = jax.block_until_ready(steps_from(params, first))
        assert ok.all()
    wrong = 0
    for worker in range(4):
        questions = [question for question in asked if question.worker == worker]
        turn, ended, step = 0, 0.0, -1
        for question in sorted(questions, key=lambda question: question.began):
            wrong += question.turn != turn or question.began < ended
            wrong += (question.turn == 0) == (question.step == step)
            turn, ended, step = question.turn + 1, question.ended, question.step
            if question.kind == OVER:
                turn = 0
    kinds = [question.kind for question in asked]
    expected = PARAMS
    plain = jax.jit(jax.grad(loss))
    for _ in range(75):
        slope = plain(expected, (INPUTS, LABELS))
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, slope)
    return {
        "questions": len(kinds),
        "ends": kinds.count(OVER),
        "wrong": wrong,
        "error": error_of(params, expected),
    }


@case
def nap() -> dict[str, Any]:
    """A nap in the backward pass: seconds from an answer to the next question."""
    asked: list[Asked] = []
    noted(asked)

    def slept(x: Any) -> Any:
        time.sleep(0.03)
        return np.float32(0)

    @jax.custom_vjp
    def late(x: Any) -> Any:
        return x

    def backward(_: Any, slope: Any) -> Any:
        zero = jax.pure_callback(
            slept, jax.ShapeDtypeStruct((), slope.dtype), slope[0, 0]
        )
        return (slope + varying(zero, "data"),)

    late.defvjp(lambda x: (x, None), backward)
    mesh = mesh_of_workers()
    shared = SharedWork(mesh, chunks=4, equal_chunks=True)
    gradient = jax.jit(
        shared.value_and_grad(
            lambda p, rows: jnp.sum(rows[0] @ late(p)), reduction="sum", check=False
        )
    )
    rows = shared.place((INPUTS,))
    jax.block_until_ready(gradient(PARAMS["first"], rows, 0))
    seconds = []
    for worker in range(4):
        questions = sorted(question for question in asked if question.worker == worker)
        for question, following in itertools.pairwise(questions):
            seconds.append(following.began - question.ended)
    return {"least": min(seconds), "chunks": len(seconds)}


@case
def elsewhere() -> dict[str, Any]:
    """The callback that is taken where devices are no CPUs."""
    host_call = turns.host_call
    turns.host_call = lambda function, size, platform: host_call(
        function, size, "elsewhere"
    )
    try:
        return _layout(4, "sums", AxisType.Auto)
    finally:
        turns.host_call = host_call


@case
def adam() -> dict[str, Any]:
    """Thirty steps, with donated parameters and state."""
    mesh = mesh_of(4)
    shared = SharedWork(mesh)
    gradient = shared.value_and_grad(loss)
    rows = shared.place((INPUTS, LABELS))
    optimizer = optax.adam(1e-2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, step: Any) -> Any:
        _, slope, ok = gradient(params, rows, step)
        updates, new_state = optimizer.update(slope, state, params)
        new = optax.apply_updates(params, updates), new_state
        keep = lambda new, before: jnp.where(ok, new, before)  # noqa: E731
        return (*jax.tree.map(keep, new, (params, state)), ok)

    first = params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    state = jax.device_put(optimizer.init(params), NamedSharding(mesh, P()))
    for step in range(30):
        params, state, ok = train_step(params, state, step)
        assert ok
    expected = PARAMS
    expected_state = optimizer.init(expected)
    plain = jax.jit(jax.grad(loss))
    for _ in range(30):
        updates, expected_state = optimizer.update(
            plain(expected, (INPUTS, LABELS)), expected_state, expected
        )
        expected = optax.apply_updates(expected, updates)
    return {"error": error_of(params, expected), "deleted": first["first"].is_deleted()}


@case
def refusals() -> dict[str, str]:
    """What is said of collectives, of samples, and of transformations."""
    mesh = mesh_of(4)
    shared = SharedWork(mesh)

    def ring(x: Any) -> Any:
        return lax.ppermute(x, "data", [(0, 1), (1, 2), (2, 3), (3, 0)])

    collectives: dict[str, Callable[[Any], Any]] = {
        "psum": lambda x: lax.psum(x, "data"),
        "pmean": lambda x: jax.jit(lambda x: lax.pmean(x, "data"))(x),
        "all_gather": lambda x: lax.cond(
            x > 0, lambda x: lax.all_gather(x, "data").sum(), lambda x: 2 * x, x
        ),
        "ppermute": ring,
    }
    rows = shared.place((INPUTS, LABELS))
    asked: dict[str, Callable[[], Any]] = {}

    def traced(over: Callable[[Any], Any]) -> Any:
        gradient = shared.value_and_grad(lambda p, r: over(loss(p, r)))
        return jax.eval_shape(gradient, PARAMS, shared.place((INPUTS, LABELS)), 0)

    for name, over in collectives.items():
        asked[name] = functools.partial(traced, over)
    gradient = shared.value_and_grad(loss)
    asked["samples"] = lambda: shared.place((INPUTS[:127], LABELS[:127]))
    value = lambda params: gradient(params, rows, 0)[0]  # noqa: E731
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    asked["vmap"] = lambda: jax.vmap(value)(stacked)
    asked["grad"] = lambda: jax.grad(value)(PARAMS)
    said = {}
    for name, function in asked.items():
        try:
            function()
            said[name] = ""
        except ValueError as error:
            said[name] = str(error)
    return said


@case
def at_once() -> dict[str, Any]:
    """Two gradients in one program: without an order, and with one."""
    mesh = mesh_of(4)
    shared = SharedWork(mesh)
    gradient = shared.value_and_grad(loss)
    rows = shared.place((INPUTS, LABELS))
    twice = jax.tree.map(lambda p: 2 * p, PARAMS)
    expected = [jax.grad(loss)(params, (INPUTS, LABELS)) for params in (PARAMS, twice)]

    def independent() -> Any:
        return gradient(PARAMS, rows, 0), gradient(twice, rows, 1)

    def chained() -> Any:
        first = gradient(PARAMS, rows, 2)
        after = jax.tree.map(lambda p: jnp.where(first[2], p, jnp.nan), twice)
        return first, gradient(after, rows, 3)

    results: dict[str, Any] = {}
    for function in (independent, chained):
        _, slopes, oks = zip(*jax.block_until_ready(jax.jit(function)()), strict=True)
        exact = [
            error_of(slope, want) < 1e-6
            for slope, want in zip(slopes, expected, strict=True)
        ]
        results[function.__name__] = {
            "ok": [*map(bool, oks)],
            "exact": exact,
            "error": str(shared.error),
        }
        shared.reset()
    return results


@case
def compiled_text() -> dict[str, int]:
    """How many callbacks and loops there are in the program."""
    mesh = mesh_of(4)
    shared = SharedWork(mesh)
    gradient = jax.jit(shared.value_and_grad(loss, check=False))
    rows = shared.place((INPUTS, LABELS))
    text = gradient.lower(PARAMS, rows, 0).compile().as_text() or ""
    callbacks = re.findall(r'custom_call_target="xla_[a-z_]*callback', text)
    return {"callbacks": len(callbacks), "loops": text.count(" while(")}


@case
def bfloat16() -> dict[str, Any]:
    """How far the gradient is from the sum of chunks, in units of its last digit."""
    mesh = mesh_of(4)
    shared = SharedWork(mesh)
    gradient = jax.jit(shared.value_and_grad(loss))
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    _, slope, ok = gradient(params, shared.place((INPUTS, LABELS)), 0)
    total = jax.tree.map(lambda p: np.zeros(p.shape), PARAMS)
    plain = jax.jit(jax.grad(loss))
    for worker in range(4):
        for chunk in shared.shares[worker].own:
            rows = np.array(chunk.rows(SAMPLES, 4))
            part = plain(params, (INPUTS[rows], LABELS[rows]))
            weight = len(rows) / SAMPLES
            total = jax.tree.map(
                lambda t, g, weight=weight: t + weight * np.asarray(g, np.float64),
                total,
                part,
            )
    off = [
        np.abs(np.asarray(slope_leaf, np.float64) - exact)
        / 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
        for slope_leaf, exact in zip(
            jax.tree.leaves(slope), jax.tree.leaves(total), strict=True
        )
    ]
    return {
        "ok": bool(ok),
        "dtypes": [str(leaf.dtype) for leaf in jax.tree.leaves(slope)],
        "off": max(float(leaf.max()) for leaf in off),
    }


@case
def lengths() -> dict[str, Any]:
    """The first question of a worker brings the lengths of its chunks."""
    mesh = mesh_of(4)
    shared = SharedWork(mesh, equal_chunks=True)
    sent: dict[int, list[float]] = {}
    runs_of = type(shared.shares[0]).runs

    def noted(self: Any, step: int, loads: Any = None) -> Any:
        sent[self.own[0].subset] = loads
        return runs_of(self, step, loads)

    type(shared.shares[0]).runs = noted  # type: ignore[method-assign, assignment]
    gradient = jax.jit(shared.value_and_grad(loss))
    loads = np.arange(1, 33, dtype=np.float32).reshape(4, 8)
    _, slope, ok = gradient(PARAMS, shared.place((INPUTS, LABELS)), 0, loads=loads)
    expected = jax.grad(loss)(PARAMS, (INPUTS, LABELS))
    return {
        "ok": bool(ok),
        "sent": all(sent[worker] == loads[worker].tolist() for worker in range(4)),
        "error": error_of(slope, expected),
    }


@case
def coordinator_ends() -> dict[str, Any]:
    """It ends in a step: no worker's gradient is ok; after `reset` the next one is."""
    mesh = mesh_of_workers()
    shared = SharedWork(mesh)

    chunks = itertools.count()

    def ending(rows: Any) -> Any:
        if next(chunks) == 9:
            shared.coordinator.close()
        return np.float32(0)

    def closing(params: Any, rows: Any) -> Any:
        zero = jax.pure_callback(
            ending, jax.ShapeDtypeStruct((), jnp.float32), rows[0][0, 0]
        )
        return loss(params, rows) + zero

    rows_of = shared.value_and_grad(closing, check=False)
    rows = shared.place((INPUTS, LABELS))
    began = time.perf_counter()
    _, _, ok = jax.jit(rows_of)(PARAMS, rows, 0)
    failed = {"ok": bool(ok), "error": type(shared.error).__name__}
    seconds = time.perf_counter() - began
    shared.reset()
    _, slope, ok = jax.jit(shared.value_and_grad(loss))(PARAMS, rows, 0)
    expected = jax.grad(loss)(PARAMS, (INPUTS, LABELS))
    return {
        **failed,
        "seconds": seconds,
        "after": bool(ok),
        "after_error": error_of(slope, expected),
    }


def _group(what: str) -> dict[str, Any]:
    """Two workers of two devices with collectives of their own; one of them is slow."""
    mesh = jax.make_mesh((2, 2), ("data", "in"), axis_types=(AxisType.Auto,) * 2)
    shared = SharedWork(mesh, equal_chunks=True)
    weights = (0.3 * RNG.standard_normal((2, WIDTH, WIDTH))).astype(np.float32)

    def plain(weights: Any, inputs: Any) -> Any:
        hidden = jnp.tanh(jnp.tanh(inputs @ weights[0]) @ weights[1])
        return jnp.mean(jnp.sum(hidden**2, -1))

    def half(inputs: Any) -> Any:
        size = len(inputs) // 2
        inputs = varying(inputs, "in")
        return lax.dynamic_slice_in_dim(inputs, lax.axis_index("in") * size, size)

    def fsdp(weights: Any, rows: Any) -> Any:
        return lax.pmean(
            plain(lax.all_gather(weights, "in", tiled=True), half(rows[0])), "in"
        )

    def experts(weights: Any, rows: Any) -> Any:
        hidden = half(rows[0])
        size = len(hidden)
        weights = lax.all_gather(weights, "in", tiled=True)
        for layer in range(2):
            parts = hidden.reshape(2, size // 2, WIDTH)
            hidden = lax.all_to_all(parts, "in", 0, 0).reshape(size, WIDTH)
            hidden = jnp.tanh(hidden @ weights[layer])
        return lax.pmean(jnp.mean(jnp.sum(hidden**2, -1)), "in")

    def automatic(weights: Any, rows: Any) -> Any:
        return plain(weights, rows[0])

    losses = {"fsdp": fsdp, "experts": experts, "tensor": automatic}
    spec = P(None, "in", None) if what == "tensor" else P("in")
    params = None if what == "tensor" else spec
    runs_of = shared.shares[0].runs

    def slow(step: int, loads: Any = None) -> Any:
        for run in runs_of(step, loads):
            time.sleep(0.02 * len(run))
            yield run

    shared.shares[0].runs = slow  # type: ignore[method-assign, assignment]
    gradient = jax.jit(shared.value_and_grad(losses[what], params=params))
    put = jax.device_put(weights, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        for step in range(3):
            _, slope, ok = gradient(put, shared.place((INPUTS,)), step)
    expected = jax.grad(plain)(weights, INPUTS)
    return {"ok": bool(ok), "error": error_of(slope, expected), "count": shared.count}


for _what in ("fsdp", "experts", "tensor"):
    CASES[f"group_{_what}"] = functools.partial(_group, _what)


def main(names: list[str]) -> None:
    answer = Questions.answer
    for name in names or CASES:
        Questions.answer = answer  # type: ignore[method-assign, assignment]
        try:
            result = CASES[name]()
        except Exception:
            result = {"raised": traceback.format_exc()}
        print(json.dumps({"case": name, "result": result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
