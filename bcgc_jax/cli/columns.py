"""Each number that a command shows: its table, CSV, JSON and schema, said once."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import table

from bcgc_jax.cli.output import Row, Shown, names, number, saved_in_words, scheme_label
from bcgc_jax.measured.intervals import percent


@dataclasses.dataclass(frozen=True)
class Column:
    """What is shown of each row, and how.

    Attributes:
      name: in JSON and CSV.
      kind: what the schema says of a value.
      unit, about: in the schema.
      head: in a table, if it is a column of that; a string is the head of numbers.
      form: of a number in a table, or what the table says of a row.
      of: the value of a row; by default its attribute of this name.
      condition: whether a row has the value at all; by default each has.
      required: whether the schema says so, where each has.
      csv: its names in CSV: none, or several for a list; by default `name`.
    """

    name: str
    kind: Row
    unit: str = ""
    about: str = ""
    head: str | table.Column | None = None
    form: str | Callable[[Any], str] = ".4g"
    of: Callable[[Any], Any] | None = None
    condition: Callable[[Any], bool] | None = None
    required: bool = True
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

    >>> values((Column("real", NUMBER), Column("imag", NUMBER)), 2.0)
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
    """The columns of a table: those with a head, if a row has their value.

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


def _or_null(kind: Row) -> Row:
    return {"anyOf": [kind, {"type": "null"}]}


def _list(kind: Row, unit: str, about: str) -> Row:
    return {"type": "array", "items": kind, "unit": unit, "description": about}


