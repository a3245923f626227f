"""A while loop under `jax.vmap` in which a finished problem is replaced by the next."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike


def loop(
    go_on: Callable[[Any, Any], Array],
    step_of: Callable[[int], Callable[[Any, Any], Any]],
    answer: Callable[[Any, Any], Any],
    constants: Any,
    state: Any,
    *,
    lanes: tuple[int, int],
) -> Any:
    """Step while `go_on`, and return `answer` of the last state.

    Under `vmap`, a `while_loop` runs all problems until the slowest one has finished.
    Here only some problems run at a time, each in a lane. When a problem has finished,
    its lane continues with the next problem.

    Args:
      go_on: Function (constants, state) that returns whether to continue.
      step_of: Function of the batch size that returns the step, a function (constants,
        state).
      answer: Function (constants, state) that returns the result.
      constants: Constants of a problem. The functions must not use other traced values.
      state: First state of a problem.
      lanes: Numbers of lanes on a CPU and on other platforms.
    """
    step = step_of(1)

    @jax.custom_batching.custom_vmap
    def run(constants: Any, state: Any) -> Any:
        keep_on = functools.partial(go_on, constants)
        last = jax.lax.while_loop(keep_on, functools.partial(step, constants), state)
        return answer(constants, last)

    @run.def_vmap
    def run_many(
        size: int, batched: Any, constants: Any, state: Any
    ) -> tuple[Any, Any]:
        def widen(a: ArrayLike, is_batched: bool) -> Array:
            if is_batched:
                return jnp.asarray(a)
            return jnp.broadcast_to(a, (size, *jnp.shape(a)))

        cells = jax.tree.map(widen, (constants, state), tuple(batched))
        functions = go_on, step_of(size), answer
        run_lanes = functools.partial(_run_lanes, functions, size)
        on_cpu, elsewhere = (functools.partial(run_lanes, min(n, size)) for n in lanes)
        if size <= min(lanes):
            answers = on_cpu(*cells)
        else:
            # The platform is not known during tracing, because programs may be exported
            # for other platforms.
            answers = jax.lax.platform_dependent(*cells, cpu=on_cpu, default=elsewhere)
        return answers, jax.tree.map(lambda _: True, answers)

    return run(constants, state)


def _run_lanes(
    functions: tuple[Callable[..., Any], ...],
    size: int,
    lanes: int,
    constants: Any,
    state: Any,
) -> Any:
    """Solve all cells; `constants` and `state` have a leading axis of `size`."""
    go_on, step, answer = functions
    # The state is flattened to a row, because one array per field takes a tenth longer
    # to compile.
    _, fields = ravel_pytree(jax.tree.map(lambda a: a[0], state))
    state = jax.vmap(lambda s: ravel_pytree(s)[0])(state)

    def answered(constants: Any, row: Array) -> Any:
        return answer(constants, fields(row))

    def take(index: Array) -> tuple[Any, Any]:
        return jax.tree.map(lambda a: a.at[index].get(mode="clip"), (constants, state))

    def step_cell(constants: Any, row: Array) -> tuple[Array, Array]:
        # A finished cell does not change.
        state = fields(row)
        row = jnp.where(
            go_on(constants, state), ravel_pytree(step(constants, state))[0], row
        )
        return row, go_on(constants, fields(row))

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        cell, following, (constants, state), answers = carry
        state, open_ = jax.vmap(step_cell)(constants, state)
        done = (cell < size) & ~open_
        new = (cell, following, (constants, state), answers)
        return jax.lax.cond(
            jnp.any(done), refill, lambda _, *unchanged: unchanged, done, *new
        )

    def refill(
        done: Array, cell: Array, following: Array, running: Any, answers: Any
    ) -> tuple[Any, ...]:
        new_answers = jax.vmap(answered)(*running)
        place = jnp.where(done, cell, size)
        answers = jax.tree.map(
            lambda a, b: a.at[place].set(b, mode="drop"), answers, new_answers
        )
        cell = jnp.where(
            done, jnp.minimum(following + jnp.cumsum(done) - 1, size), cell
        )

        def choose(new: Array, previous: Array) -> Array:
            return jnp.where(done.reshape(-1, *(1,) * (new.ndim - 1)), new, previous)

        return (
            cell,
            following + jnp.sum(done),
            jax.tree.map(choose, take(cell), running),
            answers,
        )

    cell = jnp.arange(lanes)
    running = jax.tree.map(lambda a: a[:lanes], (constants, state))
    shapes = jax.eval_shape(jax.vmap(answered), *running)
    answers = jax.tree.map(lambda s: jnp.zeros((size, *s.shape[1:]), s.dtype), shapes)
    carry = cell, jnp.asarray(lanes), running, answers
    return jax.lax.while_loop(lambda c: jnp.any(c[0] < size), advance, carry)[3]
