"""What a person reads of `bcgc solve`: the table, the plan, what it needs, and where figures come from."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Column

from bcgc_jax.cli.output import console, names, print_table, row_label, table
from bcgc_jax.laws import JointLaw, Law, Rows, Unlike
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.compare import BARS, draw
from bcgc_jax.solvers.methods import LIMIT
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS
from bcgc_jax.solvers.schemes import NUM_DRAWS

Row = dict[str, Any]

OVERFLOW = (
    "numbers on the way are above the largest there is, 1.8e308, an overflow where nothing is infinite; take "
    "another unit, or a less extreme law"
)

_MOST_BLOCKS = 60  # printed; the file has them all


class Answer(NamedTuple):
    """What there is to say.

    `rows`: one for each method, best first; `limit`: of any scheme; `baselines`: the rows of those that
    exist, asked for or not; `interval`: of the best plan's runtime, where workers are the rows of a trace;
    `setup`: `largest_setup` of the fastest plan.
    """

    rows: list[Row]
    limit: float
    baselines: Sequence[Row] = ()
    interval: tuple[float, float] | None = None
    setup: float | None = None


def best_baseline(row: Row, baselines: Sequence[Row]) -> Row | None:
    """The fastest of those that need no more than the row does: subsets, round trips, an inexact gradient.

    >>> rows = [{"stored_subsets": 3, "round_trips": 0, "exact_gradient": True}]
    >>> best_baseline({"stored_subsets": 1, "round_trips": 0, "exact_gradient": True}, rows) is None
    True
    """

    def within(one: Row) -> bool:
        if None in (row["stored_subsets"], one["stored_subsets"]):  # not known of a scheme of one's own
            return True
        few = all(one[name] <= row[name] for name in ("stored_subsets", "round_trips"))
        return few and one["exact_gradient"] >= row["exact_gradient"]

    return min(filter(within, baselines), key=runtime_of, default=None)


def runtime_of(row: Row) -> float:
    """Of the whole numbers, where there are some."""
    return row["partition_runtime"] or row["expected_runtime"] or np.inf


def fastest_plan(rows: Sequence[Row]) -> Row | None:
    """The partition of least expected runtime."""
    plans = [row for row in rows if row["partition"] is not None and np.isfinite(runtime_of(row))]
    return min(plans, key=runtime_of, default=None)


def print_answer(
    answer: Answer,
    problem: Problem,
    *,
    deadline: float | None,
    unit: str,
    own: list[str],
    remarks: Sequence[str] = (),
) -> None:
    """All of it; `own` are the user's schemes, `unit` that of the cycle time, `remarks` are on the trace."""
    screen = console()
    print_table(_compared(answer, problem, deadline))
    what = "coordinates" if problem.unit_costs is None else "units"
    text = [f"\nRuntime: expected, of whole {what}, in {unit}. {_baselines(answer)}", *remarks]
    text += [_limit(answer, problem), *_remarks(answer.rows, problem, own), *_saved(answer.rows)]
    text += _law(answer, problem.cycle_time)
    text += [*_plan(answer.rows, problem), *_schedules(answer.rows)]
    text += _needs(answer, problem)
    for line in filter(None, text):
        screen.print(line, markup=False)


def _baselines(answer: Answer) -> str:
    """Which ones the rows are compared with."""
    found = (best_baseline(row, answer.baselines) for row in answer.rows if row["method"] != LIMIT)
    named = list(dict.fromkeys(row_label(one) for one in found if one is not None))
    if len(named) < 2:
        return f"Best baseline: {named[0] if named else 'none'}."
    return f"Best baseline of those that need no more than a row does: {', '.join(named)}."


def _compared(answer: Answer, problem: Problem, deadline: float | None) -> Any:
    bound = _best_bound(answer.rows, problem)
    scheduled = any(row["round_trips"] or row["exact_gradient"] is False for row in answer.rows)
    needs = ["subsets\nstored", "sent\nin L", "round\ntrips"] if scheduled else []
    chance = [] if deadline is None else [f"P(runtime ≤\n{deadline:.4g})"]
    units = "coordinates" if problem.unit_costs is None else "units"
    shown = table(
        names("scheme"),
        "partition\nruntime",
        "vs best\nbaseline",
        "above\noptimum ≤",
        *chance,
        *needs,
        Column(f"share of {units}\nat level 0…{_num_workers(problem) - 1}", no_wrap=True, min_width=BARS),
        "solved\nin (s)",
    )
    for row in answer.rows:
        baseline = best_baseline(row, answer.baselines)
        best = np.inf if baseline is None else runtime_of(baseline)
        figures = [*_figures(row, best, bound), *_chance(row), *(_needed(row) if scheduled else [])]
        shown.add_row(_label(row), *figures, _blocks_of(row), f"{row['seconds']:.2f}")
    return shown


