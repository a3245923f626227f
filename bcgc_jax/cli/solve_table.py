"""What a person reads of `bcgc solve`: the table, the plan, the figures' sources."""

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Column

from bcgc_jax.cli import bounds, output
from bcgc_jax.cli.columns import SOLUTION, table_of, without_questions
from bcgc_jax.cli.describe import num_workers
from bcgc_jax.cli.solve_rows import SolveAnswer, Solved, fastest, fastest_plan
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.solvers.compare import BARS, draw, in_a_row
from bcgc_jax.solvers.methods import is_limit
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS
from bcgc_jax.traces.units import counted

OVERFLOW = (
    "numbers on the way are above 1.8e308, an overflow: take another unit, or less "
    "extreme times"
)


def print_table(answer: SolveAnswer, remarks: Sequence[str] = ()) -> None:
    """Print the whole answer; `remarks` are on what the runtimes are of."""
    output.print_rows(answer.rows, _columns(answer))
    which = "Blocks"
    if any(row.schedule for row in answer.rows):
        which = "Blocks of plans with a code"
    whole = f"{which} are rounded to whole {answer.parts}; the optimum is not."
    output.print_lines(
        f"\nRuntimes are in {answer.unit[1]}. {whole}",
        _against_baseline(answer),
        *_in_a_row(answer),
        *remarks,
        *_limit(answer),
        *_storage(answer),
        *_errors(answer),
        *_bounds(answer),
        *_inexact(answer),
        *_grouped_plan(answer),
        *_coded_plan(answer),
        *_largest_forward(answer),
    )


def _against_baseline(answer: SolveAnswer) -> str:
    """Compare the fastest scheme with the fastest earlier one, listed or not."""
    if answer.baseline is None:
        return "Best baseline: none."
    least = answer.baseline.runtime
    name = output.scheme_label(answer.baseline)
    text = (
        f"Best baseline: {name}, the fastest earlier scheme, takes "
        f"{least / answer.unit[0]:.4g}."
    )
    schemes = [row for row in answer.rows if not is_limit(row.method)]
    best = fastest([row for row in schemes if row.exact])
    if best is None or best.runtime > 0.9995 * least:
        return text
    less = 100 * (1 - best.runtime / least)
    return f"{text} {output.scheme_label(best)} takes {less:.1f} % less."


def _in_a_row(answer: SolveAnswer) -> list[str]:
    """Tell which schemes take longer where nobody can stop a computation."""
    times = []
    for row in answer.rows:
        if row.chained_runtime is None:
            continue
        chained: Any = output.for_used(row.chained_runtime, row.lost)
        error: Any = output.for_used(row.chained_error or 0.0, row.lost)
        times.append((row.method, row.runtime, Expectation(chained, error)))
    return in_a_row(times, answer.unit[0])


def _columns(answer: SolveAnswer) -> list[output.Shown]:
    """Each row's runtime, what it saves, and its excess over the optimum's bound."""
    bound = _best_bound(answer)
    size, _ = answer.unit

    def runtime(row: Solved) -> str:
        if np.isfinite(row.runtime):
            return f"{row.runtime / size:.4g}"
        return row.status

    def above(row: Solved) -> str:
        return bounds.above_optimum(row, bound)

    def blocks_of(row: Solved) -> str:
        if row.shares_work:
            return "chunks, no code"
        if row.schedule is None:
            return draw(row.partition)
        count = sum(size > 0 for size in row.schedule.sizes)
        return f"{counted(count, 'block')}, no code"

    chance: list[output.Shown] = []
    if answer.deadline:
        head = f"P(runtime ≤\n{answer.deadline / size:.4g})"
        chance.append(
            (head, lambda row: output.number(row.completion_probability, ".4f"))
        )
    share = f"share of {answer.parts}\nat level 0…{num_workers(answer.problem) - 1}"
    return table_of(
        SOLUTION,
        answer.rows,
        *(
            "method",
            "expected_runtime",
            "saved",
            "lower_bound",
            "completion_probability",
        ),
        *("stored_subsets", "sent", "round_trips", "partition"),
        expected_runtime=[("expected\nruntime", runtime)],
        lower_bound=[(bounds.bound_head(all_levels=_bounds_all(answer)), above)],
        completion_probability=chance,
        partition=[(Column(share, no_wrap=True, min_width=BARS), blocks_of)],
        **without_questions(answer.rows),
    )


def _best_bound(answer: SolveAnswer) -> float:
    """The bound of the optimum, or of plans of the levels in use."""
    used_levels = [row.levels for row in answer.rows if row.bound_of == "levels"]
    all_levels = all(levels is None for levels in used_levels)
    return bounds.best_bound(answer.rows, all_levels=all_levels)


