r"""Block-coded gradients of a loss over a pytree of parameters.

The coordinates of the gradient are cut into blocks, one for each redundancy level in
use. Their order is the order in which backpropagation computes them. For a block at
level n, each worker sends a weighted sum of its gradients on n + 1 data subsets. The
master decodes the block from the messages of any N - n workers. A schedule has no code:
a block is complete when, for each data subset, one worker has finished its gradient.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    check,
    check_whole,
    concrete,
    pytree_dataclass,
    replace,
    static_field,
)
from bcgc_jax.coding.codes import (
    GradientCode,
    decode,
    decoding_weights,
    encode,
    gradient_code,
    kept,
    refuse_complex,
    repetition_code,
)
from bcgc_jax.coding.losses import Loss, PyTree, keys_of
from bcgc_jax.plans.circle import soonest_of
from bcgc_jax.plans.completion import AnyOf, Exact, FirstHolder, OneOfEach
from bcgc_jax.plans.groups import Groups
from bcgc_jax.plans.partitions import round_partition, round_to_units
from bcgc_jax.plans.passes import chunks_that_pay
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.sharing import WorkSharing

UNITS = ("coordinates", "leaves", "layers")


class Piece(NamedTuple):
    """Coordinates `start` … `stop` - 1 of a raveled leaf, numbered as in `jax.tree`."""

    leaf: int
    start: int
    stop: int


class Block(NamedTuple):
    """Coordinates at one redundancy level.

    `share` is the range of each subset's samples, as fractions. Defaults to all.
    """

    level: int
    pieces: tuple[Piece, ...]
    share: tuple[float, float] = (0.0, 1.0)

    @property
    def size(self) -> int:
        return sum(p.stop - p.start for p in self.pieces)


class Task(NamedTuple):
    """A task of a worker: compute a `block` of the gradients on some data `subsets`."""

    block: int
    subsets: tuple[int, ...]


@pytree_dataclass
class CodingPlan:
    """Tasks of all workers for the gradient of a model, and how messages are decoded.

    Attributes:
      codes: Gradient code of each block. A schedule has one code of level 0, whose
        messages are the gradients of single subsets.
      blocks: Blocks of the gradient.
      mean: Whether the loss is a mean over the samples, not a sum.
      turns: For a schedule, the number of subsets per worker. Worker w computes subsets
        w, w + 1, … modulo N one after the other. For a code it is 0, and each task is a
        block on all subsets of its level.
      groups: For nested groups, the groups of workers of each block. One message of
        each group suffices. Defaults to no groups.
      chunks: Number of chunks in a pass over a subset. Defaults to a number that
        depends on the samples; see `chunks_of`.
    """

    codes: tuple[GradientCode, ...]
    blocks: tuple[Block, ...] = static_field()
    mean: bool = static_field()
    turns: int = static_field(default=0)
    groups: Groups = static_field(default=())
    chunks: int | None = static_field(default=None)

    @property
    def num_workers(self) -> int:
        return len(self.codes[0].subsets)

    @property
    def coded(self) -> bool:
        return not self.turns

    @property
    def rule(self) -> Exact:
        """The recovery condition: which messages of each block suffice."""
        if self.groups:
            return OneOfEach(self.groups)
        return AnyOf(self.num_workers, np.array([code.level for code in self.codes]))

    def tasks(self, worker: int) -> tuple[Task, ...]:
        """Return the tasks of `worker` in order. All workers have equally many."""
        if self.coded:
            return tuple(
                Task(b, code.subsets[worker]) for b, code in enumerate(self.codes)
            )
        return tuple(
            Task(0, ((worker + turn) % self.num_workers,)) for turn in range(self.turns)
        )

    def ready(self, finish: Any) -> Any:
        """Return the time of each message, `[B, N]`, from the tasks' ends `[tasks, N]`.

        For a schedule, this is the time of the first worker that finishes a subset.
        """
        if self.coded:
            return finish
        return soonest_of(finish)[..., None, :]

    @property
    def scaling(self) -> float:
        """Factor of the sum of the subsets' gradients."""
        if self.mean:
            return 1 / self.num_workers
        return 1.0

    def held(self, worker: int) -> tuple[int, ...]:
        """Return the data subsets that `worker` needs, in ascending order."""
        return tuple(sorted({j for task in self.tasks(worker) for j in task.subsets}))

    def samples_of(
        self, share: tuple[float, float], num_samples: int
    ) -> tuple[slice, float]:
        """Return the samples of a subset that are in `share`, and their loss's weight.

        Without such samples the weight is 0.
        """
        first, last = (round(x * num_samples) for x in share)
        if first == last:
            return slice(0), 0.0
        return slice(first, last), (last - first) / num_samples if self.mean else 1.0

    def chunks_of(self, num_samples: int) -> int:
        """Return the number of chunks in a pass over `num_samples` samples.

        A worker can stop between two chunks. Without redundancy, no worker can stop
        before the end, so there is only one chunk.

        >>> plan = coding_plan(jax.random.key(0), jnp.ones(4), [2, 2])
        >>> (
        ...     [plan.chunks_of(samples) for samples in (1, 511, 512, 5000)],
        ...     replace(plan, chunks=5).chunks_of(3),
        ... )
        ([1, 1, 2, 8], 3)
        """
        if not any(block.level for block in self.blocks):
            return 1
        count = self.chunks
        if count is None:
            count = chunks_that_pay(num_samples)
        return min(count, num_samples)


