r"""The most that sizes sum to where sums of them, with weights ≥ 0, have limits: a
linear program.

max Σ_n x_n over x ≥ 0 with A x ≤ b, where A and b are ≥ 0, so that x = 0 is a corner to
begin at. The simplex method, with the rule of Bland (1977): no corner comes twice, so
it ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Corners, for each unknown and row. The rule sees to the end; this does where rounding
# decides. Of 1,720 programs of `thresholds` with N = 6 to 64 the longest took one step
# for each.
_MOST_STEPS = 4


class _Corner(NamedTuple):
    """A row for each unknown that is not 0, a column for each that is 0 but could be
    more.

    Limits count as unknowns, their rest. The last row of `table`, `[R + 1, N + 1]`,
    says what the sum loses, the last column how much the unknowns are. `rows` and
    `columns` say which these are.
    """

    table: Array
    rows: Array
    columns: Array
    steps: Array


def largest_sum(weights: Array, limits: Array, exists: Array) -> Array:
    """The x, `[N]`, of the largest sum, for weights `[R, N]` and limits `[R]`.

    An x that does not exist is 0. All others need a weight above 0 in some row.
    """
    num_rows, size = weights.shape
    # In units of the most that each could be alone: then all weights and limits are up
    # to 1.
    largest = jnp.min(
        jnp.where(weights > 0, limits[:, None] / weights, jnp.inf), axis=0
    )
    largest = jnp.where(exists & jnp.isfinite(largest), largest, 0)
    gain = largest / jnp.maximum(jnp.max(largest), jnp.finfo(largest.dtype).tiny)
    scaled = weights * largest / jnp.where(limits > 0, limits, 1)[:, None]
    table = jnp.block(
        [[scaled, jnp.ones((num_rows, 1), largest.dtype)], [-gain, jnp.zeros(1)]]
    )
    begin = _Corner(
        table, size + jnp.arange(num_rows), jnp.arange(size), jnp.asarray(0)
    )
    rounding = 16 * size * float(jnp.finfo(largest.dtype).eps)
    last = size + num_rows

    def better(corner: _Corner) -> Array:
        return corner.table[-1, :-1] < -rounding

    def go_on(corner: _Corner) -> Array:
        return jnp.any(better(corner)) & (corner.steps < _MOST_STEPS * last)

    def step(corner: _Corner) -> _Corner:
        table, rows, columns, steps = corner
        enters = jnp.min(jnp.where(better(corner), columns, last))
        column = columns == enters
        entries = jnp.sum(jnp.where(column, table[:-1, :-1], 0), axis=1)
        ratio = table[:-1, -1] / jnp.where(entries > rounding, entries, 1)
        ratio = jnp.where(entries > rounding, ratio, jnp.inf)
        leaves = jnp.min(jnp.where(ratio <= jnp.min(ratio) + rounding, rows, last))
        row = rows == leaves
        table = _exchanged(table, jnp.append(row, False), jnp.append(column, False))
        rows = jnp.where(row, enters, rows)
        return _Corner(table, rows, jnp.where(column, leaves, columns), steps + 1)

    end = jax.lax.while_loop(go_on, step, begin)
    at_row = end.rows[:, None] == np.arange(size)
    share = jnp.sum(jnp.where(at_row, end.table[:-1, -1:], 0), axis=0)
    return jnp.maximum(share, 0) * largest


def _exchanged(table: Array, row: Array, column: Array) -> Array:
    """The table once the unknowns of a row and of a column, each marked, have changed
    places.

    Marks, not indices: gathers are slow for a batch.
    """
    entries = jnp.sum(jnp.where(column, table, 0), axis=1)
    pivot = jnp.sum(jnp.where(row, entries, 0))
    new_row = jnp.sum(jnp.where(row[:, None], table, 0), axis=0)
    new_row = jnp.where(column, 1, new_row) / pivot
    other_rows = jnp.where(column, 0, table) - entries[:, None] * new_row
    return jnp.where(row[:, None], new_row, other_rows)
