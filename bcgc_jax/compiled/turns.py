"""The loop of turns on the devices: a question, a chunk's gradient, and at the end one
sum.

A turn begins when the one before has ended: a question at the top of the loop's body
stands in the order of the turns, and the gradient of the chunk before is in the sum by
then. "Over" is a branch that adds nothing. In a step that is not shared the chunks of a
worker's own subset follow the first answer without a question.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class Answer(NamedTuple):
    """An answer on the devices of a worker.

    Attributes:
      chunk: its kind, where its samples begin, its subset, its number there.
      follow: how many chunks of its kind follow without a question.
      lost: whether the step has failed.
    """

    chunk: Array
    follow: Array
    lost: Array


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

        def asked(last: Answer, count: Array, total: Any) -> Answer:
            numbers = jnp.stack([step, count, lax.axis_index(workers.axis)])
            number_of_total = _bits(jax.tree.leaves(total)[0].ravel()[:1])
            question = jnp.concatenate([numbers, number_of_total, of_worker(lengths)])
            return _answer_to_all(call, question, workers)

        # The chunks that follow each other are whole ones, of the first size.
        next_chunk = of_worker(jnp.array([0, sizes[0], 0, 1], jnp.int32))

        def following(last: Answer, count: Array, total: Any) -> Answer:
            return Answer(last.chunk + next_chunk, last.follow - 1, jnp.bool_(False))

        def turn(state: Any) -> Any:
            last, count, total = state
            answer = lax.cond(last.follow > 0, following, asked, last, count, total)
            total = lax.switch(
                jnp.maximum(answer.chunk[0], OVER), branches, total, *answer.chunk[1:]
            )
            return answer, count + 1, total

        begin = of_worker(jnp.array([1, 0, 0, 0], jnp.int32))
        total = jax.tree.map(of_worker, traced.zeros(wide))
        state = Answer(begin, jnp.int32(0), jnp.bool_(False)), zero, total
        answer, _, total = lax.while_loop(
            lambda state: state[0].chunk[0] > OVER, turn, state
        )
        return _summed(total, answer.chunk[0] != OVER, answer.lost, workers.axis)

    return run


def _over(total: Any, *chunk: Array) -> Any:
    return total


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


def _add(total: Array, part: Any) -> Array:
    return total + jnp.asarray(part).astype(total.dtype)


def _answer_to_all(
    call: Callable[[Array], Array], question: Array, workers: Workers
) -> Answer:
    """The answer, the same on all devices of a worker.

    The first device asks, and a sum over all of them tells the others. An answer is
    typed as equal on all workers, which `lost` and `follow` are in fact; the rest
    differs.
    """
    other_axes = workers.other_axes

    def answered(question: Array) -> Array:
        return varying(call(question), *other_axes)

    def silent(question: Array) -> Array:
        return varying(jnp.zeros(ANSWER, jnp.int32), *other_axes)

    def answer_to_all(question: Array, *places: Array) -> Answer:
        question = varying(question, workers.axis, *other_axes)
        if other_axes:
            answer = lax.cond(is_first(manual, places), answered, silent, question)
            answer = lax.psum(answer, other_axes)
        else:
            answer = answered(question)
        chunk = varying(answer[:-1], workers.axis)
        return Answer(chunk, follow=answer[-1], lost=answer[0] == FAILED)

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