class CodedGradient(NamedTuple):
    """Loss, gradient, and whether each block is decodable, bool `[B]`.

    The gradient is NaN in blocks that are not decodable.
    """

    value: Array
    gradient: PyTree
    decodable: Array


def unit_sizes(
    params: PyTree, units: str = "leaves", order: Sequence[int] | None = None
) -> np.ndarray:
    """Count the coordinates of each unit of a model, for `Problem.unit_costs`.

    Args:
      params: Pytree of the parameters. Only their shapes are used.
      units: "leaves", "layers" or "coordinates". A layer consists of leaves that have
        the same parent in the tree, and are neighbours in `order`. Defaults to
        "leaves".
      order: Order in which the gradients of the leaves are computed, for example from
        `backward_order`. Defaults to the reverse order of the leaves.

    Returns:
      The number of coordinates of each unit, in the order of computation.

    Raises:
      ValueError: If `params` has complex leaves, `units` is unknown, or `order` is not
        a permutation of the leaves.

    >>> layers = [
    ...     {"w": jnp.ones((3, 2)), "b": jnp.ones(2)},
    ...     {"w": jnp.ones((2, 4)), "b": jnp.ones(4)},
    ... ]
    >>> unit_sizes(layers, "layers").tolist(), unit_sizes(layers, "leaves").tolist()
    ([12, 8], [8, 4, 6, 2])
    """
    refuse_complex("params", params)
    if units not in UNITS:
        raise ValueError(f'unknown units "{units}". Use one of {", ".join(UNITS)}.')
    leaves = jax.tree.leaves_with_path(params)
    paths = [path[:-1] for path, _ in leaves]
    sizes = [int(np.size(x)) for _, x in leaves]
    if order is None:
        order = range(len(leaves))[::-1]
    elif sorted(order) != list(range(len(leaves))):
        raise ValueError(
            f"`order` must name each of the {len(leaves)} leaves once, got "
            f"{tuple(order)}"
        )
    if units == "coordinates":
        return np.ones(sum(sizes), int)
    if units == "leaves":
        return np.array([sizes[i] for i in order], int)
    # A layer begins where the parent changes.
    begins = [k == 0 or paths[i] != paths[order[k - 1]] for k, i in enumerate(order)]
    return np.bincount(np.cumsum(begins) - 1, [sizes[i] for i in order]).astype(int)


def cut(
    params: PyTree,
    counts: ArrayLike,
    units: str = "coordinates",
    order: Sequence[int] | None = None,
) -> list[tuple[Piece, ...]]:
    """Return the pieces of the leaves in each block of `counts` units."""
    sizes = [int(np.size(leaf)) for leaf in jax.tree.leaves(params)]
    ends = np.append(0, np.cumsum(unit_sizes(params, units, order)))[
        np.cumsum(counts)
    ].tolist()
    blocks: list[list[Piece]] = [[] for _ in ends]
    begin = 0
    for leaf in range(len(sizes))[::-1] if order is None else order:
        for block, (first, last) in zip(
            blocks, itertools.pairwise([0, *ends]), strict=True
        ):
            start = max(first - begin, 0)
            stop = min(last - begin, sizes[leaf])
            if start < stop:
                block.append(Piece(leaf, start, stop))
        begin += sizes[leaf]
    return [tuple(block) for block in blocks]