def _bounds_all(answer: SolveAnswer) -> bool:
    """Whether `_best_bound` is for plans of all levels."""
    levels_of = {row.runtime: row.levels for row in answer.rows if row.levels}
    if not levels_of:
        return True
    return len(levels_of[min(levels_of)]) == num_workers(answer.problem)


def _limit(answer: SolveAnswer) -> Iterator[str]:
    """Tell the limit of all schemes, and often faster ones that were not asked for."""
    if np.isfinite(answer.limit):
        passes = ""
        if answer.problem.has_setup:
            passes = ", each sample's passes made once"
        begun = ""
        if not answer.problem.plain:
            begun = ", after the first start-up, nothing sent"
        yield (
            "No scheme of any kind is faster than "
            f"{answer.limit / answer.unit[0]:.4g}, assuming perfectly divisible "
            f"work{passes} and no idle time{begun}."
        )
    elif np.isfinite(answer.problem.cycle_time.mean()):
        yield f"The limit of any scheme is not known: {OVERFLOW}."
    else:
        yield (
            "The expected runtime is infinite under every scheme, even with all work "
            "divisible."
        )
        return
    if num_workers(answer.problem) <= 2 or answer.deadline is not None:
        return
    without_code = any(row.schedule or row.shares_work for row in answer.rows)
    if not iteration_of(answer.problem).alike:
        yield "nested is for independent workers that are alike, so it is left out."
    elif not without_code:
        yield (
            "Schemes without a code are often faster: try --method nested, and "
            "--method sharing:2 where workers can ask for work."
        )


def _storage(answer: SolveAnswer) -> Iterator[str]:
    """What no exact scheme with so much storage beats, and how much is enough."""
    shared = [
        (row, row.lower_bound)
        for row in answer.rows
        if row.shares_work and row.lower_bound
    ]
    if not shared:
        return
    if answer.stays_slow:
        yield (
            "In the trace some workers stay slow. Their data can be stored elsewhere, "
            "so no bound for less than all data is known."
        )
        return
    for row, lower_bound in shared:
        # That of all data is exact. By draws, that of less data may come out below it.
        bound = float(np.fmax(lower_bound, answer.limit))
        less = 100 * (1 - bound / row.runtime)
        stored = row.stored_subsets
        if stored is not None and stored < num_workers(answer.problem):
            yield (
                f"With {counted(stored, 'subset')} stored no exact scheme is faster "
                f"than {bound / answer.unit[0]:.4g}, {less:.2g} % less than "
                f"{row.method}."
            )
    if answer.enough is not None:
        yield (
            f"To store {counted(answer.enough, 'subset')} is enough: the limit is "
            "within 5 % of that of all data."
        )


def _errors(answer: SolveAnswer) -> Iterator[str]:
    """Tell what is no exact expectation, and how far off it may be."""
    rows = answer.rows
    iteration = iteration_of(answer.problem)
    size, _ = answer.unit
    errors = {row.method: 100 * (row.runtime_error or 0) / row.runtime for row in rows}
    # those of quadrature are far below
    drawn = [name for name, error in errors.items() if error > 0.01]
    largest_error = f"standard error up to {max(errors.values(), default=0):.1g} %"
    if not iteration.exact:
        yield (
            f"Means of {NUM_FRESH_DRAWS} draws, {largest_error}; the optimum's bound "
            "has 97.5 % confidence."
        )
    elif drawn:
        yield f"Means of draws, {largest_error}: {', '.join(drawn)}."
    shares = [row for row in rows if row.completion_error]
    if shares:
        error = max(row.completion_error or 0 for row in shares)
        names = ", ".join(output.scheme_label(row) for row in shares)
        yield f"Probabilities by draws, standard error up to {error:.1g}: {names}."
    if (steps := iteration.rows) is not None:
        yield (
            f"Means over the trace's {counted(len(steps), 'step')}; plans made for "
            "these fit the next ones less well."
        )
    if answer.interval is not None:
        low, high = (time / size for time in answer.interval)
        confidence = "with 95 % confidence, steps resampled"
        yield f"{rows[0].method}: {low:.4g} to {high:.4g} {confidence}."


def _bounds(answer: SolveAnswer) -> Iterator[str]:
    """Tell what is no proven optimum, and what a bound is for."""
    rows = answer.rows
    size, _ = answer.unit
    for row in [row for row in rows if row.kind == "local"]:
        text = ""
        value = row.runtime
        bound = row.lower_bound
        if bound and np.isfinite(value):
            of_groups = row.bound_of == "groups"
            which = "None"
            if of_groups:
                which = "For independent workers no plan with these groups"
            less = 100 * (1 - bound / value)
            text = (
                f" {which} is faster than {bound / size:.4g}, which is {less:.2g} % "
                "less."
            )
        yield f"{row.method} is the best plan that a local search found.{text}"
    bounded = any(row.lower_bound for row in rows if row.bound_of == "levels")
    if bounded and not _best_bound(answer):
        unknown = "How far these plans are above the optimum is not known closely"
        yield f"{unknown}: add --method optimal."
    ended = ", ".join(
        output.scheme_label(row) for row in rows if row.status == "step_limit"
    )
    if ended:
        yield (
            "The search ended before it converged, so a faster plan may be near: "
            f"{ended}."
        )
    bounded_rows = ((row.method, row.levels) for row in rows if row.levels is not None)
    for method, used in itertools.islice(bounded_rows, 1):
        levels = ", ".join(map(str, used))
        word = "levels"
        if len(used) == 1:
            word = "level"
        yield f"The bound of {method} is for plans of the {word} {levels} only."


