"""What a person reads of `bcgc solve`: the table, the plan, what it needs, and where figures come from."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Column

from bcgc_jax.cli.output import (
    Row,
    Shown,
    console,
    figure,
    needs_columns,
    print_rows,
    row_label,
    scheme_column,
)
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Requirements
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.compare import BARS, draw
from bcgc_jax.solvers.methods import LIMIT
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS

OVERFLOW = (
    "numbers on the way are above the largest there is, 1.8e308, an overflow where nothing is infinite; take "
    "another unit, or a less extreme law"
)

_MOST_BLOCKS = 60  # printed; the file has them all
_EXACT = 1e-4  # relative errors of quadrature are far below, of draws above


class SolveAnswer(NamedTuple):
    """What there is to say.

    `rows`: one for each method, best first; `limit`: of any scheme; `baselines`: the rows of those that
    exist, asked for or not; `interval`: of the best plan's runtime, where workers are the rows of a trace;
    `setup`: `largest_setup` of the fastest plan.
    """

    problem: Problem
    rows: list[Row]
    limit: float
    deadline: float | None = None
    baselines: Sequence[Row] = ()
    interval: tuple[float, float] | None = None
    setup: float | None = None

    @property
    def num_workers(self) -> int:
        return int(np.asarray(self.problem.num_workers))

    @property
    def parts(self) -> str:
        return "coordinates" if self.problem.unit_costs is None else "units"


def best_baseline(row: Row, baselines: Sequence[Row]) -> Row | None:
    """The fastest of those that need no more than the row does: subsets, round trips, an inexact gradient.

    >>> rows = [{"stored_subsets": 3, "round_trips": 0, "exact_gradient": True}]
    >>> best_baseline({"stored_subsets": 1, "round_trips": 0, "exact_gradient": True}, rows) is None
    True
    """

    def within(one: Row) -> bool:
        if None in (row["stored_subsets"], one["stored_subsets"]):  # not known of a scheme of one's own
            return True
        return bool(needs(one).within(needs(row)))

    def needs(one: Row) -> Requirements:
        return Requirements(*map(one.get, Requirements._fields))  # type: ignore[arg-type]

    return min(filter(within, baselines), key=runtime_of, default=None)


def runtime_of(row: Row) -> float:
    """Of the whole numbers, where there are some."""
    return row["partition_runtime"] or row["expected_runtime"] or np.inf


def fastest_plan(rows: Sequence[Row]) -> Row | None:
    """The partition of least expected runtime."""
    plans = [row for row in rows if row["partition"] is not None and np.isfinite(runtime_of(row))]
    return min(plans, key=runtime_of, default=None)


def print_table(answer: SolveAnswer, unit: str, remarks: Sequence[str] = ()) -> None:
    """All of it; `unit` is that of the cycle time, `remarks` are on the trace."""
    print_rows(answer.rows, _columns(answer))
    screen = console()
    rough = " (without a code before rounding)" if any(row["schedule"] for row in answer.rows) else ""
    screen.print(f"\nRuntime: expected, of whole {answer.parts}{rough}, in {unit}. {_baselines(answer)}")
    for part in (_limit, _advice, _errors, _saved, _plan, _needs):
        remarks = [*remarks, *part(answer)]
    for line in remarks:
        screen.print(line, markup=False)


def _baselines(answer: SolveAnswer) -> str:
    """Which ones the rows are compared with."""
    found = (best_baseline(row, answer.baselines) for row in answer.rows if row["method"] != LIMIT)
    named = list(dict.fromkeys(row_label(one) for one in found if one is not None))
    if len(named) < 2:
        return f"Best baseline: {named[0] if named else 'none'}."
    return f"Each row is compared with the fastest baseline that needs no more than it: {', '.join(named)}."


def _columns(answer: SolveAnswer) -> list[Shown]:
    """The runtime of each row, against that of its best baseline, and above the bound of the optimum."""
    bound = _best_bound(answer)

    def runtime(row: Row) -> str:
        return f"{runtime_of(row):.4g}" if np.isfinite(runtime_of(row)) else row["status"]

    def against(row: Row) -> str:
        baseline = None if row["method"] == LIMIT else best_baseline(row, answer.baselines)
        ratio = np.inf if baseline is None else runtime_of(row) / runtime_of(baseline)
        if not np.isfinite(ratio):
            return "–"
        return f"{100 * (ratio - 1):+.1f} %" if ratio < 10 else f"× {ratio:.3g}"

    def above(row: Row) -> str:
        known = np.isfinite(runtime_of(row)) and row["method"] != LIMIT
        if known and row["kind"] == "local":
            return "best found"
        if not known or bound <= 0 or row["round_trips"]:  # the bound is one of coded schemes
            return "–"
        gap = 100 * (runtime_of(row) / bound - 1)
        return f"{gap:.2g} %" if gap < 10 else f"{gap:.0f} %" if gap < 1000 else "–"

    def blocks_of(row: Row) -> str:
        if row["schedule"] is None:
            return draw(row["partition"])
        count = sum(size > 0 for size in row["schedule"]["sizes"])
        return f"{count} block{'s' if count > 1 else ''}, no code"

    chance = figure("completion_probability", ".4f")
    share = f"share of {answer.parts}\nat level 0…{answer.num_workers - 1}"
    return [
        scheme_column(),
        ("partition\nruntime", runtime),
        ("vs best\nbaseline", against),
        ("above\noptimum ≤", above),
        *([] if answer.deadline is None else [(f"P(runtime ≤\n{answer.deadline:.4g})", chance)]),
        *needs_columns(answer.rows),
        (Column(share, no_wrap=True, min_width=BARS), blocks_of),
        ("solved\nin (s)", figure("seconds", ".2f")),
    ]


def _best_bound(answer: SolveAnswer) -> float:
    """Certificates for all levels bound the same optimum, so the best of them serves all. With setup or chain
    cycles each is for the levels in use: the best plan's serves, and says how far below it these could get.
    """
    coded = [row for row in answer.rows if not row["schedule"]]
    if any("levels" in row for row in coded):
        return min(coded, key=runtime_of)["lower_bound"] or 0
    return max((row["lower_bound"] or 0 for row in coded if "levels" not in row["method"]), default=0)


def _limit(answer: SolveAnswer) -> Iterator[str]:
    if np.isfinite(answer.limit):
        begun = ", after the first start-up, nothing sent" if not answer.problem.plain else ""
        yield (
            f"No scheme of any kind is faster than {answer.limit:.4g}, "
            f"assuming perfectly divisible work and no idle time{begun}."
        )
    elif np.isfinite(answer.problem.cycle_time.mean()):
        yield f"The limit of any scheme is not known: {OVERFLOW}."
    else:
        yield "The expected runtime is infinite under every scheme, even with all work divisible."


def _advice(answer: SolveAnswer) -> Iterator[str]:
    """What is often faster, and was not asked for: its search is as dear as all of the others."""
    plans = (
        answer.num_workers > 2 and answer.deadline is None and np.isfinite(answer.problem.cycle_time.mean())
    )
    if plans and iteration_of(answer.problem).alike and not any(row["schedule"] for row in answer.rows):
        yield "Copies within nested groups of workers need no code and are often faster: --method nested."


def _errors(answer: SolveAnswer) -> Iterator[str]:
    """What is no exact expectation or no proven optimum, and what a bound is for."""
    rows = answer.rows
    errors = {row["method"]: (row["runtime_error"] or 0) / runtime_of(row) for row in rows}
    drawn = {name: error for name, error in errors.items() if error > _EXACT}
    if not iteration_of(answer.problem).exact:
        error = 100 * max(errors.values(), default=0)
        yield (
            f"Means of {NUM_FRESH_DRAWS} draws, standard error up to {error:.1g} %; "
            "the optimum's bound has 97.5 % confidence."
        )
    elif drawn:
        error = 100 * max(drawn.values())
        yield f"Means of draws, standard error up to {error:.1g} %: {', '.join(drawn)}."
    steps = iteration_of(answer.problem).rows
    if steps is not None:
        yield f"Means over the trace's {len(steps)} steps; plans made for these fit the next ones less well."
    if answer.interval is not None:
        low, high = answer.interval
        yield f"{rows[0]['method']}: {low:.4g} to {high:.4g} with 95 % confidence, blocks of steps resampled."
    for row in rows:
        if row["kind"] == "local":
            text = f"{row['method']}: the best plan that a local search found"
            value, bound = runtime_of(row), row["lower_bound"]
            if bound and np.isfinite(value):
                which = "no plan of these groups" if row["schedule"] else "none"
                text += f"; {which} is faster than {bound:.4g}, {100 * (1 - bound / value):.2g} % less"
            yield f"{text}."
    planned = next((row for row in rows if "levels" in row), None)
    if planned is not None:
        levels = ", ".join(map(str, planned["levels"]))
        yield f"{planned['method']} uses the levels {levels}; its bound is for these."
    inexact = [row_label(one) for one in rows if one["exact_gradient"] is False]
    if inexact:
        yield f"Not the gradient of all data, but of a part of it: {', '.join(inexact)}."


def _saved(answer: SolveAnswer) -> Iterator[str]:
    schemes = [row for row in answer.rows if row["method"] != LIMIT and row["exact_gradient"] is not False]
    fastest = min(schemes, key=runtime_of, default=None)
    uncoded = next((row for row in answer.rows if row["method"] == "uncoded"), None)
    if fastest and uncoded and fastest is not uncoded and np.isfinite(runtime_of(uncoded)):
        saved = 100 * (1 - runtime_of(fastest) / runtime_of(uncoded))
        if saved >= 0.05:
            yield f"{fastest['method']} takes {saved:.1f} % less time than the uncoded scheme."


def _plan(answer: SolveAnswer) -> Iterator[str]:
    """The best plan's blocks, and what is stored for them; and the fastest schedule of several blocks."""
    schedules = [row for row in answer.rows if row["schedule"] and len(row["schedule"]["sizes"]) > 1]
    row = next((row for row in schedules if "groups" in row["schedule"]), None)
    if row is not None:
        yield f"\nThe plan of {row['method']}, blocks in the order in which they are computed:"
        yield from groups_and_blocks(row["schedule"], answer.parts)
        held = zip(row["schedule"]["sizes"], row["schedule"]["groups"], strict=True)
        most = max(len(group) for size, groups in held if size for group in groups)
        yield (
            "A block is there when one worker of each group has sent its sum. Each worker stores "
            f"{most} of the {answer.num_workers} subsets of the data."
        )
    row = next((row for row in answer.rows if row["partition"] is not None), None)
    if row is not None:
        stored = f"{int(np.flatnonzero(row['partition'])[-1]) + 1} of the {answer.num_workers}"
        what = f"level: {answer.parts}, in the order in which they are computed"
        yield f"\nThe plan of {row['method']}, {what}:"
        yield blocks(row["partition"])
        yield f"Level n is computed on n + 1 subsets of the data: each worker stores {stored}."
    row = next((row for row in schedules if "tasks" in row["schedule"]), None)
    if row is not None:
        sizes = " ".join(map(str, row["schedule"]["sizes"]))
        what = f"{answer.parts} of its blocks (--format json: all tasks)"
        yield f"\nThe schedule of {row['method']}, {what}:"
        yield textwrap.fill(sizes, 100)


