"""Work sharing in a jitted step: chunks are handed out while it runs."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bcgc_jax.compiled.layout import Layout, layout_of
from bcgc_jax.compiled.questions import Questions
from bcgc_jax.compiled.tracing import Workers, refused
from bcgc_jax.compiled.turns import sum_of_chunks
from bcgc_jax.handout import Memory, Share, join, serve


class SharedWork:
    """The gradient of a step over a mesh, in which fast workers compute chunks of slow
    ones.

    g = Σ_j Σ_c ∇ loss(params, chunk c of subset j), each chunk once, by a worker that
    stores it. A worker is a row of devices: all those of one place on `axis`.

    Args:
      mesh: of the program.
      axis: the data-parallel one, of N workers.
      shares: of `handout.join`, by the workers of this process; by default a
        coordinator in memory hands out, where all devices of the mesh are of this
        process.
      max_subsets, chunks, equal_chunks, adapt: D, C, whether the last chunk stays
        whole, and whether steps are shared only where that saves time, of that
        coordinator; see `handout.serve`. With `equal_chunks` a program has one size of
        chunk: it has one gradient to compile, not three.

    Attributes:
      shares: of the workers of this process.
      coordinator: the one in memory, or None.
      rows: of each worker of this process the numbers of the step's samples that it
        stores, after `value_and_grad` or `local`.
      count: how many chunks each worker computed in its last step.
      error: why the last step that was not ok has failed.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> shared = SharedWork(mesh, chunks=4)
    >>> gradient = shared.value_and_grad(
    ...     lambda w, x, key: jnp.sum(w * x), num_samples=8
    ... )
    >>> stored = jnp.arange(8.0)[np.array(shared.rows[0])]
    >>> value, slope, ok = jax.jit(gradient)(2.0, stored, 0, jax.random.key(0))
    >>> float(value), float(slope), bool(ok), shared.count
    (56.0, 28.0, True, {0: 4})
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
                f"the mesh has no axis {axis!r}: it has {', '.join(mesh.shape)}"
            )
        self._mesh = mesh
        self._axis = axis
        self._serve = (mesh.shape[axis], max_subsets, chunks, equal_chunks, adapt)
        self._in_memory = shares is None
        self.coordinator: Any = None
        self._questions = Questions(self._joined() if shares is None else shares)
        self._calls = itertools.count()
        self._rows: Mapping[int, list[int]] | None = None

    def value_and_grad(
        self,
        loss: Callable[..., Any],
        num_samples: int,
        *,
        has_aux: bool = False,
        params: Any = None,
        stored: Any = None,
    ) -> Callable[..., Any]:
        """A gradient with shared work, to be called in one's own `jit`.

        It maps (params, stored, step, key, loads=None) to (value, gradient, ok). Where
        `ok` is False the step has failed for all workers, and the rest means nothing:
        see `error`.

        Args:
          loss: (params, rows, key) to the sum over the rows of a chunk, or with
            `has_aux` to that and auxiliary values, which are summed too. Its key is
            that of the step, folded with step, subset and chunk: it does not depend on
            who computes it. It has no collective over `axis`.
          num_samples: M, of a step.
          has_aux: whether the value is (value, auxiliary values).
          params: specs of the parameters over the mesh, where the loss has collectives
            of its own over the other axes; by default the partitioner has those.
          stored: specs of `stored`, arrays of rows; by default `P(axis)`: worker w's
            rows of a step are `rows[w]`, in this order. `loads`, `[N, C']`, are lengths
            of each subset's chunks.

        Raises ValueError where M samples cannot be cut evenly; while it is traced,
        where `stored` has too few or too many rows, or the loss has a collective over
        `axis`; and where `vmap` or a derivative is taken of the gradient.
        """
        run = self._sum_of_chunks(loss, num_samples, has_aux)
        names = {self._axis} if params is None else set(self._mesh.axis_names)
        rows = P(self._axis) if stored is None else stored
        specs = P() if params is None else params
        value = (P(), P()) if has_aux else P()

        def gradient(
            params: Any, stored: Any, step: Any, key: Array, loads: Array | None = None
        ) -> Any:
            params, stored = refused((params, stored))
            lengths = () if loads is None else (loads,)
            mapped = jax.shard_map(
                lambda params, stored, step, key, *loads: run(
                    params, stored, step, key, *loads
                ),
                mesh=self._mesh,
                axis_names=names,
                in_specs=(specs, rows, P(), P(), *(P(self._axis) for _ in lengths)),
                out_specs=(value, specs, P()),
            )
            return mapped(params, stored, step, key, *lengths)

        return gradient

    def local(
        self, loss: Callable[..., Any], num_samples: int, *, has_aux: bool = False
    ) -> Callable[..., Any]:
        """The same within one's own `shard_map` over all axes of the mesh.

        It maps this worker's (params, rows, step, key, loads=None) to (value, gradient,
        ok), which are equal on all workers.
        """
        return self._sum_of_chunks(loss, num_samples, has_aux)

    def reset(self, shares: Mapping[int, Share] | None = None) -> None:
        """Go on after an `error` other than StepFailed, with shares that join anew."""
        self._questions.close()
        if self._in_memory:
            shares = self._joined()
        elif shares is None:
            raise ValueError("the shares are closed: give those of handout.join anew")
        self._questions = Questions(shares)

    @property
    def shares(self) -> Mapping[int, Share]:
        return self._questions.shares

    @property
    def rows(self) -> Mapping[int, list[int]]:
        if self._rows is None:
            raise ValueError(
                "rows are of a step's samples: call value_and_grad, or local, first"
            )
        return self._rows

    @property
    def count(self) -> dict[int, int]:
        return self._questions.count

    @property
    def error(self) -> BaseException | None:
        return self._questions.error

    def _sum_of_chunks(
        self, loss: Callable[..., Any], num_samples: int, has_aux: bool
    ) -> Callable[..., Any]:
        layout = layout_of(self._questions.shares, num_samples)
        self._rows = layout.rows
        workers = Workers.of(self._mesh, self._axis)

        def run(
            params: Any, stored: Any, step: Any, key: Array, loads: Any = None
        ) -> Any:
            for leaf in jax.tree.leaves(stored):
                layout.check(len(leaf))
            # Each call in a program has a number: two at once are told apart by it.
            ask = functools.partial(self._answer, layout, next(self._calls))
            turns = sum_of_chunks(loss, ask, layout.sizes, workers, has_aux)
            return turns(params, stored, step, key, loads)

        return run

    def _answer(self, layout: Layout, call: int, question: Any) -> Any:
        return self._questions.answer(layout, call, question)

    def _joined(self) -> dict[int, Share]:
        """Shares of a coordinator in memory."""
        if jax.process_count() > 1:
            raise ValueError(
                "the mesh has devices of other processes: serve in one of them, and "
                "give shares of handout.join, one for each worker of this process"
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
