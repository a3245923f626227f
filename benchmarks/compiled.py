"""Measure work sharing in a compiled program: the cost of a turn and of compiling."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, Mesh

from bcgc_jax.balancing.compiled import SharedWork
from bcgc_jax.balancing.dispatch import join, serve
from benchmarks.timing import compare, result_row

# Chunks and samples of a step of one worker.
_CHUNKS = 64
_SAMPLES = 256
# A transformer, and the texts of a step.
_LAYERS = 24
_WIDTH = 64
_WORDS = 50
_TEXTS = 64
_LENGTH = 16


def turns() -> list[dict[str, Any]]:
    """Time steps of a worker whose chunks take no time, in memory and over TCP."""
    return [_turn("in memory", _in_memory), _turn("over TCP", _over_tcp)]


def _turn(where: str, shared_work: Callable[[Mesh], Any]) -> dict[str, Any]:
    """A step beside its chunks in a loop that asks nobody: turns are the difference."""
    rows = jnp.arange(float(_SAMPLES))
    with shared_work(mesh_of_one()) as shared:
        gradient = jax.jit(shared.value_and_grad(product, reduction="sum"))
        steps = iter(range(10**6))
        results = compare(
            {
                "package": lambda: gradient(2.0, rows, next(steps)),
                "peer": functools.partial(jax.jit(_without_questions), 2.0, rows),
            },
            50,
        )
    slope = results["package"].value[1]
    expected = results["peer"].value
    package, peer = (results[name].seconds for name in ("package", "peer"))
    # After the last chunk it asks once more.
    median, best = (
        (package[name] - peer[name]) / (_CHUNKS + 1) for name in ("median", "best")
    )
    what = f"{_CHUNKS} turns of one compiled program, {where}"
    accuracy = f"a turn in {1e3 * median:.3f} ms, the median; {1e3 * best:.3f} at best"
    figures = {"error": float(abs(slope - expected) / abs(expected)), "turn": median}
    against = "the same chunks in a loop that asks nobody"
    return result_row(
        "questions", what, results, accuracy, figures, against=against, dtype="float32"
    )


def mesh_of_one() -> Mesh:
    kinds = (AxisType.Auto,)
    return jax.make_mesh((1,), ("data",), axis_types=kinds, devices=jax.devices()[:1])


def product(weight: Array, rows: Array) -> Array:
    return jnp.sum(weight * rows)


def _without_questions(weight: Array, rows: Array) -> Array:
    slope = jax.grad(product)
    total, _ = lax.scan(
        lambda total, part: (total + slope(weight, part), None),
        jnp.float32(0),
        rows.reshape(_CHUNKS, -1),
    )
    return total


@contextlib.contextmanager
def _in_memory(mesh: Mesh) -> Iterator[SharedWork]:
    shared = SharedWork(mesh, max_subsets=1, chunks=_CHUNKS, adapt=False)
    with shared.coordinator:
        yield shared


@contextlib.contextmanager
def _over_tcp(mesh: Mesh) -> Iterator[SharedWork]:
    with (
        serve(1, 1, _CHUNKS, key=b"key", adapt=False) as coordinator,
        join(coordinator.address, 0, key=b"key") as share,
    ):
        yield SharedWork(mesh, shares={0: share})


def compiling() -> list[dict[str, Any]]:
    """Compile a transformer's gradient, 24 layers, with shared work and without, and
    take its first step with the checks and without.
    """
    shared = SharedWork(mesh_of_one(), max_subsets=1, chunks=8, equal_chunks=True)
    arguments = _parameters(), jnp.zeros((_TEXTS, _LENGTH + 1), jnp.int32)
    with shared.coordinator:
        results = compare(
            {
                "package": lambda: compile_anew(
                    shared.value_and_grad(cross_entropy, check=False), *arguments, 0
                ),
                "peer": lambda: compile_anew(
                    jax.value_and_grad(cross_entropy), *arguments
                ),
            },
            3,
        )
        first_steps = compare(
            {
                "package": lambda: _first_step(shared, *arguments, check=True),
                "peer": lambda: _first_step(shared, *arguments, check=False),
            },
            3,
        )
    rows = []
    for timings, what, against in (
        (results, "compile a gradient", "the plain gradient"),
        (first_steps, "first step of a gradient, with checks", "without checks"),
    ):
        ratio = timings["package"].seconds["median"] / timings["peer"].seconds["median"]
        rows.append(
            result_row(
                "compiling",
                f"{what} of {_LAYERS} layers, equal chunks",
                timings,
                f"tracing included; {ratio:.2f} times as long",
                {},
                against=against,
                dtype="float32",
            )
        )
    return rows


def _parameters() -> dict[str, list[Array]]:
    shapes = {
        "words": [(_WORDS, _WIDTH)],
        "mix": [(_WIDTH, 3 * _WIDTH)] * _LAYERS,
        "up": [(_WIDTH, 4 * _WIDTH)] * _LAYERS,
        "down": [(4 * _WIDTH, _WIDTH)] * _LAYERS,
    }
    return {
        name: [jnp.zeros(shape) for shape in layers] for name, layers in shapes.items()
    }


def _first_step(shared: SharedWork, params: Any, texts: Array, *, check: bool) -> None:
    gradient = shared.value_and_grad(cross_entropy, check=check)
    step = jax.jit(lambda *arguments: gradient(*arguments))
    _, _, ok = jax.block_until_ready(step(params, shared.place(texts), 0))
    if not ok:
        raise RuntimeError(f"the first step has failed: {shared.error}")


def compile_anew(function: Callable[..., Any], *arguments: Any) -> None:
    jax.jit(lambda *arguments: function(*arguments)).lower(*arguments).compile()


def cross_entropy(params: Any, texts: Array) -> Array:
    hidden = params["words"][0][texts[:, :-1]]
    before = jnp.tril(jnp.ones((_LENGTH, _LENGTH), bool))
    for mix, up, down in zip(params["mix"], params["up"], params["down"], strict=True):
        query, kept, value = jnp.split(hidden @ mix, 3, axis=-1)
        scores = jnp.einsum("btd,bsd->bts", query, kept) / _WIDTH**0.5
        hidden = hidden + jax.nn.softmax(jnp.where(before, scores, -jnp.inf)) @ value
        hidden = hidden + jax.nn.gelu(hidden @ up) @ down
    logs = jax.nn.log_softmax(hidden @ params["words"][0].T)
    return -jnp.mean(jnp.take_along_axis(logs, texts[:, 1:, None], -1))
