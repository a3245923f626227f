"""Work sharing in a jitted step: workers request chunks while the program runs."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled.layout import (
    Layout,
    chunks_of,
    layout_of,
    layout_of_rows,
    number_of_rows,
    place_part,
    place_whole,
)
from bcgc_jax.balancing.compiled.losses import Loss, LossCheck, Reduction
from bcgc_jax.balancing.compiled.questions import Program, Questions
from bcgc_jax.balancing.compiled.tracing import Workers, on_axis, refused, sharded_over
from bcgc_jax.balancing.compiled.turns import Host, gradient_of_chunks
from bcgc_jax.balancing.dispatch import Memory, Share, join, serve


class SharedWork:
    """Compute the gradient of a step over a mesh, in which free workers compute chunks
    of stragglers.

    g = ∇ loss(params, all rows of the step). The rows of a step are cut into chunks.
    Each chunk is computed once, by a worker that stores its rows. A worker consists of
    all devices at one place of `axis`.

    Args:
      mesh: The mesh of the program.
      axis: The data-parallel axis, of N workers. Defaults to "data".
      shares: The handles that `dispatch.join` has returned, by worker, for the workers
        of this process. By default, a coordinator in memory serves the workers; then
        all devices of the mesh must belong to this process.
      max_subsets: Storage per worker, D, of the coordinator in memory (see
        `dispatch.serve`). Defaults to 2.
      chunks: Number of chunks per subset, C, of that coordinator. Defaults to 8.
      equal_chunks: Whether that coordinator leaves the last chunk whole. Then the
        program has one size of chunk, and one gradient to compile instead of three.
      adapt: Whether that coordinator shares only steps in which sharing saves time.
        Defaults to True.

    Attributes:
      shares: The handles of the workers of this process.
      coordinator: The coordinator in memory, or None.
      count: Number of chunks that each worker computed in its last step.
      error: Why a step has failed since the last call of `reset`, or None.

    Raises:
      ValueError: If the mesh has no axis of that name, or has devices of other
        processes although `shares` is missing.

    >>> import jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> shared = SharedWork(mesh, chunks=4)
    >>> gradient = shared.value_and_grad(lambda w, x: jnp.mean(w * x))
    >>> stored = shared.place(jnp.arange(8.0))
    >>> value, slope, ok = jax.jit(gradient)(2.0, stored, 0)
    >>> float(value), float(slope), bool(ok), shared.count
    (7.0, 3.5, True, {0: 4})
    """

    def __init__(
        self,
        mesh: Mesh,
        axis: str = "data",
        shares: Mapping[int, Share] | None = None,
        *,
        max_subsets: int | None = None,
        chunks: int = 8,
        equal_chunks: bool = False,
        adapt: bool = True,
    ) -> None:
        if axis not in mesh.shape:
            raise ValueError(
                f"the mesh has no axis {axis!r}. Its axes are {', '.join(mesh.shape)}"
            )
        self._mesh = mesh
        self._axis = axis
        self._serve = (mesh.shape[axis], max_subsets, chunks, equal_chunks, adapt)
        self._in_memory = shares is None
        self.coordinator: Any = None
        self._questions = Questions(self._joined() if shares is None else shares)
        self._programs = itertools.count()
        # The chunks of the workers, once a program has been traced.
        self._compiled_for: Any = None

    def value_and_grad(
        self,
        loss: Callable[..., Any],
        *,
        reduction: Reduction = "mean",
        has_aux: bool = False,
        check: bool = True,
        params: Any = None,
        stored: Any = None,
    ) -> Callable[..., Any]:
        """Transform a loss into a function that computes its value and gradient
        together with all other workers, for use in your own `jit`.

        The function takes the place of `jax.value_and_grad(loss)`, and returns the same
        value and gradient, with the same types. Additions come in another order.

        Args:
          loss: Function (params, rows) or (params, rows, key) that returns the loss of
            some rows, or with `has_aux` a pair of the loss and auxiliary values. Its
            key is the step's key, folded with the step, the subset and the chunk, so it
            does not depend on which worker computes the chunk. The last chunk of a
            subset is cut only in steps that are shared, so with a key the gradient
            depends on that, unless `equal_chunks=True`. The loss must not contain a
            collective over `axis`.
          reduction: "mean" if the loss is a mean over the rows that it receives, or
            "sum" if it is a sum, for example over tokens. Auxiliary values are reduced
            in the same way. Defaults to "mean".
          has_aux: Whether `loss` returns auxiliary values.
          check: Whether the first step checks that the loss is such a mean or sum, and
            that workers store the same rows for the same chunk. The check costs one
            more evaluation of the loss of a chunk. Defaults to True.
          params: Partition specs of the parameters. They are needed only if `loss`
            contains collectives of its own over other axes of the mesh. By default, the
            partitioner handles these axes.
          stored: Partition specs of the arrays of rows. Defaults to `P(axis)`.

        Returns:
          A function (params, stored, step, key=None, *, loads=None) that returns
          (value, gradient, ok). `stored` is the result of `place`, and `loads` are the
          lengths of the chunks of each subset, `[N, C']`. If `ok` is False, the step
          has failed on all workers: value and gradient are NaN, and `error` says why.

        Raises:
          ValueError: If `params` is sharded over `axis`. While it is traced, the
            returned function raises it for a wrong number of rows, for a collective
            over `axis`, for an auxiliary value that cannot be reduced, for parameters
            that are sharded over `axis`, and if it is differentiated or mapped by
            `vmap`.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", but is {reduction!r}')
        self._refuse_sharded(params)
        run = self._gradient_of_chunks(Loss(loss, reduction, has_aux), check)
        names = {self._axis} if params is None else set(self._mesh.axis_names)
        rows_spec = P(self._axis) if stored is None else stored
        specs = P() if params is None else params
        value = (P(), P()) if has_aux else P()
        out_specs = value, specs, P()
        is_partial = len(names) < len(self._mesh.axis_names)
        is_alone = self._mesh.shape[self._axis] == 1 and is_partial
        if is_alone:
            run, out_specs = _with_worker_axis(run), _on_axis(self._axis, out_specs)

        def gradient(
            params: Any,
            stored: Any,
            step: Any,
            key: Array | None = None,
            *,
            loads: Array | None = None,
        ) -> Any:
            self._refuse_sharded(jax.tree.map(sharded_over, params))
            params, stored = refused((params, stored))
            lengths = None
            if loads is not None:
                lengths = P(self._axis)
                loads = on_axis(loads, self._mesh, self._axis)
            mapped = jax.shard_map(
                run,
                mesh=self._mesh,
                axis_names=names,
                in_specs=(specs, rows_spec, P(), P(), lengths),
                out_specs=out_specs,
            )
            results = mapped(params, stored, step, key, loads)
            if is_alone:
                results = jax.tree.map(lambda x: x[0], results)
            return results

        return gradient

    def local(
        self,
        loss: Callable[..., Any],
        *,
        reduction: Reduction = "mean",
        has_aux: bool = False,
        check: bool = True,
    ) -> Callable[..., Any]:
        """Transform a loss in the same way, for use in your own `shard_map` over all
        axes of the mesh.

        Returns:
          A function (params, rows, step, key=None, loads=None) of this worker's
          arrays that returns (value, gradient, ok), which are equal on all workers.
        """
        run = self._gradient_of_chunks(Loss(loss, reduction, has_aux), check)

        def gradient(
            params: Any, stored: Any, step: Any, key: Any = None, loads: Any = None
        ) -> Any:
            return run(params, stored, step, key, loads)

        return gradient

    def place(self, batch: Any, *, is_part: bool = False) -> Any:
        """Distribute the rows of a batch, so that each worker has those that it stores.

        Args:
          batch: A pytree of arrays with M rows. These are host arrays that are equal in
            all processes, or global arrays of JAX.
          is_part: Whether the arrays are only this process's part of the batch, which
            are the subsets of its workers: M / N rows for each worker. The rows of
            other subsets that its workers store come from the other processes.

        Returns:
          The argument `stored` of the gradient: arrays that are sharded over `axis`,
          with about D M / N rows for each worker.

        Raises:
          ValueError: If the arrays have different numbers of rows, or M rows cannot be
            divided evenly among the chunks.
          StepFailed: If a worker was lost in an earlier step, and `reset` was not
            called. Another `error` of an earlier step is raised in the same way.
        """
        if self.error is not None:
            raise self.error
        num_rows = number_of_rows(batch, "batch")
        if not is_part:
            layout = layout_of(self.shares, num_rows)
            return place_whole(batch, layout, self._mesh, self._axis)
        num_workers = self._mesh.shape[self._axis]
        layout = layout_of(self.shares, num_rows * num_workers // len(self.shares))
        return place_part(batch, layout, self._mesh, self._axis)

    def rows(self, num_samples: int) -> Mapping[int, list[int]]:
        """List which of a step's M samples each worker of this process stores.

        Use it if a data loader of your own loads the rows of each worker. Otherwise,
        `place` is simpler.

        Args:
          num_samples: Number of samples per step, M, over all workers.

        Returns:
          The indices of the samples by worker, in the order in which `stored` must have
          them.

        Raises:
          ValueError: If M samples cannot be divided evenly among the chunks.
        """
        return layout_of(self.shares, num_samples).rows

    def reset(self, shares: Mapping[int, Share] | None = None) -> None:
        """Go on after a failed step.

        Args:
          shares: Handles that have joined again. They are needed if the handles in use
            are closed, which `error` tells: any error but `StepFailed` closes them.

        Raises:
          ValueError: If the handles are closed and `shares` is missing, or if `shares`
            has other chunks than the program was compiled for.
        """
        questions = self._questions
        if shares is None and not questions.is_broken and not self._in_memory:
            questions.acknowledge()
            return
        if shares is None and not self._in_memory:
            raise ValueError(
                "the handles of the workers are closed. Call dispatch.join again, and "
                "pass the new handles to reset"
            )
        questions.close()
        if shares is None:
            shares = self._joined()
        if self._compiled_for not in (None, chunks_of(shares)):
            raise ValueError(
                "the new handles have other workers, chunks or storage than those that "
                "the program was compiled for. Start the coordinator with the same "
                "plan, or make a new SharedWork and compile the step again"
            )
        self._questions = questions.successor(shares)

    @property
    def shares(self) -> Mapping[int, Share]:
        return self._questions.shares

    @property
    def count(self) -> dict[int, int]:
        return self._questions.count

    @property
    def error(self) -> BaseException | None:
        return self._questions.error

    def _gradient_of_chunks(self, loss: Loss, is_checked: bool) -> Callable[..., Any]:
        workers = Workers.of(self._mesh, self._axis)

        def run(params: Any, stored: Any, step: Any, key: Any, loads: Any) -> Any:
            layout = self._layout_of(stored)
            # Each call in a program has a number, which tells two calls apart.
            number = next(self._programs)

            def answer(check: LossCheck | None, numbers: np.ndarray) -> np.ndarray:
                return self._questions.answer(Program(number, layout, check), numbers)

            def failed(error: BaseException) -> None:
                self._questions.fail(error)

            host = Host(answer, failed)
            turns = gradient_of_chunks(
                loss, host, layout.sizes, layout.num_samples, workers, is_checked
            )
            return turns(params, stored, step, key, loads)

        return run

    def _layout_of(self, stored: Any) -> Layout:
        """The layout of the rows that each worker passes."""
        self._compiled_for = chunks_of(self.shares)
        return layout_of_rows(self.shares, number_of_rows(stored, "stored"))

    def _refuse_sharded(self, specs: Any) -> None:
        """Raise ValueError if a partition spec of the parameters names `axis`."""
        is_spec = lambda leaf: isinstance(leaf, P)  # noqa: E731
        for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec):
            names = [name for entry in spec for name in np.atleast_1d(entry or ())]
            if self._axis in names:
                name = f"`params{jax.tree_util.keystr(path)}`"
                raise ValueError(
                    f"{name} is sharded over {self._axis!r}, the axis of the workers. "
                    "Each worker needs all parameters, because workers compute "
                    "different numbers of chunks. Replicate them over this axis, or "
                    "shard them over another axis of the mesh"
                )

    def _joined(self) -> dict[int, Share]:
        """Handles of a coordinator in memory."""
        if jax.process_count() > 1:
            raise ValueError(
                "the mesh has devices of other processes. Call dispatch.serve in one "
                "process, and pass the handles of dispatch.join as `shares`, one for "
                "each worker of this process"
            )
        memory = Memory()
        workers, max_subsets, chunks, equal_chunks, adapt = self._serve
        if self.coordinator is not None:
            self.coordinator.close()
        self.coordinator = serve(
            workers,
            max_subsets,
            chunks,
            equal_chunks=equal_chunks,
            transport=memory,
            adapt=adapt,
        )
        address = self.coordinator.address
        return {
            worker: join(address, worker, transport=memory) for worker in range(workers)
        }


def _with_worker_axis(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same with a first axis of length one, that of a single worker."""

    def lifted(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: x[None], run(*arguments))

    return lifted


def _on_axis(axis: str, specs: Any) -> Any:
    """Specs of arrays whose first axis is the axis of the workers."""
    is_spec = lambda leaf: isinstance(leaf, P)  # noqa: E731
    return jax.tree.map(lambda spec: P(axis, *spec), specs, is_leaf=is_spec)
