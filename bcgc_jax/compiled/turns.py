"""The loop of turns on the devices: a question, a chunk's gradient, and at the end one
sum.

A turn begins when the one before has ended: a question at the top of the loop's body
stands in the order of the turns, and the gradient of the chunk before is in the sum by
then. "Over" is a branch that adds nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from bcgc_jax.compiled.questions import ANSWER, FAILED, OVER
from bcgc_jax.compiled.tracing import (
    Traced,
    Workers,
    axis_size,
    host_call,
    is_first,
    is_manual,
    refuse_collectives,
    varying,
    wide,
)


def sum_of_chunks(
    loss: Callable[..., Any],
    ask: Callable[[np.ndarray], np.ndarray],
    sizes: Sequence[int],
    workers: Workers,
    has_aux: bool,
) -> Callable[..., Any]:
    """(params, stored, step, key, loads) to (value, gradient, ok), sums over all chunks
    of a step.

    All of it is of one worker's devices, within `shard_map`. With `has_aux` value is a
    pair.
    """
    # In `jit` for it is traced once for a size of chunk: for its types, and in the
    # loop.
    slope = jax.jit(jax.value_and_grad(loss, has_aux=has_aux))
    call = host_call(ask, ANSWER, workers.platform)

    def of_worker(x: Any) -> Array:
        return varying(jnp.asarray(x), workers.axis)

    def run(
        params: Any, stored: Any, step: Any, key: Array, loads: Array | None
    ) -> Any:
        step = of_worker(jnp.asarray(step, jnp.int32))
        params = jax.tree.map(of_worker, params)
        bits = of_worker(jax.random.key_data(key))
        key = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))
        if loads is None:
            lengths = jnp.zeros(0, jnp.int32)
        else:
            lengths = _bits(loads.reshape(-1))
        zero = of_worker(jnp.int32(0))

        def of_chunk(size: int, begin: Array, subset: Array, number: Array) -> Any:
            take = functools.partial(
                lax.dynamic_slice_in_dim, start_index=begin, slice_size=size
            )
            seed = functools.reduce(jax.random.fold_in, (step, subset, number), key)
            return slope(params, jax.tree.map(take, stored), seed)

        def added(size: int, total: Any, *chunk: Array) -> Any:
            return jax.tree.map(_add, total, of_chunk(size, *chunk))

        traced = Traced(functools.partial(of_chunk, sizes[-1]), zero, zero, zero)
        refuse_collectives(traced.jaxpr, workers)
        branches: list[Callable[..., Any]] = [_over]
        branches += [functools.partial(added, size) for size in sizes]

        def turn(state: Any) -> Any:
            _, count, total, _ = state
            numbers = jnp.stack([step, count, lax.axis_index(workers.axis)])
            number_of_total = _bits(jax.tree.leaves(total)[0].ravel()[:1])
            question = jnp.concatenate([numbers, number_of_total, of_worker(lengths)])
            answer, lost = _answer_to_all(call, question, workers)
            total = lax.switch(
                jnp.maximum(answer[0], OVER), branches, total, *answer[1:]
            )
            return answer, count + 1, total, lost

        first = of_worker(jnp.array([1, 0, 0, 0], jnp.int32))
        total = jax.tree.map(of_worker, traced.zeros(wide))
        state = first, zero, total, jnp.bool_(False)
        answer, _, total, lost = lax.while_loop(
            lambda state: state[0][0] > OVER, turn, state
        )
        return _summed(total, answer[0] != OVER, lost, workers.axis)

    return run


def _over(total: Any, *chunk: Array) -> Any:
    return total


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


def _add(total: Array, part: Any) -> Array:
    return total + jnp.asarray(part).astype(total.dtype)


def _answer_to_all(
    call: Callable[[Array], Array], question: Array, workers: Workers
) -> tuple[Array, Array]:
    """The answer, the same on all devices of a worker, and whether the step has failed.

    The first device asks, and a sum over all of them tells the others. An answer is
    typed as equal on all workers, which `failed` is in fact; the rest differs.
    """
    other_axes = workers.other_axes

    def answered(question: Array) -> Array:
        return varying(call(question), *other_axes)

    def silent(question: Array) -> Array:
        return varying(jnp.zeros(ANSWER, jnp.int32), *other_axes)

    def answer_to_all(question: Array, *places: Array) -> tuple[Array, Array]:
        question = varying(question, workers.axis, *other_axes)
        if other_axes:
            answer = lax.cond(is_first(manual, places), answered, silent, question)
            answer = lax.psum(answer, other_axes)
        else:
            answer = answered(question)
        return varying(answer, workers.axis), answer[0] == FAILED

    # A callback needs all axes manual: here those are too that the partitioner has.
    manual = [name for name in other_axes if is_manual(name)]
    automatic = [name for name in other_axes if name not in manual]
    if not automatic:
        return answer_to_all(question)
    places = [jnp.arange(axis_size(name)) for name in automatic]
    specs = P(), *(P(name) for name in automatic)
    whole = jax.shard_map(
        answer_to_all, axis_names=set(automatic), in_specs=specs, out_specs=P()
    )
    return whole(question, *places)


def _summed(total: Any, is_bad: Array, lost: Array, axis: str) -> Any:
    """The sums over workers; where the step has failed nobody waits for who is gone."""

    def add_up(total: Any) -> Any:
        return lax.psum((total, is_bad), axis)

    def nothing(total: Any) -> Any:
        return Traced(add_up, total).zeros()

    total, bad = lax.cond(lost, nothing, add_up, total)
    return (*total, (bad == 0) & ~lost)
