"""Work sharing for a model: the samples of chunks, and how they count."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import pytree_dataclass, replace, static_field
from bcgc_jax.coding.losses import PyTree
from bcgc_jax.coding.pace import Pace
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.worker import Load
from bcgc_jax.steps.ledger import Chunk
from bcgc_jax.steps.placement import Storage


@pytree_dataclass
class SharedPlan:
    """N subsets in chunks, each a whole pass, that are handed out to the workers that
    store them.

    Attributes:
      rule: how subsets are cut, and who stores which chunk.
      mean: whether the loss is a mean over samples, else it is their sum.
    """

    rule: WorkSharing
    mean: bool = static_field(default=True)

    handed_out: ClassVar[bool] = True

    @property
    def num_workers(self) -> int:
        return self.rule.num_workers

    @property
    def storage(self) -> Storage:
        return self.rule.stored

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the chunks of a subset."""
        return self.rule.sizes

    @property
    def num_tasks(self) -> int:
        """What a pace tells: one subset."""
        return 1

    def held(self, worker: int) -> tuple[Chunk, ...]:
        """The chunks that a worker stores."""
        return tuple(self.storage.chunks()[worker])

    def spans(self, num_samples: int) -> list[slice]:
        """The samples of each chunk of a subset; some chunks have none where samples
        are too few.

        >>> SharedPlan(WorkSharing(2, 2, 2)).spans(12)
        [slice(0, 6, None), slice(6, 9, None), slice(9, 10, None), slice(10, 12, None)]
        """
        ends = np.cumsum([0, *self.sizes]) / sum(self.sizes) * num_samples
        return [
            slice(*pair)
            for pair in itertools.pairwise(np.round(ends).astype(int).tolist())
        ]

    def cut(self, subsets: Sequence[PyTree]) -> tuple[dict[Chunk, PyTree], np.ndarray]:
        """The samples of each chunk, and the weight of its gradient, `[N, chunks]`."""
        counts = [len(jax.tree.leaves(data)[0]) for data in subsets]
        chunks = {}
        for j, data in enumerate(subsets):
            for c, span in enumerate(self.spans(counts[j])):
                chunks[j, c] = jax.tree.map(
                    lambda x, span=span: np.asarray(x[span]), data
                )
        return chunks, self.weights(counts)

    def weights(self, counts: Sequence[int]) -> np.ndarray:
        """Weights of the chunks' gradients, `[N, chunks]`, by the subsets' sizes."""
        size = np.array([self.drawn(count) for count in counts], float)
        if self.mean:
            return size / size.sum()
        return (size > 0).astype(float)

    def completed(self, pace: Pace) -> np.ndarray:
        """When all sums are there, `[1]`, if workers work so."""
        subset = pace.unit * float(np.asarray(pace.load)[0])
        return np.asarray(_runtime(self.rule, pace.begin, subset))[None]

    def drawn(self, batch_size: int) -> list[int]:
        """How many samples of each chunk a batch has of a subset.

        They are drawn chunk by chunk, for a chunk is all that some of its holders
        store.
        """
        return [span.stop - span.start for span in self.spans(batch_size)]


@jax.jit
def _runtime(rule: WorkSharing, begins: Array, times: Array) -> Array:
    """Runtime if a master adds sums: copies pay; nobody waits for a worker with one."""
    load = Load(jnp.ones(1), None)
    return replace(rule, ends="sums", round_trip=0.0).step(load, False, begins, times)[
        0
    ]