def _object(**properties: Row) -> Row:
    closed = {"required": [*properties], "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed}


TEXT = {"type": "string"}
BOOLEAN = {"type": "boolean"}
INTEGER = {"type": "integer"}
FINITE = {"type": "number"}
NUMBER = {"$ref": "#/$defs/number"}  # null where it is infinite or unknown
STATUS = {"$ref": "#/$defs/status"}
INTERVAL = {"$ref": "#/$defs/interval"}
INTEGERS = {"type": "array", "items": INTEGER}
_NUMBERS = {"type": "array", "items": FINITE}
_BY_NAME = {"type": "object", "additionalProperties": NUMBER}
_PAIRS = {"type": "array", "items": INTEGERS}
_SIZES = _list(INTEGER, "coordinates", "Of each block.")
_TASKS = _list(
    INTEGERS,
    "1",
    (
        "Of every worker w in their order: [d, b] is block b of the gradient of subset "
        "w + d."
    ),
)
_GROUPS = _list(
    _PAIRS,
    "1",
    (
        "Of each block, the workers of each group: one of each group must send the "
        "group's sum."
    ),
)
_SCHEDULE = {
    "anyOf": [
        _object(sizes=_SIZES, tasks=_TASKS),
        _object(sizes=_SIZES, groups=_GROUPS),
        {"type": "null"},
    ]
}
# Names of `Status`, of a solution.
STATUSES = ("converged", "step_limit", "infinite", "infeasible", "invalid", "precision")
# What a scheme needs, in tables.
_STORED: Any = {"head": "subsets\nstored", "form": ".0f"}
_SENT: Any = {"head": "sent\nin L", "form": ".2f"}
_TRIPS: Any = {"head": "round\ntrips", "form": ".0f"}


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


def _time(name: str, about: str = "", **options: Any) -> Column:
    return Column(name, NUMBER, "time", about, **options)


def _ratio(name: str, about: str = "", **options: Any) -> Column:
    return Column(name, NUMBER, "1", about, **options)


def _text(name: str, about: str = "", **options: Any) -> Column:
    return Column(name, TEXT, "", about, **options)


def _count(status: str, about: str = "") -> Column:
    """How many cells of a sweep have this status."""
    return Column(
        status,
        INTEGER,
        "cells",
        about,
        head=status,
        form="d",
        of=lambda line: line.counts[status],
        condition=lambda line: status in line.counts,
    )


_WHAT_BOUNDS = (
    Column(
        "kind",
        {"enum": ["exact", "local", "confidence"]},
        "",
        "What runtime_error and lower_bound are: bounds, or a standard error and a "
        "97.5 % limit; `local` where they are bounds and the plan is the best of "
        "several local searches, which no bound proves to be the best of all.",
    ),
    Column(
        "bound_of",
        {"enum": ["levels", "groups", "storage", None]},
        "",
        "The plans that lower_bound is for: all partitions of the levels, all sizes "
        "of blocks of nested groups, or all exact schemes whose workers store as much.",
    ),
)
SOLUTION = (
    _text(
        "method",
        (
            "Name of the scheme; `optimal, levels 0,3-7` for the plan that --levels "
            "asks for."
        ),
        head=names("scheme"),
        form=scheme_label,
    ),
    Column("status", STATUS),
    _time(
        "expected_runtime",
        "Exact, of the continuous plan behind `partition`; a mean of draws where "
        "workers are not alike and for added schemes that are no partition. The "
        "certificate is of this one.",
    ),
    _time(
        "runtime_error",
        (
            "Estimate of the absolute error of expected_runtime; of a mean its "
            "standard error."
        ),
    ),
    _time(
        "lower_bound",
        "No partition has an expected runtime below it, with setup or chain cycles "
        "none of these levels; with num_draws, with 97.5 % confidence. Null without a "
        "certificate.",
    ),
    _ratio(
        "relative_gap",
        "1 - lower_bound / expected_runtime; null without a certificate.",
    ),
    _time(
        "chained_runtime",
        "Of steps one after the other, where each worker first ends the pass that it "
        "has begun: the expected runtime of the whole numbers, and what draws add to "
        "it. Null where it is not known who does what, or there is too much to draw.",
    ),
    _time("chained_error", "Standard error of what draws add in chained_runtime."),
    _ratio(
        "saved",
        "Less time for a sample that is used than the uncoded scheme, as a share of "
        "that scheme's time, of the whole numbers in `partition` where there are "
        "some; null where one of the two is not known.",
        required=False,
        head="saved",
        form=_saved,
    ),
    *_WHAT_BOUNDS,
    Column(
        "partition",
        _or_null(INTEGERS),
        "coordinates",
        "How many coordinates (or units) are at each redundancy level; null for a "
        "scheme that is no partition or does not exist.",
    ),
    _time(
        "partition_runtime",
        "Expected runtime of the whole numbers in `partition`, which the table shows; "
        "null where there is no partition.",
    ),
    Column(
        "schedule",
        _SCHEDULE,
        "coordinates",
        "What the workers do, of a scheme without a code; else null.",
        of=lambda solved: solved.schedule and solved.schedule.plain(),
    ),
    Column(
        "stored_subsets",
        _or_null(INTEGER),
        "1",
        "Subsets of the data that a worker stores; null where it is not known.",
        **_STORED,
    ),
    _ratio(
        "sent",
        "Coordinates that a worker sends and the master waits for, on average, over "
        "the length of the gradient.",
        **_SENT,
    ),
    Column(
        "round_trips",
        _or_null(INTEGER),
        "1",
        "Questions of the master within a step.",
        **_TRIPS,
    ),
    Column(
        "exact_gradient",
        _or_null(BOOLEAN),
        "1",
        "Whether the master gets the gradient of all data.",
    ),
    _ratio("lost", "Share of a step's samples that are not in the gradient."),
    Column(
        "seconds",
        FINITE,
        "seconds",
        "That the solver took, compilation not included.",
        head="solved\nin (s)",
        form=".2f",
    ),
    _ratio(
        "completion_probability",
        "P(runtime ≤ deadline) of the whole numbers; only with a deadline.",
        condition=_has_deadline,
    ),
    _ratio(
        "completion_error",
        "Standard error of completion_probability; 0 where it is exact.",
        condition=_has_deadline,
    ),
    _ratio(
        "alpha",
        "Of tandon_partial only: how many times as long slow workers take, by default "
        "the distribution's E[T | T > median] / E[T | T ≤ median].",
        condition=lambda solved: solved.method == "tandon_partial",
    ),
    _time(
        "threshold",
        "Of drop only: when workers stop, from the begin of a step on.",
        condition=lambda solved: solved.threshold is not None,
    ),
    Column(
        "levels",
        INTEGERS,
        "",
        "Redundancy levels that the bound is for; only with setup or chain cycles.",
        condition=lambda solved: solved.levels is not None,
    ),
)

ADVICE = (
    _text("remedy", head=names("what can be done")),
    Column(
        "saved",
        INTERVAL,
        "",
        "Less time than now for a sample that is used, as a share.",
        head="saved",
        form=lambda row: f"{percent(row.saved.value)} %",
        csv=("saved", "saved_low", "saved_high"),
    ),
    Column(
        "range",
        _NUMBERS,
        "",
        "Of `saved`, by whether slowness is the workers' or the data's, where the log "
        "does not say.",
        csv=("range_low", "range_high"),
    ),
    Column(
        "lost",
        FINITE,
        "1",
        "Share of the samples; 0 where the gradient is exact.",
        head="samples\nlost",
        form=lambda row: f"{percent(row.lost)} %" if row.lost else "none",
    ),
    _ratio(
        "longer",
        "How many times as long as the others the lost ones take; null where none are.",
    ),
    Column(
        "stored_subsets",
        INTEGER,
        "1",
        "That a worker must be able to read.",
        head="subsets\nstored",
        form="d",
    ),
    Column(
        "choice",
        _NUMBERS,
        "",
        "Planned in the two halves: how many workers are left out or replaced, the "
        "threshold in seconds, or how many steps shares are made of.",
        csv=(),
    ),
    _text("needs"),
    Column(
        "equal_chunks",
        BOOLEAN,
        "",
        "Of work sharing: whether the last chunk of a subset stays whole.",
    ),
)

FITS = (
    _text(
        "distribution",
        "As --cycle-time calls it.",
        of=lambda fit: fit.name,
        head=names("distribution"),
    ),
    Column(
        "parameters",
        _BY_NAME,
        "",
        "By name; those that are times in the unit of the trace.",
        head=table.Column("parameters ± standard error"),
        form=_parameters,
    ),
    Column("standard_errors", _BY_NAME, "", "Of the parameters, by name."),
    _ratio("log_likelihood"),
    _ratio("aic", "Akaike's criterion; less is better."),
    _ratio(
        "kolmogorov_smirnov",
        "Largest distance of the two distribution functions.",
        head="Kolmogorov–\nSmirnov",
        form=".4f",
    ),
    _ratio(
        "kolmogorov_smirnov_pvalue",
        "How often a sample of this very distribution is farther from its fit.",
        head="p",
        form=lambda fit: _pvalue(fit.kolmogorov_smirnov_pvalue),
    ),
    _ratio(
        "anderson_darling",
        "Distance that counts both tails.",
        head="Anderson–\nDarling",
        form=".3g",
    ),
    _ratio(
        "anderson_darling_pvalue",
        head="p",
        form=lambda fit: _pvalue(fit.anderson_darling_pvalue),
    ),
    Column("num_times", INTEGER, "times", "That were fitted to."),
)

PLANS = (
    _text(
        "distribution",
        "That this is the best plan for: a fitted one, `measured times` or `smooth, "
        "Pareto tail`; or `uncoded`, which is none.",
        head=names("plan for"),
    ),
    _time(
        "expected_runtime",
        "Under this distribution, of the continuous plan; runtime_under has that of "
        "the whole numbers.",
    ),
    _ratio("relative_gap", "To the best plan there can be."),
    Column("status", STATUS),
    Column(
        "partition",
        INTEGERS,
        "coordinates",
        "How many coordinates are at each redundancy level.",
    ),
    Column(
        "runtime_under",
        _BY_NAME,
        "time",
        "Expected runtime of these whole numbers under each distribution, by its name.",
    ),
    _time(
        "replayed_runtime",
        "Mean runtime in the whole steps of the trace; null where the plan is for "
        "another number of workers.",
    ),
    _time("replayed_error", "Its standard error."),
)

_CELL = (
    _text(
        "distribution",
        (
            "Of the cycle time, as --cycle-time calls it; `empirical`, `smooth` or "
            "`rows` of a trace."
        ),
    ),
    Column("num_workers", INTEGER, "workers", "N."),
    Column("num_coordinates", INTEGER, "coordinates", "L."),
    Column("num_samples", FINITE, "samples", "M, over all workers."),
    Column("cycles", FINITE, "cycles per coordinate and sample", "b."),
    Column(
        "setup_cycles", FINITE, "cycles per sample and subset", "f.", required=False
    ),
    Column(
        "forward",
        FINITE,
        "1",
        "f over L (b + h): the forward pass as a ratio to the backward pass.",
        required=False,
    ),
    Column("start_up", FINITE, "time", "S.", required=False),
    Column("send_time", FINITE, "time per coordinate", "c.", required=False),
    Column(
        "overlap",
        {"type": "string", "enum": ["true"]},
        "",
        "With --overlap only.",
        required=False,
    ),
    Column(
        "chain_cycles",
        FINITE,
        "cycles per coordinate, sample and subset",
        "h.",
        required=False,
    ),
    Column(
        "deadline",
        FINITE,
        "time",
        "That completion_probability is for.",
        required=False,
    ),
    _text("method", "Name of the scheme.", head=names("scheme"), form=scheme_label),
    Column("status", STATUS, head=table.Column("status", no_wrap=True)),
)
_MORE_OF_A_CELL = (
    _ratio(
        "saved",
        "Less time for a sample that is used than the uncoded scheme, as a share of "
        "that scheme's time; only where `uncoded` is one of the methods.",
        head="saved",
        form=_saved,
        condition=lambda row: "saved" in row.columns,
    ),
    *_WHAT_BOUNDS,
    Column(
        "num_steps", INTEGER, "steps", "Of an iterative method, 0 for a closed form."
    ),
    Column(
        "stored_subsets",
        NUMBER,
        "subsets",
        "Of the data, by each worker; null where it is not known, as the next four.",
        **_STORED,
    ),
    Column(
        "sent",
        NUMBER,
        "L",
        "Coordinates that a worker sends and the master waits for, on average.",
        **_SENT,
    ),
    Column(
        "round_trips", NUMBER, "questions", "Of the master within a step.", **_TRIPS
    ),
    Column(
        "exact_gradient",
        {"type": ["boolean", "null"]},
        "",
        "Whether what the master gets is the gradient of all data.",
    ),
    _ratio("lost", "Share of a step's samples that are not in the gradient."),
    _ratio(
        "completion_probability",
        "P(runtime ≤ deadline); only with a deadline.",
        head="P(runtime ≤\ndeadline)",
        form=".4f",
        condition=lambda row: "completion_probability" in row.columns,
    ),
    Column(
        "partition",
        _or_null(INTEGERS),
        "coordinates",
        "Rounded; only with --partitions.",
        required=False,
    ),
)


def sweep_columns(numbers: Iterable[tuple[str, str, str]]) -> tuple[Column, ...]:
    """The columns of a sweep, with the `NUMBERS` of `sweeps`: a name, a unit,
    what each is.

    They are an argument, for `bcgc advise` has columns too, and imports no JAX.
    """
    answered = (Column(name, NUMBER, unit, about) for name, unit, about in numbers)
    return (*_CELL, *answered, *_MORE_OF_A_CELL)


SUMMARY = (
    _text("method", "Name of the scheme.", head=names("scheme")),
    Column(
        "cells", INTEGER, "cells", "How many were solved for.", head="cells", form="d"
    ),
    _count(
        "converged",
        (
            "How many have this status; so for the others. One that no cell has is not "
            "there."
        ),
    ),
    *map(_count, STATUSES[1:]),
    _ratio(
        "largest_relative_gap",
        "Of those that converged, to the best bound of the optimum in the same cell; "
        "null if no bound is near, or none is for such plans.",
        head="largest gap to\nthe best bound",
        form=".1e",
    ),
    _ratio(
        "saved",
        "Mean of `saved` over the cells that converged; only where `uncoded` is one "
        "of the methods.",
        head="saved\non average",
        form=_saved,
        condition=lambda line: line.with_savings,
    ),
)