def coding_plan(
    key: Array,
    params: PyTree,
    partition: ArrayLike | Sequence[int],
    *,
    units: str = "coordinates",
    order: Sequence[int] | None = None,
    construction: str | None = None,
    mean: bool = True,
) -> CodingPlan:
    r"""Cut the gradient of `params` into blocks, and make a gradient code for each.

    Args:
      key: PRNG key of the codes.
      params: Pytree of arrays. Only their shapes are used.
      partition: Integer number of units at each level, `[N]`, for example
        `Solution.rounded` without padding.
      units: Units of the partition, as in `unit_sizes`. Defaults to "coordinates".
      order: Order in which the gradients of the leaves are computed, as in
        `unit_sizes`.
      construction: Construction of all codes, as in `gradient_code`. By default, each
        level has the best conditioned construction.
      mean: Whether the loss is a mean over the samples, not a sum. Defaults to True.

    Returns:
      The `CodingPlan`.

    Raises:
      ValueError: If `partition` is not a known array of integers, or if its sum differs
        from the number of units of the parameters.

    >>> plan = coding_plan(
    ...     jax.random.key(0), {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, [0, 4, 5]
    ... )
    >>> [(block.level, block.size) for block in plan.blocks]
    [(1, 4), (2, 5)]
    """
    counts = concrete(partition)
    if (
        counts is None
        or counts.ndim != 1
        or counts.dtype.kind not in "iu"
        or counts.min() < 0
    ):
        raise ValueError(
            "`partition` must contain known integers ≥ 0, one for each level. Use "
            "`Solution.rounded`."
        )
    num_units = unit_sizes(params, units, order).size
    if counts.sum() != num_units:
        raise ValueError(
            f"`partition` has {counts.sum()} units, but the parameters have "
            f"{num_units} {units}. Solve a `Problem` with `num_coordinates={num_units}`"
            ", or with `unit_costs=unit_sizes(params, units, order)`."
        )
    pieces = cut(params, counts, units, order)
    used = np.flatnonzero(counts).tolist()
    code = functools.partial(
        gradient_code, construction=construction, top_level=used[-1]
    )
    codes = tuple(code(key, counts.size, n) for n in used)
    blocks = tuple(Block(n, pieces[n]) for n in used)
    return CodingPlan(codes, blocks, mean)


def schedule_plan(
    schedule: Plan,
    params: PyTree,
    num_workers: int,
    *,
    units: str = "coordinates",
    order: Sequence[int] | None = None,
    mean: bool = True,
) -> CodingPlan:
    r"""Assign a cyclic schedule, in which workers compute subsets one after the other.

    Worker w computes subsets w, w + 1, … modulo N. The only block consists of all
    coordinates of the parameters.

    Args:
      schedule: Plan of the scheme `Cyclic`.
      params: Pytree of arrays. Only their shapes are used.
      num_workers: Number of workers, N. If the schedule has more than N subsets per
        worker, each worker computes all N subsets.
      units: As in `coding_plan`.
      order: As in `coding_plan`.
      mean: As in `coding_plan`.

    Returns:
      The `CodingPlan`.

    Raises:
      ValueError: If the schedule has another number of coordinates than `params`.

    >>> from bcgc_jax.plans.plan import cyclic_plan
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    >>> plan = schedule_plan(cyclic_plan(9.0, stored=2), params, num_workers=3)
    >>> [(task.block, task.subsets) for task in plan.tasks(2)]
    [(0, (2,)), (0, (0,))]
    """
    (pieces,) = _cut_blocks(schedule, params, units, order).values()
    turns = min(np.size(schedule.block), num_workers)
    # A code of level 0 does not depend on the key.
    code = gradient_code(jax.random.key(0), num_workers, 0)
    return CodingPlan((code,), (Block(turns - 1, pieces),), mean, turns)


def _cut_blocks(
    plan: Plan,
    params: PyTree,
    units: str = "coordinates",
    order: Sequence[int] | None = None,
) -> dict[int, tuple[Piece, ...]]:
    """Return the pieces of the parameters in each block that is not empty."""
    counts = _whole_units(plan.sizes, unit_sizes(params, units, order))
    return {
        b: pieces
        for b, pieces in enumerate(cut(params, counts, units, order))
        if pieces
    }