def _label(row: Row) -> str:
    return f"{row_label(row)} (inexact)" if row["exact_gradient"] is False else row_label(row)


def _needed(row: Row) -> list[str]:
    if row["stored_subsets"] is None:
        return ["–"] * 3
    return [f"{row['stored_subsets']}", f"{row['sent']:.2f}", f"{row['round_trips']}"]


def _blocks_of(row: Row) -> str:
    if row["schedule"] is None:
        return draw(row["partition"])
    count = len(row["schedule"]["sizes"])
    return f"{count} block{'s' if count > 1 else ''}, no code"


def _num_workers(problem: Problem) -> int:
    return int(np.asarray(problem.num_workers))


def _best_bound(rows: list[Row], problem: Problem) -> float:
    """Certificates for all levels bound the same optimum, so the best of them serves all. With setup or chain
    cycles each is for the levels in use: the best plan's serves, and says how far below it these could get.
    """
    if problem.has_setup:
        return min(rows, key=runtime_of)["lower_bound"] or 0
    return max((row["lower_bound"] or 0 for row in rows if "levels" not in row["method"]), default=0)


def _figures(row: Row, best: float, bound: float) -> list[str]:
    """Its runtime, against that of the best baseline, and above the bound of the optimum."""
    value = runtime_of(row)
    if not np.isfinite(value):
        return [row["status"], "–", "–"]
    if row["method"] == LIMIT:  # no scheme
        return [f"{value:.4g}", "–", "–"]
    # The bound is one of coded schemes.
    above = 100 * (value / bound - 1) if bound > 0 and not row["round_trips"] else np.inf
    gap = f"{above:.2g} %" if above < 10 else f"{above:.0f} %" if above < 1000 else "–"
    return [
        f"{value:.4g}",
        _against(value / best) if np.isfinite(best) else "–",
        "best found" if row["kind"] == "local" else gap,
    ]


