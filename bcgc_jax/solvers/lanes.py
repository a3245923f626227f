"""A loop under `jax.vmap` whose next problem takes up a lane that is done."""

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
    """`answer` of the state after steps for as long as `go_on`.

    All three are functions of constants and state, and of traced values only by these.
    A `while_loop` under `vmap` runs all problems as long as the slowest of them. Here
    `lanes` of them run at a time, on a CPU and elsewhere, and a lane whose problem is
    done takes up the next one. The step of a batch is `step_of` its size.
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
            # The platform is known where it is compiled, not where it is traced:
            # programs are exported for other platforms.
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
    """The answers of all cells: `constants` and `state` have an axis of `size`."""
    go_on, step, answer = functions
    # A state is a row of numbers: with an array for each field there is a tenth more to
    # compile.
    _, fields = ravel_pytree(jax.tree.map(lambda a: a[0], state))
    state = jax.vmap(lambda s: ravel_pytree(s)[0])(state)

    def answered(constants: Any, row: Array) -> Any:
        return answer(constants, fields(row))

    def take(index: Array) -> tuple[Any, Any]:
        return jax.tree.map(lambda a: a.at[index].get(mode="clip"), (constants, state))

    def step_cell(constants: Any, row: Array) -> tuple[Array, Array]:
        # A cell that needs no step takes none.
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