def group_plan(
    plan: Plan, params: PyTree, num_workers: int, *, mean: bool = True, **cutting: Any
) -> CodingPlan:
    r"""Cut the gradient of `params` into the blocks of a plan of nested groups.

    Blocks consist of complete units. A group has the data subsets of its members, or an
    equal part of all subsets if groups share the data equally. Options are as in
    `coding_plan`.

    Raises:
      ValueError: If the plan does not fit the workers or the parameters, or if a
        group would have a fraction of a subset.
    """
    rule = plan.completion
    if not isinstance(rule, OneOfEach) or rule.num_workers != num_workers:
        raise ValueError(
            f"`plan` does not have nested groups of {num_workers} workers. Solve a "
            f"`Problem` with {num_workers} workers."
        )
    pieces = _cut_blocks(plan, params, **cutting)
    groups = tuple(rule.groups[k] for k in pieces)
    codes = [repetition_code(level, rule.data_of(level)) for level in groups]
    blocks = tuple(
        Block(code.level, block_pieces)
        for code, block_pieces in zip(codes, pieces.values(), strict=True)
    )
    return CodingPlan(tuple(codes), blocks, mean, groups=groups)


def _whole_units(sizes: Any, costs: np.ndarray) -> np.ndarray:
    """Round the blocks' sizes to numbers of complete units, `[B]`."""
    check("sizes", sizes, ">= 0")
    total = float(np.sum(sizes, dtype=float))
    # The tolerance covers rounding of sizes in float32.
    if not abs(total - costs.sum()) <= 1e-4 * costs.sum():
        raise ValueError(
            f"the plan's blocks have {total:.6g} coordinates, but the parameters have "
            f"{costs.sum()}. Solve a `Problem` that has as many as the parameters."
        )
    if np.all(costs == 1):
        return np.asarray(round_partition(sizes, costs.size))  # type: ignore[arg-type]
    return np.asarray(
        round_to_units(jnp.asarray(sizes, float), jnp.asarray(costs, float))
    )


def _no_tasks(*_: Any, **__: Any) -> CodingPlan:
    raise ValueError(
        "work sharing assigns tasks during a step, so its plan has no fixed blocks. "
        "Use `training_scheme` to train with work sharing."
    )


# How the plans of rules without codes are cut.
_WITHOUT_CODE: dict[type, Callable[..., CodingPlan]] = {
    FirstHolder: schedule_plan,
    OneOfEach: group_plan,
    WorkSharing: _no_tasks,
}


def assign(
    key: Array,
    plan: Plan,
    params: PyTree,
    num_workers: int,
    *,
    rounded: ArrayLike | None = None,
    construction: str | None = None,
    chunks: int | None = None,
    **options: Any,
) -> CodingPlan:
    """Assign the tasks of any plan to workers, for the parameters of a model.

    Args:
      key: PRNG key of the codes.
      plan: Plan of a scheme.
      params: Pytree of arrays. Only their shapes are used.
      num_workers: Number of workers, N.
      rounded: Integer number of units in each block. By default, the sizes of the plan
        are rounded.
      construction: Construction of the codes, as in `coding_plan`.
      chunks: Number of chunks in a pass over a subset. Defaults to one per 256 samples,
        at most 8. If a sample takes long, such as an image, more chunks save time.
      **options: `units`, `order` and `mean`, as in `coding_plan`.
    """
    if chunks is not None:
        check_whole("chunks", chunks, 1)
        chunks = int(chunks)
    without_code = _WITHOUT_CODE.get(type(plan.completion))
    if without_code is not None:
        assigned = without_code(plan, params, num_workers, **options)
    else:
        options["construction"] = construction
        assigned = _coded_plan(key, plan, params, num_workers, rounded, **options)
    return replace(assigned, chunks=chunks)


def _coded_plan(
    key: Array,
    plan: Plan,
    params: PyTree,
    num_workers: int,
    rounded: ArrayLike | None,
    **options: Any,
) -> CodingPlan:
    costs = unit_sizes(
        params, options.get("units", "coordinates"), options.get("order")
    )
    data = np.asarray(plan.data)
    share = np.asarray(plan.share)

    def make(units: ArrayLike, data: np.ndarray) -> CodingPlan:
        counts = np.zeros(max(num_workers, data.max()), int)
        counts[data - 1] = units
        return coding_plan(key, params, counts[:num_workers], **options)

    if np.all(share == 1):
        return make(
            _whole_units(plan.sizes, costs) if rounded is None else rounded, data
        )
    # Each task is a block of all coordinates, on a part of the samples.
    parts = [make(costs.size, num_subsets) for num_subsets in data]
    # The last end is 1 exactly, despite rounding of the sum.
    ends = itertools.pairwise([0.0, *np.cumsum(share)[:-1].tolist(), 1.0])
    pairs = zip(parts, ends, strict=True)
    blocks = tuple(part.blocks[0]._replace(share=between) for part, between in pairs)
    return CodingPlan(tuple(part.codes[0] for part in parts), blocks, parts[0].mean)


