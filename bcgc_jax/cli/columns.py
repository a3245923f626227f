"""Each number that a command shows: its name in JSON and CSV, and its table column.

output.schema.json describes the JSON, and the tests validate each answer by it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import table

from bcgc_jax.cli.output import Row, Shown, names, number, saved_in_words, scheme_label
from bcgc_jax.traces.intervals import percent


@dataclasses.dataclass(frozen=True)
class Column:
    """What is shown of each row, and how.

    Attributes:
      name: in JSON and CSV.
      head: in a table, if it is a column of that; a string is the head of numbers.
      form: of a number in a table, or what the table says of a row.
      of: the value of a row; by default its attribute of this name.
      condition: whether a row has the value at all; by default each has.
      csv: its names in CSV: none, or several for a list; by default `name`.
    """

    name: str
    head: str | table.Column | None = None
    form: str | Callable[[Any], str] = ".4g"
    of: Callable[[Any], Any] | None = None
    condition: Callable[[Any], bool] | None = None
    csv: tuple[str, ...] | None = None

    def value(self, row: Any) -> Any:
        if self.of is None:
            return getattr(row, self.name)
        return self.of(row)

    def cell(self, row: Any) -> str:
        """What a table says of a row."""
        if callable(self.form):
            return self.form(row)
        value = self.value(row)
        if isinstance(value, str):
            return value
        return number(value, self.form)

    def is_there(self, row: Any) -> bool:
        return self.condition is None or self.condition(row)


def values(columns: Sequence[Column], row: Any) -> Row:
    """A row of JSON.

    >>> values((Column("real"), Column("imag")), 2.0)
    {'real': 2.0, 'imag': 0.0}
    """
    return {
        column.name: column.value(row) for column in columns if column.is_there(row)
    }


def flat(columns: Sequence[Column], row: Any) -> Row:
    """A row of CSV."""
    cells: Row = {}
    for column in columns:
        if not column.is_there(row):
            continue
        value = column.value(row)
        if column.csv is None:
            cells[column.name] = value
        else:
            cells |= zip(column.csv, value, strict=False)
    return cells


def csv_names(columns: Sequence[Column]) -> list[str]:
    in_csv = (
        (column.name,) if column.csv is None else column.csv for column in columns
    )
    return list(itertools.chain(*in_csv))


def table_of(
    columns: Sequence[Column],
    rows: Sequence[Any],
    *first: str,
    **instead: Sequence[Shown],
) -> list[Shown]:
    """Return the columns of a table: those with a head, if a row has their value.

    The names in `first` come first; `instead` has the columns, or none, that stand for
    another.
    """
    by_name = {
        column.name: column for column in columns if any(map(column.is_there, rows))
    }
    headed = [
        name for name in by_name if by_name[name].head is not None or name in instead
    ]
    shown_columns: list[Shown] = []
    ordered = [name for name in first if name in headed]
    for name in dict.fromkeys((*ordered, *headed)):
        head = by_name[name].head or ""
        shown_columns += instead.get(name, [(head, by_name[name].cell)])
    return shown_columns


def without_questions(rows: Iterable[Any]) -> dict[str, Sequence[Shown]]:
    """Leave out of a table what is sent and asked, where nothing is."""
    asking = any(
        (row.round_trips or 0) > 0 or row.exact_gradient is False for row in rows
    )
    if asking:
        return {}
    return {"sent": (), "round_trips": ()}


# Names of `Status`, of a solution.
STATUSES = ("converged", "step_limit", "infinite", "infeasible", "invalid", "precision")
_NEEDS = (
    Column("stored_subsets", head="subsets\nstored", form=".0f"),
    Column("sent", head="sent\nin L", form=".2f"),
    Column("round_trips", head="round\ntrips", form=".0f"),
)


def _saved(row: Any) -> str:
    return saved_in_words(row.saved)


def _has_deadline(solved: Any) -> bool:
    return solved.deadline is not None


def _parameters(fit: Any) -> str:
    errors = fit.standard_errors
    return ", ".join(
        f"{name} {fit.parameters[name]:.4g} ± {errors[name]:.2g}" for name in errors
    )


def _pvalue(value: float) -> str:
    if value >= 0.095:
        return f"{value:.2f}"
    return f"{value:.3f}"


def _count(status: str) -> Column:
    """How many cells of a sweep have this status."""
    return Column(
        status,
        head=status,
        form="d",
        of=lambda line: line.counts[status],
        condition=lambda line: status in line.counts,
    )


SOLUTION = (
    Column("method", head=names("scheme"), form=scheme_label),
    Column("status"),
    Column("expected_runtime"),
    Column("runtime_error"),
    Column("lower_bound"),
    Column("relative_gap"),
    Column("chained_runtime"),
    Column("chained_error"),
    Column("saved", head="saved", form=_saved),
    Column("kind"),
    Column("bound_of"),
    Column("partition"),
    Column("partition_runtime"),
    Column("schedule", of=lambda solved: solved.schedule and solved.schedule.plain()),
    *_NEEDS,
    Column("exact_gradient"),
    Column("lost"),
    Column("seconds", head="solved\nin (s)", form=".2f"),
    Column("completion_probability", condition=_has_deadline),
    Column("completion_error", condition=_has_deadline),
    Column("alpha", condition=lambda solved: solved.method == "tandon_partial"),
    Column("threshold", condition=lambda solved: solved.threshold is not None),
    Column("levels", condition=lambda solved: solved.levels is not None),
)

ADVICE = (
    Column("remedy", head=names("what can be done")),
    Column(
        "saved",
        head="saved",
        form=lambda row: f"{percent(row.saved.value)} %",
        csv=("saved", "saved_low", "saved_high"),
    ),
    Column("range", csv=("range_low", "range_high")),
    Column(
        "lost",
        head="samples\nlost",
        form=lambda row: f"{percent(row.lost)} %" if row.lost else "none",
    ),
    Column("longer"),
    Column("stored_subsets", head="subsets\nstored", form="d"),
    Column("choice", csv=()),
    Column("needs"),
    Column("equal_chunks"),
)

FITS = (
    Column("distribution", of=lambda fit: fit.name, head=names("distribution")),
    Column(
        "parameters", head=table.Column("parameters ± standard error"), form=_parameters
    ),
    Column("standard_errors"),
    Column("log_likelihood"),
    Column("aic"),
    Column("kolmogorov_smirnov", head="Kolmogorov–\nSmirnov", form=".4f"),
    Column(
        "kolmogorov_smirnov_pvalue",
        head="p",
        form=lambda fit: _pvalue(fit.kolmogorov_smirnov_pvalue),
    ),
    Column("anderson_darling", head="Anderson–\nDarling", form=".3g"),
    Column(
        "anderson_darling_pvalue",
        head="p",
        form=lambda fit: _pvalue(fit.anderson_darling_pvalue),
    ),
    Column("num_times"),
)

PLANS = (
    Column("distribution", head=names("plan for")),
    Column("expected_runtime"),
    Column("relative_gap"),
    Column("status"),
    Column("partition"),
    Column("runtime_under"),
    Column("replayed_runtime"),
    Column("replayed_error"),
)

# The columns of a table. JSON and CSV have all columns of a sweep.
SWEEP = (
    Column("method", head=names("scheme"), form=scheme_label),
    Column("status", head=table.Column("status", no_wrap=True)),
    Column("expected_runtime"),
    Column(
        "saved", head="saved", form=_saved, condition=lambda row: "saved" in row.columns
    ),
    Column("lower_bound"),
    Column(
        "completion_probability",
        head="P(runtime ≤\ndeadline)",
        form=".4f",
        condition=lambda row: "completion_probability" in row.columns,
    ),
    *_NEEDS,
)

SUMMARY = (
    Column("method", head=names("scheme")),
    Column("cells", head="cells", form="d"),
    *map(_count, STATUSES),
    Column("largest_relative_gap", head="largest gap to\nthe best bound", form=".1e"),
    Column(
        "saved",
        head="saved\non average",
        form=_saved,
        condition=lambda line: line.with_savings,
    ),
)
