"""Losses with a random key or a state, and checks of a loss before training."""

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
# A function (params, batch), or (params, batch, key), that returns a scalar. The batch
# is a pytree of arrays with the samples along the first axis.
Loss = Callable[..., Array]
# Folded into the key first, so that a loss does not reuse other numbers of the key.
_OF_LOSSES = 2**32 - 1


def takes_key(loss: Callable[..., Any]) -> bool:
    """Whether a loss has three positional arguments without a default.

    >>> (
    ...     takes_key(lambda params, batch, key: 0.0),
    ...     takes_key(lambda params, batch, power=2: 0.0),
    ... )
    (True, False)
    """
    return _required(loss) == 3


def _required(function: Callable[..., Any]) -> int:
    """Count the positional arguments of a function that have no default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # Functions in C may have no signature.
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
    """Derive the PRNG key that a loss (params, batch, key) gets for some samples.

    The key depends only on the samples and the step, so all workers that compute the
    same samples use the same random numbers.

    Args:
      key: Key of `coding.train`. For `CodedWorkers` it is `jax.random.key(seed)`.
      step: Number of the step, from 0.
      subset: Number of the data subset, from 0.
      chunk: Position of the first sample in the subset. Defaults to 0.

    Returns:
      The key of the loss.
    """
    for number in (_OF_LOSSES, step, subset, chunk):
        key = jax.random.fold_in(key, number)
    return key


def keys_of(loss: Loss, key: Array | None) -> Callable[..., tuple[Array, ...]]:
    """Return a function of (step, subset, chunk) that returns (key,) or () for a loss.

    Raises:
      ValueError: If the loss needs a key and `key` is None.
    """
    if not takes_key(loss):
        return lambda step, subset, chunk=0: ()
    if key is None:
        raise ValueError(
            "the loss has three arguments, so its third argument is a random key. Pass "
            "a `key`."
        )
    return lambda step, subset, chunk=0: (loss_key(key, step, subset, chunk),)


class Stateful(NamedTuple):
    """Parameters, and the state that a loss updates: running statistics, metrics."""

    params: PyTree
    state: PyTree


def stateful(
    loss: Callable[..., tuple[Array, PyTree]], optimizer: optax.GradientTransformation
) -> tuple[Loss, optax.GradientTransformation]:
    r"""Transform a loss with a state, such as batch statistics, for coded training.

    The new state is coded, decoded and averaged like a gradient. For this purpose, the
    transformed loss adds (s - s₀) · s_new, where s = s₀ is the old state. This term is
    0, and its gradient in s is the new state.

    Args:
      loss: Function (params, state, batch), or (params, state, batch, key), that
        returns (value, new state). State leaves that the loss does not read can be
        metrics.
      optimizer: Optimiser of the parameters.

    Returns:
      A loss and an optimiser for parameters `Stateful(params, state)`. After each step,
      `state` is the average of the new states, weighted by the numbers of samples. If
      the loss is a sum (`mean=False`), it is the sum of the new states.

    Raises:
      ValueError: If a new state has other leaves than the old one. The transformed loss
        raises it.

    Call this function only once, because the new loss of each call is compiled again.

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
    # Messages then show the name of the original loss.
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
            "the new state of the loss must have the same leaves and shapes as the old "
            f"one, {before}, got {after}"
        )


# Relative tolerance when the loss of a sample taken twice is compared with the loss, or
# with twice the loss of the sample.
_ALIKE = 1e-3
_APART = (
    "remove it from `params`: with Flax NNX, use `graph, params, rest = "
    "nnx.split(model, nnx.Param, ...)`, and `nnx.merge(graph, params, rest)` in the "
    "loss; with Equinox, use `eqx.partition(model, eqx.is_inexact_array)`"
)

_STATE = (
    "For states and metrics, use `loss, optimizer = bcgc_jax.coding.stateful(loss, "
    "optimizer)` with a loss that returns (value, new state) for (params, state, batch)"
)


def check_params(params: PyTree) -> None:
    """Check that all leaves of the parameters are real arrays, which can be trained.

    Raises:
      ValueError: If a leaf is complex, an integer, a boolean or a PRNG key.

    >>> check_params(
    ...     {"w": np.ones(2), "step": np.array(3)}
    ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: params['step'] is int64, but only real numbers can be trained. ...
    """
    refuse_complex("params", params)
    for path, leaf in jax.tree.leaves_with_path(params):
        if hasattr(leaf, "dtype"):
            dtype = leaf.dtype
        else:
            dtype = np.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"params{keystr(path)} is a random key, which training cannot change. "
                "Write the loss as loss(params, batch, key) to get a new key in each "
                f"step, or {_APART}."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params{keystr(path)} is {dtype}, but only real numbers can be "
                f"trained. To fix this, {_APART}."
            )


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Turn JAX's tracing errors of a loss into a ValueError that explains them."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "JAX cannot trace the loss, because it converts its arguments to NumPy "
            "arrays or Python numbers. Use `jax.numpy` instead of `numpy`, and "
            f"`jnp.where` instead of `if` ({str(error).splitlines()[0]})."
        ) from error


def check_loss(loss: Loss, params: PyTree, batch: PyTree, mean: bool) -> None:
    """Check that a loss can be used for coded training.

    A sum over the samples is recognised from the losses of a batch of one sample and of
    a batch that has this sample twice. The test is omitted for losses with a key, and
    when values are traced.

    Args:
      loss: Function (params, batch), or (params, batch, key), that returns the loss.
      params: Parameters, a pytree of arrays.
      batch: Some samples, a pytree of arrays `[m, …]`.
      mean: Whether the loss must be a mean over the samples. Otherwise it must be their
        sum.

    Raises:
      ValueError: If JAX cannot trace the loss, if the loss is not a real number, if a
        leaf of `params` has no gradient, or if the loss contradicts `mean`.
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
            f"batch, got {shapes}. {_STATE}."
        )
    idle = _without_gradient(loss, *arguments)
    if idle:
        names = ", ".join(f"params{keystr(path)}" for path in idle)
        raise ValueError(
            f"the loss has no gradient in {names}, so training would not change it. "
            "The cause may be a running statistic, such as BatchNorm's, or a frozen "
            f"parameter. {_STATE}. For a frozen parameter, {_APART}."
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
            "the loss has three arguments, so its third argument is a random key, and "
            f"with this key it fails: {error}. Pass all samples as one argument: use "
            "loss(params, batch), with x, y = batch."
        ) from error


def _without_gradient(loss: Loss, *arguments: PyTree) -> list[Any]:
    """Return the paths of parameters whose gradient is 0 for all samples."""
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
    """Return the loss of a sample, and of a batch that has the sample twice."""
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), sample)
    return loss(params, sample), loss(params, twice)


def _check_mean(once: float, twice: float, mean: bool) -> None:
    apart = _ALIKE * abs(once)
    if not apart > 0:  # A loss of 0 or NaN does not tell a sum from a mean.
        return
    if mean and abs(twice - 2 * once) <= apart:
        raise ValueError(
            "the loss is a sum over the samples, because it doubles if a sample is "
            "given twice. Return the mean over the samples, or pass `mean=False` to "
            "`coding_plan` or `training_scheme`."
        )
    if not mean and abs(twice - once) <= apart:
        raise ValueError(
            "the loss is a mean over the samples, because it does not change if a "
            "sample is given twice. Return the sum over the samples, or remove "
            "`mean=False`."
        )