def groups_and_blocks(schedule: Row, parts: str) -> Iterator[str]:
    """The groups of workers of each block, and its size, of those that are not empty.

    >>> list(groups_and_blocks({"sizes": [0, 4000], "groups": [[[0], [1], [2]], [[0], [1, 2]]]}, "units"))
    ['block 1: 2 groups of 1 to 2, 4,000 units']
    """
    for block, (size, groups) in enumerate(zip(schedule["sizes"], schedule["groups"], strict=True)):
        low, high = min(map(len, groups)), max(map(len, groups))
        each = f"{low}" if low == high else f"{low} to {high}"
        several = "s" if len(groups) > 1 else ""
        if size:
            yield f"block {block}: {len(groups)} group{several} of {each}, {size:,} {parts}"


def blocks(partition: Sequence[int]) -> str:
    """`level: count` of those that are not empty.

    >>> blocks([5, 0, 2])
    '0: 5, 2: 2'
    """
    texts = [f"{level}:\0{count}" for level, count in enumerate(partition) if count]
    rest = len(texts) - _MOST_BLOCKS
    shown = texts[:_MOST_BLOCKS] + ([f"and\0{rest}\0more\0(--out\0FILE)"] if rest > 0 else [])
    return textwrap.fill(", ".join(shown), 100).replace("\0", " ")  # lines end between blocks


def _needs(answer: SolveAnswer) -> Iterator[str]:
    """The condition under which the plan is worth anything."""
    if fastest_plan(answer.rows) is not None and answer.setup is not None and 0 < answer.setup < np.inf:
        cycles = answer.setup * float(answer.problem.total) * float(np.asarray(answer.problem.cycles))
        plain = f"{cycles:.0f}" if 100 <= cycles < 1e7 else f"{cycles:.3g}"
        yield (
            "This plan assumes a free forward pass. If one costs more than "
            f"{100 * answer.setup:.2g} % of a backward pass ({plain} cycles per sample and subset), "
            "single_block is faster. Pass its cost with --setup-cycles."
        )