def num_samples(batch: PyTree) -> int:
    """Return the number of samples M of a batch of arrays `[M, …]`."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "all arrays of a batch must have the same number of samples along the "
            f"first axis, got {sizes}"
        )
    return sizes.pop()[0]


def check_batch_size(batch_size: int | None, size: int) -> None:
    """Raise ValueError unless 1 ≤ `batch_size` ≤ `size`, the samples of a subset."""
    if batch_size is not None and not 1 <= batch_size <= size:
        raise ValueError(
            f"`batch_size` must be from 1 to {size}, the number of samples in a "
            f"subset, got {batch_size}"
        )


def split_batch(batch: PyTree, num_workers: int) -> PyTree:
    """Split a batch of M samples into N data subsets of equal size.

    Args:
      batch: Pytree of arrays `[M, …]`.
      num_workers: Number of workers, N.

    Returns:
      The same pytree with arrays `[N, M/N, …]`.

    Raises:
      ValueError: If N does not divide M, or the arrays differ in M.

    >>> split_batch(jnp.arange(6), 3).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    if (size := num_samples(batch)) % num_workers:
        raise ValueError(
            f"{size} samples cannot be split into {num_workers} equal subsets. Remove "
            "or pad samples."
        )
    return jax.tree.map(lambda x: x.reshape((num_workers, -1, *x.shape[1:])), batch)


def shard_subsets(
    subsets: PyTree, devices: Sequence[jax.Device] | None = None
) -> PyTree:
    """Distribute N data subsets over devices, whose number must divide N.

    Args:
      subsets: Pytree of arrays `[N, m, …]`, as from `split_batch`.
      devices: Devices to use. Defaults to all devices.

    Returns:
      The same pytree, sharded along the first axis.
    """
    mesh = jax.sharding.Mesh(
        np.array(jax.devices() if devices is None else devices), ("worker",)
    )
    by_worker = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("worker"))
    return jax.device_put(subsets, by_worker)


def coded_value_and_grad(loss: Loss, plan: CodingPlan) -> Callable[..., CodedGradient]:
    r"""Transform a loss into a function that decodes its gradient from coded messages.

    Args:
      loss: Function (params, batch), or (params, batch, key), that returns the loss.
      plan: Tasks of all workers, from `coding_plan`.

    Returns:
      A function (params, subsets, arrived, key=None, step=0) that returns a
      `CodedGradient`. `subsets` are arrays `[N, m, …]`, as from `split_batch`.
      `arrived`, bool `[B, N]`, says from which workers the master has the message of
      each block. `key` and `step` determine the key of a loss with three arguments; see
      `loss_key`. The function is compiled once for each `loss` and shape of the plan.

    >>> def loss(params, batch):
    ...     return jnp.mean((batch @ params) ** 2)
    >>> batch, params = jnp.arange(12.0).reshape(6, 2), jnp.array([1.0, -2.0])
    >>> plan = coding_plan(jax.random.key(0), params, [0, 2, 0])
    >>> coded = coded_value_and_grad(loss, plan)(
    ...     params, split_batch(batch, 3), jnp.array([[1, 0, 1]])
    ... )
    >>> (
    ...     bool(jnp.allclose(coded.gradient, jax.grad(loss)(params, batch))),
    ...     coded.decodable.tolist(),
    ... )
    (True, [True])
    """
    portable = jax.tree.map(kept, plan)  # The codes stay float64, even without x64.

    def coded(
        params: PyTree,
        subsets: PyTree,
        arrived: ArrayLike,
        key: Array | None = None,
        step: int | Array = 0,
    ) -> CodedGradient:
        return _coded(loss, portable, params, subsets, kept(arrived), key, step)

    return coded


@functools.partial(jax.jit, static_argnums=0)
def _coded(
    loss: Loss,
    plan: CodingPlan,
    params: PyTree,
    subsets: PyTree,
    arrived: Array,
    key: Array | None,
    step: Array,
) -> CodedGradient:
    value, gradients = subset_gradients(loss, plan, params, subsets, key, step)
    with jax.enable_x64(True):
        encodings = jnp.stack([code.encoding for code in plan.codes])
    weights, decodable = jax.vmap(decoding_weights)(encodings, arrived)
    messages = encode_gradients(plan, gradients)
    return CodedGradient(
        value, decode_gradients(plan, weights, messages, params), decodable
    )


