"""A loop that many problems run through together, each for as many rounds as it needs."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Constants = TypeVar("Constants")
State = TypeVar("State")
Answer = TypeVar("Answer")


def loop(
    go_on: Callable[[Constants, State], Array],
    step: Callable[[Constants, State], State],
    lane_step: Callable[[Constants, State], State],
    answer: Callable[[Constants, State], Answer],
    constants: Constants,
    state: State,
    *,
    lanes: int,
) -> Answer:
    """`answer` of the state after `step` for as long as `go_on`: `jax.lax.while_loop`, but for `jax.vmap`.

    A `while_loop` under `vmap` runs all problems as long as the slowest of them. Here `lanes` of them run at
    a time, and a lane whose problem is done takes up the next one. Lanes go by `lane_step`, which may be a
    part of `step`. The functions see nothing that is traced but their arguments.
    """

    @jax.custom_batching.custom_vmap
    def run(constants: Constants, state: State) -> Answer:
        last = jax.lax.while_loop(lambda s: go_on(constants, s), lambda s: step(constants, s), state)
        return answer(constants, last)

    @run.def_vmap
    def run_many(size: int, batched: Any, constants: Constants, state: State) -> tuple[Answer, Any]:
        cells = jax.tree.map(
            lambda a, is_batched: (
                jnp.asarray(a) if is_batched else jnp.broadcast_to(a, (size, *jnp.shape(a)))
            ),
            (constants, state),
            tuple(batched),
        )
        answers = _run_lanes(go_on, lane_step, answer, cells, size, min(lanes, size))
        return answers, jax.tree.map(lambda _: True, answers)

    return run(constants, state)


def _run_lanes(
    go_on: Callable[..., Array],
    step: Callable[..., Any],
    answer: Callable[..., Any],
    cells: tuple[Any, Any],
    size: int,
    lanes: int,
) -> Any:
    """The answers of all cells, (constants, state) with a leading axis of `size`."""

    def take(index: Array) -> tuple[Any, Any]:
        return jax.tree.map(lambda a: a.at[index].get(mode="clip"), cells)

    def one(constants: Any, state: Any) -> tuple[Any, Array]:
        # A cell that needs no step takes none.
        open_ = go_on(constants, state)
        state = jax.tree.map(lambda a, b: jnp.where(open_, a, b), step(constants, state), state)
        return state, go_on(constants, state)

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        at, following, (constants, state), answers = carry
        state, open_ = jax.vmap(one)(constants, state)
        done = (at < size) & ~open_
        new = (at, following, (constants, state), answers)
        return jax.lax.cond(jnp.any(done), refill, lambda _, *same: same, done, *new)

    def refill(
        done: Array, at: Array, following: Array, running: tuple[Any, Any], answers: Any
    ) -> tuple[Any, ...]:
        found = jax.vmap(answer)(*running)
        place = jnp.where(done, at, size)
        answers = jax.tree.map(lambda a, b: a.at[place].set(b, mode="drop"), answers, found)
        at = jnp.where(done, jnp.minimum(following + jnp.cumsum(done) - 1, size), at)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(done.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return at, following + jnp.sum(done), jax.tree.map(choose, take(at), running), answers

    at = jnp.arange(lanes)
    running = take(at)
    shapes = jax.eval_shape(jax.vmap(answer), *running)
    answers = jax.tree.map(lambda s: jnp.zeros((size, *s.shape[1:]), s.dtype), shapes)
    carry = (at, jnp.asarray(lanes), running, answers)
    return jax.lax.while_loop(lambda c: jnp.any(c[0] < size), advance, carry)[3]
