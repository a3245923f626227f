"""Losses, which may draw with a key or make a new state, and checks before training."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.extend import core
from jax.tree_util import keystr

from bcgc_jax._pytree import is_traced
from bcgc_jax.coding.codes import refuse_complex

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


# What twice the same sample gives differs from the loss, or from twice the loss, by
# rounding only.
_ALIKE = 1e-3
_APART = (
    "keep it apart: with Flax NNX `graph, params, rest = nnx.split(model, nnx.Param, "
    "...)`, and in the loss `nnx.merge(graph, params, rest)`; with Equinox "
    "`eqx.partition(model, eqx.is_inexact_array)`"
)

_STATE = (
    "For new states and metrics take `loss, optimizer = bcgc_jax.coding.stateful(loss, "
    "optimizer)`, whose loss returns (value, new state) of (params, state, batch)"
)


def check_params(params: PyTree) -> None:
    """Raise ValueError for a leaf that no gradient can change: no real numbers, random
    keys.

    >>> check_params(
    ...     {"w": np.ones(2), "step": np.array(3)}
    ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: params['step'] is int64, and only real numbers are trained: ...
    """
    refuse_complex("params", params)
    for path, leaf in jax.tree.leaves_with_path(params):
        if hasattr(leaf, "dtype"):
            dtype = leaf.dtype
        else:
            dtype = np.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"params{keystr(path)} is a random key, and no step gets a new one. A "
                "loss of three arguments, loss(params, batch, key), is given a new key "
                f"each time; {_APART}"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params{keystr(path)} is {dtype}, and only real numbers are trained: "
                f"{_APART}"
            )


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Raise ValueError in place of JAX's own errors where a loss is not one of JAX."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "JAX cannot trace the loss: it makes NumPy arrays or Python numbers of its "
            "arguments. Write it with jax.numpy, not numpy, and with jnp.where, not if "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_loss(loss: Loss, params: PyTree, batch: PyTree, mean: bool) -> None:
    """Raise ValueError for a loss that cannot be trained with.

    That is one that is not traceable or no number, gives some leaf of `params` no
    gradient, is a sum over samples where `mean`, or a mean where not.

    Whether it is a sum is seen from one sample of the batch, alone and twice, where its
    values are known and it does not draw.
    """
    check_params(params)
    arguments = params, batch, *keys_of(loss, jax.random.key(0))(0, 0)
    with traceable():
        values = jax.tree.leaves(_outputs(loss, *arguments))
    if (
        len(values) != 1
        or values[0].shape
        or not jnp.issubdtype(values[0].dtype, jnp.floating)
    ):
        shapes = ", ".join(f"{value.dtype}{list(value.shape)}" for value in values)
        raise ValueError(
            "the loss must return one real number, the mean over the samples of its "
            f"batch, got {shapes}. {_STATE}"
        )
    idle = _without_gradient(loss, *arguments)
    if idle:
        names = ", ".join(f"params{keystr(path)}" for path in idle)
        raise ValueError(
            f"the loss gives {names} no gradient: a running statistic, as of "
            "BatchNorm, or what is frozen is no parameter, and no step updates it. "
            f"{_STATE}; take another normalization; or {_APART}"
        )
    if not takes_key(loss) and not is_traced((params, batch)):
        sample = jax.tree.map(lambda x: np.asarray(x[:1]), batch)
        once, twice = _once_and_twice(loss, params, sample)
        _check_mean(float(once), float(twice), mean)


def _outputs(loss: Loss, *arguments: PyTree) -> PyTree:
    try:
        return jax.eval_shape(loss, *arguments)
    except TypeError as error:
        if isinstance(error, jax.errors.JAXTypeError) or not takes_key(loss):
            raise
        raise ValueError(
            "the loss has three arguments, so its third one is a random key, and with "
            f"that it fails: {error}. Samples are one argument: loss(params, batch), "
            "with x, y = batch"
        ) from error


def _without_gradient(loss: Loss, *arguments: PyTree) -> list[Any]:
    """The paths of parameters whose gradient is a constant 0, whatever the samples."""
    closed = jax.make_jaxpr(jax.grad(loss))(*arguments)
    zeros = set[Any]()
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "broadcast_in_dim" and _is_zero(
            equation.invars[0]
        ):
            zeros.update(equation.outvars)
    pairs = zip(
        jax.tree.leaves_with_path(arguments[0]), closed.jaxpr.outvars, strict=True
    )
    return [
        path
        for (path, leaf), v in pairs
        if np.size(leaf) and (_is_zero(v) or v in zeros)
    ]


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, core.Literal) and not np.any(atom.val)


@functools.partial(jax.jit, static_argnums=0)
def _once_and_twice(loss: Loss, params: PyTree, sample: PyTree) -> tuple[Array, Array]:
    """The loss of a sample, and of the same sample twice."""
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), sample)
    return loss(params, sample), loss(params, twice)


def _check_mean(once: float, twice: float, mean: bool) -> None:
    apart = _ALIKE * abs(once)
    if not apart > 0:  # nothing can be said; of NaN neither
        return
    if mean and abs(twice - 2 * once) <= apart:
        raise ValueError(
            "the loss of one sample twice is twice as large as once: it is a sum over "
            "the samples. Return their mean, or say so by mean=False "
            '(plan_options={"mean": False} where processes train)'
        )
    if not mean and abs(twice - once) <= apart:
        raise ValueError(
            "the loss of one sample twice is as large as once: it is a mean over the "
            "samples. Leave out mean=False, or return their sum"
        )
