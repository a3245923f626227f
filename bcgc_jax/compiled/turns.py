"""The loop of turns on the devices: a question, a chunk's gradient, and at the end one sum.

A turn begins when the one before has ended: a question at the top of the loop's body stands in the
order of the turns, and the gradient of the chunk before is in the sum by then. "Over" is a branch
that adds nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import io_callback
from jax.sharding import PartitionSpec as P

from bcgc_jax.compiled.questions import ANSWER, FAILED, OVER
from bcgc_jax.compiled.tracing import (
    Traced,
    all_first,
    is_manual,
    refuse_collectives,
    varying,
    wide,
)

Ask = Callable[[np.ndarray], np.ndarray]


def sum_of_chunks(
    loss: Callable[..., Any],
    ask: Ask,
    sizes: Sequence[int],
    axis: str,
    other_axes: Sequence[str],
    platform: str,
    has_aux: bool,
) -> Callable[..., Any]:
    """(params, stored, step, key, loads) to (value, gradient, ok), sums over all chunks of a step.

    All of it is of one worker's devices, within `shard_map`. With `has_aux` value is a pair.
    """
    slope = jax.value_and_grad(loss, has_aux=has_aux)
    of_worker = functools.partial(varying_leaf, axis=axis)

    def run(params: Any, stored: Any, step: Any, key: Array, loads: Array | None) -> Any:
        step = of_worker(jnp.asarray(step, jnp.int32))
        params = jax.tree.map(of_worker, params)
        bits = of_worker(jax.random.key_data(key))
        key = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))
        head = [step, of_worker(jnp.int32(0)), lax.axis_index(axis)]
        lengths = jnp.zeros(0, jnp.int32) if loads is None else _bits(loads.reshape(-1))

        def chunk_of(size: int) -> Callable[..., Any]:
            def gradient(begin: Array, subset: Array, number: Array) -> Any:
                take = lambda rows: lax.dynamic_slice_in_dim(rows, begin, size)  # noqa: E731
                seed = functools.reduce(jax.random.fold_in, (step, subset, number), key)
                return slope(params, jax.tree.map(take, stored), seed)

            return gradient

        zero = of_worker(jnp.int32(0))
        traced = Traced(chunk_of(sizes[-1]), zero, zero, zero)
        refuse_collectives(traced.jaxpr, axis, platform)
        total = jax.tree.map(of_worker, traced.zeros(wide))

        def added(size: int) -> Callable[..., Any]:
            gradient = chunk_of(size)
            return lambda total, *place: jax.tree.map(_add, total, gradient(*place))

        branches = [lambda total, *place: total, *map(added, sizes)]

        def turn(state: Any) -> Any:
            _, count, total, _ = state
            known = _bits(jax.tree.leaves(total)[0].ravel()[:1].astype(jnp.float32))
            numbers = jnp.stack([step, count, head[2]])
            question = jnp.concatenate([numbers, known, of_worker(lengths)])
            answer, lost = _told(ask, question, axis, other_axes)
            total = lax.switch(jnp.maximum(answer[0], OVER), branches, total, *answer[1:])
            return answer, count + 1, total, lost

        first = of_worker(jnp.array([1, 0, 0, 0], jnp.int32))
        state = first, zero, total, jnp.bool_(False)
        answer, _, total, lost = lax.while_loop(lambda state: state[0][0] > OVER, turn, state)
        return _summed(total, answer[0] != OVER, lost, axis)

    return run


def varying_leaf(x: Any, axis: str) -> Array:
    return varying(jnp.asarray(x), axis)


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


def _add(total: Array, part: Any) -> Array:
    return total + jnp.asarray(part).astype(total.dtype)


def _told(ask: Ask, question: Array, axis: str, other_axes: Sequence[str]) -> tuple[Array, Array]:
    """The answer, the same on all devices of a worker, and whether the step has failed.

    The first device asks, and a sum over the others tells them. An answer is typed as equal on all
    workers, which `failed` is in fact; the rest differs.
    """
    shape = jax.ShapeDtypeStruct((ANSWER,), jnp.int32)

    def answered(question: Array) -> Array:
        return varying(io_callback(ask, shape, question, ordered=False), *other_axes)

    def silent(question: Array) -> Array:
        return varying(jnp.zeros(ANSWER, jnp.int32), *other_axes)

    def told(question: Array) -> tuple[Array, Array]:
        question = varying(question, axis, *other_axes)
        if other_axes:
            answer = lax.cond(all_first(other_axes), answered, silent, question)
            answer = lax.psum(answer, tuple(other_axes))
        else:
            answer = answered(question)
        return varying(answer, axis), answer[0] == FAILED

    # A callback needs all axes manual: here those are too that the partitioner has.
    automatic = {name for name in other_axes if not is_manual(name)}
    if automatic:
        told = jax.shard_map(told, axis_names=automatic, in_specs=P(), out_specs=P())
    return told(question)


def _summed(total: Any, is_bad: Array, lost: Array, axis: str) -> Any:
    """The sums over workers; where the step has failed nobody waits for who is gone."""

    def add_up(total: Any) -> Any:
        return lax.psum((total, is_bad), axis)

    def nothing(total: Any) -> Any:
        return Traced(add_up, total).zeros()

    total, bad = lax.cond(lost, nothing, add_up, total)
    return (*total, (bad == 0) & ~lost)
