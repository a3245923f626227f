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


_layout_case(2, "partitioner", AxisType.Explicit)
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