def size_of(plan: CodingPlan, subsets: PyTree) -> int:
    """Return the number of samples m of each subset, from arrays `[N, m, …]`."""
    workers = plan.num_workers
    shapes = {np.shape(leaf)[:2] for leaf in jax.tree.leaves(subsets)}
    if len(shapes) != 1 or {shape[:1] for shape in shapes} != {(workers,)}:
        raise ValueError(
            f"arrays whose shapes begin with {shapes} are not {workers} subsets. Use "
            f"`split_batch(batch, {workers})`."
        )
    ((_, size),) = shapes
    return int(size)


def subset_gradients(
    loss: Loss,
    plan: CodingPlan,
    params: PyTree,
    subsets: PyTree,
    key: Array | None = None,
    step: int | Array = 0,
) -> tuple[Array, dict[tuple[float, float], PyTree]]:
    """Compute the loss, and the subsets' gradients `[N, …]` by range of samples."""
    refuse_complex("params", params)
    workers = plan.num_workers
    size = size_of(plan, subsets)
    total: Array | float = 0.0
    gradients = {}
    keys = keys_of(loss, key)
    of_subset = jax.vmap(functools.partial(jax.value_and_grad(loss), params))
    for share in dict.fromkeys(block.share for block in plan.blocks):
        chosen, portion = plan.samples_of(share, size)
        if not portion:
            gradients[share] = jax.tree.map(
                lambda x: jnp.zeros((workers, *np.shape(x))), params
            )
            continue
        part = jax.tree.map(lambda x, chosen=chosen: x[:, chosen], subsets)
        drawn = jax.vmap(lambda j, first=chosen.start: keys(step, j, first))(
            jnp.arange(workers)
        )
        value, gradient = of_subset(part, *drawn)
        if portion != 1:
            gradient = jax.tree.map(lambda g, p=portion: p * g, gradient)
        total = total + portion * jnp.sum(value)
        gradients[share] = gradient
    return jnp.asarray(plan.scaling * total), gradients


def encode_gradients(
    plan: CodingPlan, gradients: dict[tuple[float, float], PyTree]
) -> list[list[tuple[Array, ...]]]:
    """Encode the messages of all workers, as `messages[block][piece][worker]`."""
    leaves = {share: jax.tree.leaves(gradient) for share, gradient in gradients.items()}

    def rows(block: Block, p: Piece) -> Array:
        return leaves[block.share][p.leaf].reshape((plan.num_workers, -1))[
            :, p.start : p.stop
        ]

    pairs = zip(plan.codes, plan.blocks, strict=True)
    return [
        [encode(code, rows(block, p)) for p in block.pieces] for code, block in pairs
    ]


def decode_gradients(
    plan: CodingPlan,
    weights: Array,
    messages: Sequence[Sequence[Sequence[Array]]],
    params: PyTree,
) -> PyTree:
    """Decode the full gradient from the messages of all blocks.

    Args:
      plan: Tasks of all workers.
      weights: Decoding weights, `[B, N]`.
      messages: Messages, as `messages[block][piece][worker]`.
      params: Pytree of the parameters.
    """
    parts = []
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    for b, block in enumerate(plan.blocks):
        rows = zip(block.pieces, messages[b], strict=True)
        with jax.enable_x64(True):
            block_weights = weights[b] * plan.scaling
            parts.append(
                [decode(block_weights, row, dtypes[piece.leaf]) for piece, row in rows]
            )
    return assemble(plan.blocks, parts, params)


def assemble(
    blocks: Sequence[Block],
    parts: Sequence[Sequence[Any]],
    params: PyTree,
    xp: Any = jnp,
) -> PyTree:
    """Assemble a gradient like `params` from the pieces of all blocks.

    Blocks on different samples have the same pieces, which are added.
    """
    leaves, tree = jax.tree.flatten(params)
    by_start: list[dict[int, Any]] = [{} for _ in leaves]
    for block, pieces in zip(blocks, parts, strict=True):
        for (leaf, start, _), values in zip(block.pieces, pieces, strict=True):
            sums = by_start[leaf]
            if start in sums:
                sums[start] = sums[start] + values
            else:
                sums[start] = values
    wholes = []
    for leaf, sums in zip(leaves, by_start, strict=True):
        rows = [sums[start] for start in sorted(sums)] or [
            xp.zeros(0, jnp.result_type(leaf))
        ]
        if len(rows) > 1:
            whole = xp.concatenate(rows)
        else:
            whole = rows[0]
        wholes.append(whole.reshape(np.shape(leaf)))
    return jax.tree.unflatten(tree, wholes)