def _against(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %" if ratio < 10 else f"× {ratio:.3g}"


def _chance(row: Row) -> list[str]:
    if "completion_probability" not in row:
        return []
    probability = row["completion_probability"]
    return ["–" if probability is None else f"{probability:.4f}"]


def _limit(answer: Answer, problem: Problem) -> str:
    if np.isfinite(answer.limit):
        limit = f"{answer.limit:.4g}"
        begun = ", after the first start-up, nothing sent" if not problem.plain else ""
        return f"No scheme of any kind is faster than {limit}: all work divisible, every cycle used{begun}."
    if not np.isfinite(problem.cycle_time.mean()):
        return "The expected runtime is infinite under every scheme, even with all work divisible."
    return f"The limit of any scheme is not known: {OVERFLOW}."


def _remarks(rows: list[Row], problem: Problem, own: list[str]) -> list[str]:
    """Where single figures come from."""
    found: list[str] = []
    for row in rows:
        if row["method"] in own and row["partition"] is None and np.isfinite(runtime_of(row)):
            error = 100 * row["runtime_error"] / runtime_of(row)
            found.append(f"{row['method']}: a mean of {NUM_DRAWS} draws, standard error {error:.1g} %.")
    found += _local(rows)
    planned = next((row for row in rows if "levels" in row), None)
    if planned is not None:
        levels = ", ".join(map(str, planned["levels"]))
        found.append(f"{planned['method']} uses the levels {levels}; its bound is for these.")
    return found


def _local(rows: list[Row]) -> list[str]:
    """What "best found" means, and what is proven."""
    row = next((row for row in rows if row["kind"] == "local"), None)
    if row is None:
        return []
    text = (
        f"{row['method']}: the best found by several local searches, for with random start-ups the expected "
        "runtime has many valleys."
    )
    value, bound = runtime_of(row), row["lower_bound"]
    if bound and np.isfinite(value):
        those = " of its levels" if "levels" in row else ""
        text += f" No plan{those} is faster than {bound:.4g}, {100 * (1 - bound / value):.2g} % less."
    return [text]


def _saved(rows: list[Row]) -> list[str]:
    schemes = [row for row in rows if row["method"] != LIMIT and row["exact_gradient"] is not False]
    fastest = min(schemes, key=runtime_of, default=None)
    uncoded = next((row for row in rows if row["method"] == "uncoded"), None)
    if not (fastest and uncoded and fastest is not uncoded and np.isfinite(runtime_of(uncoded))):
        return []
    saved = 100 * (1 - runtime_of(fastest) / runtime_of(uncoded))
    text = f"{fastest['method']} takes {saved:.1f} % less time than the uncoded scheme"
    coded = fastest_plan(schemes)
    if fastest["round_trips"] and coded is not None:
        less = 100 * (1 - runtime_of(fastest) / runtime_of(coded))
        text += f", and {less:.1f} % less than the fastest plan with a code, {row_label(coded)}"
    return [f"{text}."] if saved >= 0.05 else []


def _law(answer: Answer, law: Law | JointLaw) -> list[str]:
    """What stands for the expectation, where workers are not alike."""
    found = []
    if isinstance(law, Unlike):
        known = [row for row in answer.rows if row["expected_runtime"] and row["runtime_error"] is not None]
        error = 100 * max((row["runtime_error"] / row["expected_runtime"] for row in known), default=np.nan)
        found.append(
            f"Means of {NUM_FRESH_DRAWS} draws, standard error up to {error:.1g} %; "
            "the optimum's bound has 97.5 % confidence."
        )
    if isinstance(law, Rows):
        steps = np.asarray(law.times).shape[0]
        found.append(
            f"Means over the trace's {steps} steps; plans made for these fit the next ones less well."
        )
    if answer.interval is not None:
        low, high = answer.interval
        method = answer.rows[0]["method"]
        found.append(f"{method}: {low:.4g} to {high:.4g} with 95 % confidence, blocks of steps resampled.")
    return found


def _plan(rows: list[Row], problem: Problem) -> list[str]:
    """The best plan's blocks, and what is stored for them."""
    row = next((row for row in rows if row["partition"] is not None), None)
    if row is None:
        return []
    workers, what = _num_workers(problem), "coordinates" if problem.unit_costs is None else "units"
    level = int(np.flatnonzero(row["partition"])[-1])
    return [
        f"\nThe plan of {row['method']}, level: {what}, in the order in which they are computed:",
        blocks(row["partition"]),
        f"Level n is computed on n + 1 subsets of the data: each worker stores {level + 1} of the {workers}.",
    ]


def _schedules(rows: list[Row]) -> list[str]:
    """The fastest schedule of several blocks."""
    row = next((row for row in rows if row["schedule"] and len(row["schedule"]["sizes"]) > 1), None)
    inexact = [_label(one) for one in rows if one["exact_gradient"] is False]
    text = [f"Not the gradient of all data, but of a part of it: {', '.join(inexact)}."] if inexact else []
    if row is None:
        return text
    depth = np.bincount(np.array(row["schedule"]["tasks"])[:, 1])
    runs: dict[int, list[str]] = {}
    for number, size in zip(depth, row["schedule"]["sizes"], strict=True):
        runs.setdefault(int(number), []).append(str(size))
    shown = ", then ".join(f"on {number}: {' '.join(sizes)}" for number, sizes in runs.items())
    return [
        f"\nThe schedule of {row['method']}, the number of a worker's subsets: coordinates of the blocks,",
        *textwrap.wrap(shown, 100),
        "Blocks on as many go subset by subset, every second subset backwards (--format json: all tasks).",
        *text,
    ]


def blocks(partition: Sequence[int]) -> str:
    """`level: count` of those that are not empty; neighbours of one size together.

    >>> blocks([5, 0, 2, 2, 2])
    '0: 5, 2-4: 2 each'
    """
    runs: list[list[int]] = []  # first level, last level, count
    for level, count in enumerate(partition):
        if count and runs and runs[-1][1:] == [level - 1, count]:
            runs[-1][1] = level
        elif count:
            runs.append([level, level, count])
    texts = [f"{a}: {n}" if a == b else f"{a}-{b}: {n} each" for a, b, n in runs]
    rest = len(texts) - _MOST_BLOCKS
    shown = texts[:_MOST_BLOCKS] + ([f"and {rest} more (--out FILE)"] if rest > 0 else [])
    # Lines end between blocks.
    lines = textwrap.wrap(", ".join(text.replace(" ", "\0") for text in shown), 100)
    return "\n".join(lines).replace("\0", " ")


def _needs(answer: Answer, problem: Problem) -> list[str]:
    """The condition under which the plan is worth anything."""
    row = fastest_plan(answer.rows)
    if row is None or answer.setup is None or not 0 < answer.setup < np.inf:
        return []
    backward, share = float(problem.total) * float(np.asarray(problem.cycles)), f"{100 * answer.setup:.2g} %"
    return [
        f"The gain needs a cheap forward pass: from {_plain(answer.setup * backward)} setup cycles a sample "
        f"and subset on, {share} of a backward pass (L b = {_plain(backward)}), this plan is slower than "
        "single_block. --setup-cycles F plans for F of them."
    ]


def _plain(number: float) -> str:
    return f"{number:.0f}" if 100 <= number < 1e7 else f"{number:.3g}"
