"""Losses of random games, and what `jax.value_and_grad` gives for them without sharing.

Nothing here calls bcgc_jax.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH, HIDDEN, CLASSES, LENGTH, WORDS, LAYERS = 8, 12, 3, 4, 7, 2
# How the parameters lie on the axis `model`, if they are sharded.
SPECS = {"up": P(None, "model"), "down": P("model", None)}
HALF = ("bfloat16", "float16")


class Model(NamedTuple):
    """What a loss contains.

    Attributes:
      body: How its layers are computed.
      head: "labels" (cross-entropy), "squares" or "tokens" (cross-entropy of tokens).
      is_vmapped: Whether `vmap` maps the network over the rows.
      has_dropout: Whether the inputs of the network depend on a key.
      is_upcast: Whether the scores are converted to float32 at least.
      aux: None, "flat" or "nested".
      reduction: "mean" or "sum".
    """

    body: str
    head: str
    is_vmapped: bool
    has_dropout: bool
    is_upcast: bool
    aux: str | None
    reduction: str

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Model":
        return cls(
            body=str(rng.choice(["plain", "remat", "scan", "remat of scan"])),
            head=str(rng.choice(["labels", "squares", "tokens"])),
            is_vmapped=bool(rng.random() < 0.3),
            has_dropout=bool(rng.random() < 0.3),
            is_upcast=bool(rng.random() < 0.7),
            aux=(None, "flat", "nested")[rng.integers(3)],
            reduction=str(rng.choice(["mean", "sum"])),
        )

    def loss(self, dot: Callable[[Any, Any], Any] = jnp.matmul) -> Callable[..., Any]:
        """Map (params, rows[, key]) to the loss, or to (loss, aux).

        Args:
          dot: Multiplies by a matrix whose rows may be sharded over `model`.
        """

        def without_key(params: Any, rows: Any) -> Any:
            return self._loss(dot, params, rows, None)

        def with_key(params: Any, rows: Any, key: Any) -> Any:
            return self._loss(dot, params, rows, key)

        return with_key if self.has_dropout else without_key

    def _loss(self, dot: Callable[..., Any], params: Any, rows: Any, key: Any) -> Any:
        if self.head == "tokens":
            inputs = params["words"][rows["text"][:, :-1]]
        else:
            inputs = rows["inputs"]
        if self.has_dropout:
            uniform = jax.random.uniform(key, inputs.shape, jnp.float32)
            inputs = jnp.where(uniform < 0.9, inputs, 0)
        network = functools.partial(self._network, dot, params)
        if self.is_vmapped:
            network = jax.vmap(network)
        hidden = network(inputs)
        scores = hidden @ params["head"]
        if self.is_upcast:
            scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        losses = self._losses(scores, rows)
        total = losses.mean() if self.reduction == "mean" else losses.sum()
        if self.aux is None:
            return total
        return total, self._aux(losses, hidden, rows)

    def _network(self, dot: Callable[..., Any], params: Any, inputs: Any) -> Any:
        hidden = jnp.tanh(dot(jnp.tanh(inputs @ params["up"]), params["down"]))

        def layer(hidden: Any, weights: Any) -> Any:
            return hidden + jnp.tanh(hidden @ weights), None

        def layers(hidden: Any, weights: Any) -> Any:
            if self.body in ("scan", "remat of scan"):
                step = jax.checkpoint(layer) if self.body != "scan" else layer
                return lax.scan(step, hidden, weights)[0]
            for place in range(LAYERS):
                hidden, _ = layer(hidden, weights[place])
            return hidden

        # A scan keeps the type of what it carries.
        hidden = hidden.astype(jnp.result_type(hidden, params["layers"]))
        if self.body == "remat":
            return jax.checkpoint(layers)(hidden, params["layers"])
        return layers(hidden, params["layers"])

    def _losses(self, scores: Any, rows: Any) -> Any:
        """The loss of each row."""
        if self.head == "squares":
            targets = rows["targets"].astype(scores.dtype)
            return jnp.sum((scores - targets) ** 2, -1)
        logs = jax.nn.log_softmax(scores)
        if self.head == "labels":
            return -jnp.take_along_axis(logs, rows["labels"][:, None], -1)[:, 0]
        words = rows["text"][:, 1:, None] % CLASSES
        of_tokens = -jnp.take_along_axis(logs, words, -1)[..., 0]
        return jnp.sum(jnp.where(_mask(rows), of_tokens, 0), -1)

    def _aux(self, losses: Any, hidden: Any, rows: Any) -> Any:
        reduce = jnp.mean if self.reduction == "mean" else jnp.sum
        squares = hidden.reshape(-1, WIDTH) ** 2
        if self.reduction == "mean":
            counts = reduce(_counts(rows).astype(jnp.float32))
        else:
            counts = reduce(_counts(rows)).astype(jnp.int32)
        if self.aux == "flat":
            return {"counts": counts}
        hidden_of_rows = squares.reshape(len(losses), -1, WIDTH).mean(1)
        return counts, {"squares": [reduce(hidden_of_rows, 0), reduce(losses**2)]}


def _mask(rows: Any) -> Any:
    return jnp.arange(LENGTH) < rows["lengths"][:, None]


def _counts(rows: Any) -> Any:
    """How many tokens, or positive labels, each row has."""
    if "lengths" in rows:
        return rows["lengths"]
    return jnp.sign(rows["labels"])


def draw_params(rng: np.random.Generator, dtype: str) -> dict[str, np.ndarray]:
    shapes = {
        "words": (WORDS, WIDTH),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
        "layers": (LAYERS, WIDTH, WIDTH),
        "head": (WIDTH, CLASSES),
    }
    return {
        name: (0.5 * rng.standard_normal(shape)).astype(jnp.dtype(dtype))
        for name, shape in shapes.items()
    }


def draw_batch(
    rng: np.random.Generator, head: str, num_rows: int, dtype: str
) -> dict[str, np.ndarray]:
    # Gradients of rows have a direction in common: a sum of those that cancel each
    # other is as inexact without sharing.
    if head == "tokens":
        text = rng.binomial(WORDS - 1, 0.3, (num_rows, LENGTH + 1)).astype(np.int32)
        lengths = rng.integers(1, LENGTH + 1, num_rows).astype(np.int32)
        return {"text": text, "lengths": lengths}
    labels = rng.integers(CLASSES, size=num_rows).astype(np.int32)
    inputs = rng.standard_normal((num_rows, WIDTH)) + 2 * np.eye(CLASSES, WIDTH)[labels]
    targets = 1.0 + rng.random((num_rows, CLASSES))
    batch = {"inputs": inputs, "targets": targets}
    halves = {name: x.astype(jnp.dtype(dtype)) for name, x in batch.items()}
    return {**halves, "labels": labels}


class Piece(NamedTuple):
    """A chunk: consecutive rows of a subset, which has a number there."""

    subset: int
    number: int
    begin: int
    end: int


def pieces(
    num_workers: int, num_chunks: int, num_rows: int, *, is_cut: bool
) -> list[Piece]:
    """The chunks of a step. If the last one of a subset is cut, then into a half and
    two quarters.
    """
    of_subset = num_rows // num_workers
    size = of_subset // num_chunks
    sizes = [size] * num_chunks
    if is_cut:
        sizes[-1:] = [size // 2, size // 4, size // 4]
    edges = np.cumsum([0, *sizes])
    return [
        Piece(subset, number, subset * of_subset + begin, subset * of_subset + end)
        for subset in range(num_workers)
        for number, (begin, end) in enumerate(itertools.pairwise(edges))
    ]


class Expected(NamedTuple):
    """The results ((value, aux), gradient) in float64, and what rounding may change.

    Attributes:
      results: The results.
      slack: The largest unit in the last place of a chunk's part of them.
    """

    results: Any
    slack: Any


class Oracle:
    """Results of `jax.value_and_grad`, of all rows at once or chunk by chunk."""

    def __init__(self, model: Model, sharded_over: Any = ()) -> None:
        self._model = model
        self._put: Callable[[Any], Any] = lambda params: params
        if len(sharded_over):
            # A product of sharded matrices is rounded twice in half precision.
            mesh = Mesh(np.array(sharded_over), ("model",))
            self._put = lambda params: {
                name: jax.device_put(x, NamedSharding(mesh, SPECS.get(name, P())))
                for name, x in params.items()
            }
        has_aux = model.aux is not None
        self._gradient = jax.jit(jax.value_and_grad(model.loss(), has_aux=has_aux))

    def types(self, params: Any, rows: Any, key: Any) -> Any:
        """The types of the results for all rows."""
        keys = (key,) if self._model.has_dropout else ()
        return jax.eval_shape(self._gradient, params, rows, *keys)

    def exact(self, params: Any, rows: Any, key: Any, chunks: Sequence[Piece]) -> Any:
        """The results, computed in float64."""
        with jax.enable_x64(True):
            wide: Any = jax.tree.map(_wide, (params, rows))
            if not self._model.has_dropout:
                gradients = self._gradient(*wide)
                return Expected(
                    _in_numpy(gradients), jax.tree.map(lambda x: 0.0, gradients)
                )
            params, rows = wide
            return self.by_chunks(params, rows, key, chunks)

    def by_chunks(
        self, params: Any, rows: Any, key: Any, chunks: Sequence[Piece]
    ) -> Any:
        """The results as a sum, in float64, of results of chunks in their own types."""
        num_rows = len(next(iter(rows.values())))
        params = self._put(params)
        total, slack = None, None
        for chunk in chunks:
            part = {name: x[chunk.begin : chunk.end] for name, x in rows.items()}
            keys: tuple[Any, ...] = ()
            if self._model.has_dropout:
                keys = (_fold(key, chunk.subset, chunk.number),)
            gradients = self._gradient(params, part, *keys)
            weight = 1.0
            if self._model.reduction == "mean":
                weight = (chunk.end - chunk.begin) / num_rows
            units = jax.tree.map(lambda x, w=weight: w * unit_of(x), gradients)
            scaled = jax.tree.map(lambda x, w=weight: w * x, _in_numpy(gradients))
            if total is None:
                total, slack = scaled, units
            else:
                total = jax.tree.map(np.add, total, scaled)
                slack = jax.tree.map(np.maximum, slack, units)
        return Expected(total, slack)


def step_key(key: Any, step: int) -> Any:
    """The key of a step, with which those of chunks are made."""
    return jax.random.fold_in(key, step)


def _fold(key: Any, subset: int, number: int) -> Any:
    return jax.random.fold_in(jax.random.fold_in(key, subset), number)


def unit_of(x: Any) -> np.ndarray:
    """The unit in the last place of each number; 0 if it is no half precision."""
    dtype = jnp.dtype(x.dtype)
    if str(dtype) not in HALF:
        return np.zeros(np.shape(x))
    info = jnp.finfo(dtype)
    size = np.maximum(np.abs(np.asarray(x, np.float64)), float(info.tiny))
    return 2.0 ** np.floor(np.log2(size)) * float(info.eps)


def _wide(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return np.asarray(x, np.float64)
    return x


def _in_numpy(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
