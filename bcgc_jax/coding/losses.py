"""Losses that draw at random with a key, or make a new state."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import keystr

PyTree = Any
# (parameters, batch) to a scalar, or (parameters, batch, key). The batch is a pytree of
# arrays with the samples along the first axis.
Loss = Callable[..., Array]
# Folded into a key first: apart from what else is drawn with that key.
_OF_LOSSES = 2**32 - 1


def takes_key(loss: Callable[..., Any]) -> bool:
    """Whether it has three arguments without a default.

    >>> (
    ...     takes_key(lambda params, batch, key: 0.0),
    ...     takes_key(lambda params, batch, power=2: 0.0),
    ... )
    (True, False)
    """
    return _required(loss) == 3


def _required(function: Callable[..., Any]) -> int:
    """How many positional arguments it has without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return 0
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


@jax.jit
def loss_key(
    key: Array, step: int | Array, subset: int | Array, chunk: int | Array = 0
) -> Array:
    """The key that a loss of (params, batch, key) gets for a chunk of a subset in a
    step, from 0.

    `key` is that of `coding.train`, and for `Cluster.assign` `jax.random.key(seed)`.
    `chunk` is the place of its first sample in the subset, 0 where that is computed as
    a whole; in work sharing the chunk's number. Whoever computes the same samples draws
    the same.
    """
    for number in (_OF_LOSSES, step, subset, chunk):
        key = jax.random.fold_in(key, number)
    return key


def keys_of(loss: Loss, key: Array | None) -> Callable[..., tuple[Array, ...]]:
    """From (step, subset, chunk) to the loss's further arguments: a key or nothing."""
    if not takes_key(loss):
        return lambda step, subset, chunk=0: ()
    if key is None:
        raise ValueError(
            "the loss has three arguments, of which the third is a random key: give a "
            "key"
        )
    return lambda step, subset, chunk=0: (loss_key(key, step, subset, chunk),)


class Stateful(NamedTuple):
    """Parameters, and what a loss makes anew: running statistics, metrics."""

    params: PyTree
    state: PyTree


def stateful(
    loss: Callable[..., tuple[Array, PyTree]], optimizer: optax.GradientTransformation
) -> tuple[Loss, optax.GradientTransformation]:
    r"""The loss and the optimiser, for both trainers, of a loss that makes a new state.

    `loss` goes from (params, state, batch) to a value and a new state. What is trained
    then is `Stateful(params, state)`. After each step `state` is the average of what
    was made of all chunks of the batch, weighted as their samples (where `mean=False`,
    the sum); values that the loss does not read are metrics. `loss` may take a key, as
    its last argument.

    Call it once: each call gives a new function, which is compiled anew. ValueError
    where a new state has other leaves than the old one.

    The state is summed as a gradient, so whatever holds of gradients holds of it:
    codes, copies, faults, checkpoints. To the loss it adds s - s = 0, whose slope in s
    is the new state.

    >>> def loss(params, state, batch):
    ...     return jnp.mean((batch - params) ** 2), 0.9 * state + 0.1 * batch.mean()
    >>> with_state, optimizer = stateful(loss, optax.sgd(0.5))
    >>> variables = Stateful(jnp.float32(0), jnp.float32(1))
    >>> gradient = jax.grad(with_state)(variables, jnp.array([1.0, 3.0]))
    >>> updates, _ = optimizer.update(gradient, optimizer.init(variables), variables)
    >>> jax.tree.map(float, optax.apply_updates(variables, updates))
    Stateful(params=2.0, state=1.100000023841858)
    """

    def value(variables: Stateful, batch: PyTree, *key: Array) -> Array:
        old_state = jax.lax.stop_gradient(variables.state)
        number, new_state = loss(variables.params, old_state, batch, *key)
        _check_alike(old_state, new_state)

        def nothing(state: Array, old_state: Array, new_state: Array) -> Array:
            return jnp.sum(
                (state - old_state) * jax.lax.stop_gradient(new_state)
            ).astype(number.dtype)

        return number + sum(
            jax.tree.leaves(
                jax.tree.map(nothing, variables.state, old_state, new_state)
            )
        )

    def with_key(variables: Stateful, batch: PyTree, key: Array) -> Array:
        return value(variables, batch, key)

    def without_key(variables: Stateful, batch: PyTree) -> Array:
        return value(variables, batch)

    def init(variables: PyTree) -> Any:
        return optimizer.init(variables.params)

    def update(gradient: PyTree, kept: Any, variables: PyTree) -> tuple[PyTree, Any]:
        updates, kept = optimizer.update(gradient.params, kept, variables.params)
        return Stateful(
            updates, jax.tree.map(jnp.subtract, gradient.state, variables.state)
        ), kept

    loss_fn: Loss = without_key
    if _required(loss) == 4:
        loss_fn = with_key
    # checkpoints know a loss by it
    loss_fn.__qualname__ = getattr(loss, "__qualname__", loss_fn.__qualname__)
    return loss_fn, optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _check_alike(old_state: PyTree, new_state: PyTree) -> None:
    before = _shapes(old_state)
    after = _shapes(new_state)
    if before != after:
        raise ValueError(
            f"the new state of the loss must have the leaves of the old one, {before}, "
            f"got {after}"
        )