def _inexact(answer: SolveAnswer) -> Iterator[str]:
    """What the runtimes of schemes are that lose samples."""
    size, _ = answer.unit
    inexact = [row for row in answer.rows if row.exact_gradient is False]
    inexact = [row for row in inexact if np.isfinite(row.runtime)]
    if inexact:
        yield (
            "Inexact schemes lose samples. Their runtimes, and what they save, are for "
            "as many samples that are used as a step has."
        )
    for row in inexact:
        stop = row.threshold
        lost = f"loses {100 * (row.lost or 0):.1f} % of the samples"
        yield f"A step of {row.method} {lost} and takes {row.step / size:.4g}."
        if stop and np.isfinite(stop):
            yield (
                f"Workers stop at {stop / size:.4g}, within a chunk too. Where they "
                "end the chunk, less is lost, and a step is up to a chunk longer."
            )
        if row.at_limit:
            yield (
                f"The threshold of {row.method} is at its limit, where one worker ends "
                "all its chunks on average. Earlier stops would take less time for a "
                "used sample, because a step has no other cost here."
            )


_ORDER = "in the order in which they are computed"


def _grouped_plan(answer: SolveAnswer) -> Iterator[str]:
    """Tell the best plan with groups: its blocks, and what is stored for them."""
    schedules = (
        (row.method, row.schedule) for row in answer.rows if row.schedule is not None
    )
    method, schedule = next((pair for pair in schedules if pair[1].groups), ("", None))
    if schedule is None or schedule.groups is None:
        return
    yield f"\nThe plan of {method}, blocks {_ORDER}:"
    num_stored = 0
    for block, (size, groups) in enumerate(
        zip(schedule.sizes, schedule.groups, strict=True)
    ):
        if size:
            low = min(map(len, groups))
            high = max(map(len, groups))
            if low == high:
                workers = f"{low}"
            else:
                workers = f"{low} to {high}"
            word = "groups"
            if len(groups) == 1:
                word = "group"
            parts = counted(size, answer.parts.removesuffix("s"))
            yield f"block {block}: {len(groups)} {word} of {workers}, {parts}"
            num_stored = max(num_stored, high)
    yield (
        "A block is complete when one worker of each group has sent its sum. Each "
        f"worker stores {num_stored} of the {num_workers(answer.problem)} subsets of "
        "the data."
    )


def _coded_plan(answer: SolveAnswer) -> Iterator[str]:
    """Tell the best plan with a code: its blocks, and what is stored for them."""
    plans = (
        (row.method, row.partition) for row in answer.rows if row.partition is not None
    )
    method, partition = next(plans, ("", None))
    if partition is None:
        return
    yield f"\nThe plan of {method}, level: {answer.parts}, {_ORDER}:"
    yield blocks(partition)
    stored = int(np.flatnonzero(partition)[-1]) + 1
    yield (
        "Level n is computed on n + 1 subsets of the data: each worker stores "
        f"{stored} of the {num_workers(answer.problem)}."
    )


def _largest_forward(answer: SolveAnswer) -> Iterator[str]:
    """Tell the forward pass with which the fastest plan gains nothing."""
    best = fastest_plan(answer.rows)
    if best is None or not answer.setup or not np.isfinite(answer.setup):
        return
    problem = answer.problem
    cycles = answer.setup * float(problem.total) * float(np.asarray(problem.cycles))
    if 100 <= cycles < 1e7:
        plain = f"{cycles:.0f}"
    else:
        plain = f"{cycles:.3g}"
    yield (
        f"The plan of {best.method} assumes a free forward pass. If one costs more "
        f"than {100 * answer.setup:.2g} % of a backward pass ({plain} cycles per "
        "sample and subset), single_block is faster. Pass its cost with --forward."
    )


def blocks(partition: Sequence[int]) -> str:
    """`level: count` of the first 60 levels with a count: the file has them all."""
    texts = [f"{level}:\0{count}" for level, count in enumerate(partition) if count]
    if (num_hidden := len(texts) - 60) > 0:
        texts[60:] = [f"and\0{num_hidden}\0more\0(--out\0FILE)"]
    # Lines end between blocks.
    return textwrap.fill(", ".join(texts), 100).replace("\0", " ")
