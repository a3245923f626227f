"""The loop on the devices: request a chunk, add its gradient, and reduce at the end.

A turn of the loop begins with a request, so requests come in the order of the turns,
and the gradient of the last chunk has been added before the next request. In a step
that is not shared, the chunks of a worker's own subset follow the first answer without
a request.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled.losses import (
    Loss,
    LossCheck,
    add_weighted,
    check_reducible,
    checksum,
    refuse_rows,
    twice,
    weighted_sums,
    wide,
    with_dtypes,
)
from bcgc_jax.balancing.compiled.questions import ANSWER, FAILED, OVER, report_size
from bcgc_jax.balancing.compiled.tracing import (
    Traced,
    Workers,
    axis_size,
    host_call,
    is_first,
    manual_axes,
    refuse_collectives,
    varying,
    with_watched_callbacks,
)


class Host(NamedTuple):
    """What a program calls on the host.

    Attributes:
      answer: Maps what is checked and a request to an answer.
      failed: Is told the error of a callback of the loss.
    """

    answer: Callable[[LossCheck | None, np.ndarray], np.ndarray]
    failed: Callable[[BaseException], None]


class Answer(NamedTuple):
    """An answer on the devices of a worker.

    Attributes:
      chunk: Its kind, its first row, its subset and its number there.
      follow: How many chunks of its kind follow without a request.
      lost: Whether the step has failed.
    """

    chunk: Array
    follow: Array
    lost: Array


class _Chunks(NamedTuple):
    """What a worker's devices compute of the chunks of a step.

    A chunk is its first row, its subset and its number there.
    """

    loss: Loss
    slope: Callable[..., Any]
    params: Any
    stored: Any
    step: Array
    key: Any

    def value_and_grad(
        self, size: int, begin: Array, subset: Array, number: Array
    ) -> Any:
        rows = self._rows(size, begin)
        return self.slope(self.params, rows, *self._seed(subset, number))

    def halves(self, size: int, begin: Array, subset: Array, number: Array) -> Array:
        rows = self._rows(size, begin)
        values = self.loss.of_halves(self.params, rows, self._seed(subset, number))
        return _bits(values.ravel())

    def checksum(self, size: int, begin: Array, subset: Array, number: Array) -> Array:
        return checksum(self._rows(size, begin))

    def check(self, size: int, zero: Array) -> LossCheck:
        rows = self._rows(size, zero)
        return self.loss.check_of(self.params, rows, self._seed(zero, zero))

    def types_of_twice(self, size: int, zero: Array) -> Any:
        """The types of the loss of twice as many rows."""

        def loss_of_twice(zero: Array) -> Any:
            rows = twice(self._rows(size, zero))
            return self.loss.function(self.params, rows, *self._seed(zero, zero))

        return Traced(loss_of_twice, zero).types

    def _rows(self, size: int, begin: Array) -> Any:
        take = functools.partial(
            lax.dynamic_slice_in_dim, start_index=begin, slice_size=size
        )
        return jax.tree.map(take, self.stored)

    def _seed(self, subset: Array, number: Array) -> tuple[Array, ...]:
        """The key of a chunk, if the loss has one."""
        if self.key is None:
            return ()
        numbers = (self.step, subset, number)
        return (functools.reduce(jax.random.fold_in, numbers, self.key),)


def gradient_of_chunks(
    loss: Loss,
    host: Host,
    sizes: Sequence[int],
    num_samples: int,
    workers: Workers,
    is_checked: bool,
) -> Callable[..., Any]:
    """Map (params, stored, step, key, loads) to (value, gradient, ok) of a step.

    All arrays are those of the devices of one worker, within `shard_map`. With
    auxiliary values, `value` is a pair. With `is_checked` the program can compute what
    `Questions` checks in the first step.
    """
    # The jitted function is traced once for each size of a chunk.
    slope = with_watched_callbacks(
        jax.jit(jax.value_and_grad(loss.function, has_aux=loss.has_aux)), host.failed
    )
    of_worker = functools.partial(_of_worker, workers)
    scale = 1.0
    if loss.reduction == "mean":
        scale = sizes[0] / num_samples

    def run(params: Any, stored: Any, step: Any, key: Any, loads: Array | None) -> Any:
        step = of_worker(jnp.asarray(step, jnp.int32))
        params = jax.tree.map(of_worker, params)
        lengths = jnp.zeros(0, jnp.int32)
        if loads is not None:
            lengths = _bits(loads.reshape(-1))
        zero = of_worker(jnp.int32(0))
        chunks = _Chunks(loss, slope, params, stored, step, _key(key, of_worker))
        first = functools.partial(chunks.value_and_grad, sizes[0])
        traced = Traced(first, zero, zero, zero)
        refuse_collectives(traced.jaxpr, workers)
        check_reducible(loss, traced.types, workers.axis)
        if loss.has_aux:
            types_of_twice = chunks.types_of_twice(sizes[0], zero)
            refuse_rows(traced.types[0], types_of_twice, sizes[0])
        check = chunks.check(sizes[0], zero) if is_checked else None
        branches = _branches(chunks, sizes, workers, check)
        on_host = functools.partial(host.answer, check)
        call = host_call(on_host, ANSWER, workers.platform)

        def asked(last: Answer, count: Array, total: Any, report: Array) -> Answer:
            numbers = jnp.stack([step, count, lax.axis_index(workers.axis)])
            request = [numbers, _bits(jax.tree.leaves(total)[0].ravel()[:1])]
            if check is not None:
                values, _ = total
                request += [_bits(weighted_sums(values)), report]
            return _answer_to_all(
                call, jnp.concatenate([*request, of_worker(lengths)]), workers
            )

        # The chunks that follow each other are whole ones, of the first size.
        next_chunk = of_worker(jnp.array([0, sizes[0], 0, 1], jnp.int32))

        def following(last: Answer, count: Array, total: Any, report: Array) -> Answer:
            return Answer(last.chunk + next_chunk, last.follow - 1, jnp.bool_(False))

        def turn(state: Any) -> Any:
            last, count, total, report = state
            answer = lax.cond(last.follow > 0, following, asked, *state)
            kind = jnp.maximum(answer.chunk[0], OVER)
            total, report = lax.switch(kind, branches, total, report, *answer.chunk[1:])
            return answer, count + 1, total, report

        begin = of_worker(jnp.array([1, 0, 0, 0], jnp.int32))
        total = jax.tree.map(of_worker, traced.zeros(wide))
        report = _reported(workers, jnp.zeros(report_size(check), jnp.int32))
        state = Answer(begin, jnp.int32(0), jnp.bool_(False)), zero, total, report
        answer, _, total, _ = lax.while_loop(
            lambda state: state[0].chunk[0] > OVER, turn, state
        )
        total, ok = _reduced(total, answer.chunk[0] != OVER, answer.lost, workers)
        return *with_dtypes(total, traced.types, scale, ok), ok

    return run


def _branches(
    chunks: _Chunks, sizes: Sequence[int], workers: Workers, check: LossCheck | None
) -> list[Callable[..., Any]]:
    """What the loop does by the kind of an answer, in the order of `questions.py`.

    Each branch maps the sum, the report of the last check, and a chunk to the next sum
    and report.
    """

    def added(size: int, total: Any, report: Array, *chunk: Array) -> Any:
        weight = 1.0
        if chunks.loss.reduction == "mean":
            # Sizes differ by powers of two, so that the products are exact.
            weight = size / sizes[0]
        part = chunks.value_and_grad(size, *chunk)
        return jax.tree.map(
            functools.partial(add_weighted, weight), total, part
        ), report

    def checked(
        computed: Callable[..., Array], size: int, total: Any, _: Array, *chunk: Array
    ) -> Any:
        numbers = computed(size, *chunk)
        missing = report_size(check) - len(numbers)
        return total, _reported(workers, jnp.pad(numbers, (0, missing)))

    branches: list[Callable[..., Any]] = [_over]
    branches += [functools.partial(added, size) for size in sizes]
    if check is not None:
        branches.append(functools.partial(checked, chunks.halves, sizes[0]))
        branches += [
            functools.partial(checked, chunks.checksum, size) for size in sizes
        ]
    return branches


def _reported(workers: Workers, report: Array) -> Array:
    """A report, which may differ between all devices."""
    return varying(report, workers.axis, *manual_axes(workers))


def _of_worker(workers: Workers, x: Any) -> Array:
    """An array that may differ between workers."""
    return varying(jnp.asarray(x), workers.axis)


def _over(total: Any, report: Array, *chunk: Array) -> Any:
    return total, report


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


def _key(key: Any, of_worker: Callable[[Any], Array]) -> Any:
    """The key of a step on a worker: a typed key, an old one of uint32, or None."""
    if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return None if key is None else of_worker(key)
    bits = of_worker(jax.random.key_data(key))
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))


def _answer_to_all(
    call: Callable[[Array], Array], question: Array, workers: Workers
) -> Answer:
    """The answer, the same on all devices of a worker.

    The first device sends the request, and a sum over all of them tells the others.
    `lost` and `follow` are typed as equal on all workers, because they are equal.
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

    # A callback needs all axes to be manual, also those of the partitioner.
    manual = manual_axes(workers)
    automatic = [name for name in other_axes if name not in manual]
    if not automatic:
        return answer_to_all(question)
    places = [jnp.arange(axis_size(name)) for name in automatic]
    specs = P(), *(P(name) for name in automatic)
    whole = jax.shard_map(
        answer_to_all, axis_names=set(automatic), in_specs=specs, out_specs=P()
    )
    return whole(question, *places)


def _reduced(total: Any, is_bad: Array, lost: Array, workers: Workers) -> Any:
    """The sums over workers. If the step has failed, no worker waits for a lost one.

    XLA cannot compile a reduction over a single worker whose devices the partitioner
    has. Without it, the results stay typed as values that differ between workers.
    """
    axis = workers.axis
    if axis_size(axis) == 1 and len(manual_axes(workers)) < len(workers.other_axes):
        return total, ~is_bad

    def add_up(total: Any) -> Any:
        return lax.psum((total, is_bad), axis)

    def nothing(total: Any) -> Any:
        return Traced(add_up, total).zeros()

    total, bad = lax.cond(lost, nothing, add_up, total)
    return total, (bad == 0) & ~lost
