"""What a person reads of an answer, from rows made by hand: nothing is solved."""

import re
from typing import Any

import numpy as np
import pytest

from bcgc_jax import (
    EmpiricalRows,
    Heterogeneous,
    Problem,
    ShiftedExponential,
    Uniform,
)
from bcgc_jax.cli.output import saved_in_words
from bcgc_jax.cli.solve_rows import Schedule, SolveAnswer, share_saved
from bcgc_jax.cli.solve_table import print_table
from bcgc_jax.distributions import Deterministic
from bcgc_jax.solvers.compare import draw
from tests.cli.rows import row

LAW = ShiftedExponential(1e-3, 50.0)
ONE_BLOCK = Schedule([10], tasks=[[0, 0]])


@pytest.fixture
def printed(capsys):
    """The lines of an answer, none longer than so many signs, and its words."""

    def show(*answer, widest=100, **options):
        print_table(SolveAnswer(*answer, **options))
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= widest
        return out.splitlines(), " ".join(out.split())

    return show


def test_the_table_says_what_is_saved_and_shows_the_plan(printed):
    rows = [
        row(
            "time",
            8.0,
            [30, *[5] * 28, 4830],
            lower_bound=6.0,
            completion_probability=0.25,
        ),
        row(
            "single_block",
            10.0,
            [0, 5000, *[0] * 28],
            completion_probability=0.125,
            stored_subsets=2,
        ),
        row("tandon_partial", 12.0, alpha=4.8812, completion_probability=None),
        row("uncoded", 16.0, [5000, *[0] * 29], completion_probability=0.0),
    ]
    lines, text = printed(
        Problem(LAW, 30, 5000), rows, 4.0, 12345.0, rows[1], setup=0.05, widest=104
    )
    assert "P(runtime ≤" in lines[0]
    figures = [line.split() for line in lines[2:6]]
    assert figures[0][:8] == ["time", "8", "50.0", "%", "33", "%", "0.2500", "1"]
    assert figures[1][:8] == [
        "single_block",
        "10",
        "37.5",
        "%",
        "67",
        "%",
        "0.1250",
        "2",
    ]
    assert figures[2][:9] == [
        "tandon_partial",
        "α",
        "4.88",
        "12",
        "25.0",
        "%",
        "100",
        "%",
        "–",
    ]
    assert figures[3][:7] == ["uncoded", "16", "0.0", "%", "167", "%", "0.0000"]
    assert not any("…" in line.partition("▁")[2] for line in lines)  # no bar is cut off
    assert (
        "in the cycle time's unit. Blocks are rounded to whole coordinates; the "
        "optimum is not."
    ) in text
    assert (
        "Best baseline: single_block, the fastest earlier scheme, takes 10. time takes "
        "20.0 % "
        "less." in text
    )
    assert "No scheme of any kind is faster than 4, assuming" in text
    assert (
        "The plan of time, level: coordinates, in the order in which they are computed:"
        in lines
    )
    assert any(line.startswith("0: 30, 1: 5, 2: 5,") for line in lines)
    assert "28: 5, 29: 4830" in text
    assert "each worker stores 30 of the 30" in text
    assert (
        "If one costs more than 5 % of a backward pass (250 cycles per sample and "
        "subset), single"
    ) in text


def test_what_takes_longer_one_step_after_the_other_is_told_by_more_than_two_percent(
    printed,
):
    chained = {
        "single_block": (15.0, 0.06),
        "time": (9.0, 0.09),
        "optimal": (7.14, 0.01),
    }
    runtimes = {"optimal": 7.0, "time": 8.0, "single_block": 10.0}
    rows = [
        row(
            name,
            value,
            [60],
            chained_runtime=chained[name][0],
            chained_error=chained[name][1],
        )
        for name, value in runtimes.items()
    ]
    _, text = printed(
        Problem(LAW, 3, 60),
        [*rows, row("uncoded", 16.0, [60])],
        1.0,
        unit=(2.0, "seconds"),
    )
    assert (
        "first ends the pass that it has begun. Then these take longer, by draws"
        in text
    )
    assert (
        "standard error up to 1 %: time 4.5 (×1.12), single_block 7.5 (×1.50)." in text
    )
    _, text = printed(Problem(LAW, 3, 60), [rows[0]], 1.0)
    assert "take longer" not in text


def test_a_loose_bound_is_told_in_words(printed):
    rows = [
        row("time", 8.0, [30, 20, 10], lower_bound=3.0),
        row("uncoded", 16.0, [60, 0, 0], lower_bound=2.0),
    ]
    lines, text = printed(Problem(LAW, 3, 60), rows, 1.0, baseline=rows[1])
    assert lines[2].split()[:5] == ["time", "8", "50.0", "%", "–"]
    assert "not known closely: add --method optimal." in text
    rows = [
        row("optimal", 8.0, [30, 20, 10], lower_bound=3.0, status="step_limit"),
        *rows,
    ]
    lines, text = printed(Problem(LAW, 3, 60), rows, 1.0, baseline=rows[1])
    assert lines[2].split()[:6] == ["optimal", "8", "50.0", "%", "167", "%"]
    assert "not known closely" not in text


def test_best_found_where_nothing_is_proven(printed):
    rows = [
        row(
            "optimal",
            50.0,
            [40, 15, 5],
            kind="local",
            lower_bound=44.0,
            status="step_limit",
        ),
        row("uncoded", 66.0, [60, 0, 0], lower_bound=40.0),
    ]
    problem = Problem(Deterministic(2.0), 3, 60, start_up=4000.0)
    lines, text = printed(problem, rows, 30.0, baseline=rows[1], unit=(2.0, "seconds"))
    assert lines[2].split()[:6] == ["optimal", "25", "-212.5", "%", "best", "found"]
    assert lines[3].split()[:6] == ["uncoded", "33", "-312.5", "%", "50", "%"]
    assert "a local search found. None is faster than 22, which is 12 % less." in text
    assert all(
        words in text
        for words in ("no idle time, after the first start-up", "may be near: optimal.")
    )


def test_a_limit_is_no_scheme_and_a_fast_scheme_has_no_levels(printed):
    rows = [row("limit", 1.0), row("uncoded", 4.0, [60, 0, 0])]
    lines, _ = printed(Problem(LAW, 3, 60), rows, 1.0, baseline=rows[1])
    assert lines[2].split()[:5] == ["limit", "1", "93.8", "%", "–"]
    rows = [
        row("quick", 1.0, runtime_error=0.0249),
        row("time", 4.0, [0, 30, 30], lower_bound=3.0, levels=[1, 2]),
    ]
    passes = Problem(LAW, 3, 60, setup_cycles=5.0)
    lines, text = printed(passes, rows, 1.0)
    assert "Means of draws, standard error up to 2 %: quick." in text
    assert "The bound of time is for plans of the levels 1, 2 only." in text
    assert "above best" in lines[0]
    assert "found ≤" in lines[1]
    rows[1] = row("time", 4.0, [20, 20, 20], lower_bound=3.0, levels=[0, 1, 2])
    lines, _ = printed(passes, rows, 1.0)
    assert "above best" not in lines[0]
    assert "optimum ≤" in lines[1]
    assert (
        "perfectly divisible work, each sample's passes made once and no idle time."
        in text
    )


def test_schedules_say_what_they_need_and_what_they_leave_out(printed):
    cyclic = Schedule([10], tasks=[[0, 0], [1, 0]])
    groups = Schedule([0, 4000], groups=[[[0], [1], [2]], [[0], [1, 2]]])
    rows = [
        row(
            "cyclic:2", 2.0, schedule=cyclic, stored_subsets=2, sent=1.5, round_trips=1
        ),
        row("nested", 2.0, schedule=groups),
        row(
            "backup:1",
            2.0,
            schedule=ONE_BLOCK,
            exact_gradient=False,
            lost=1 / 3,
            saved=13 / 16,
        ),
        row(
            "drop",
            2.9,
            exact_gradient=False,
            lost=0.2,
            threshold=3.0,
            at_limit=1.0,
            bound_of=None,
        ),
        row("time", 4.0, [5, 5, 0], lower_bound=3.0, stored_subsets=2),
        row("uncoded", 8.0, [10, 0, 0]),
    ]
    # no number is cut
    lines, text = printed(Problem(LAW, 3, 10), rows, 1.0, baseline=rows[5], widest=102)
    table_rows = [" ".join(line.split()) for line in lines[2:]]
    assert table_rows[0].startswith("cyclic:2 2 87.5 % – 2 1.50 1 1 block, no")
    assert table_rows[2].startswith("backup:1 (inexact) 3 81.2 % – 1 1.00 0 1 block,")
    assert (
        "block 1: 2 groups of 1 to 2, 4,000 coordinates A block is complete when one "
        "worker of"
    ) in text
    assert "sent its sum. Each worker stores 2 of the 3 subsets of the data." in text
    assert (
        "for as many samples that are used as a step has. A step of backup:1 loses "
        "33.3 %"
    ) in text
    assert (
        "A step of drop loses 20.0 % of the samples and takes 2.9. Workers stop at 3, "
        "within a chunk too. Where they end the chunk, less is lost, and a step is up "
        "to a chunk longer. The threshold of drop is at its limit, where one worker "
        "ends all its chunks on average."
    ) in text


def test_work_sharing_stands_beside_what_no_scheme_of_its_storage_beats(printed):
    fields: dict[str, Any] = {
        "kind": "confidence",
        "round_trips": 10,
        "bound_of": "storage",
    }
    rows = [
        row(
            "sharing:all",
            3.0,
            stored_subsets=4,
            lower_bound=2.0,
            relative_gap=1 / 3,
            **fields,
        ),
        row(
            "sharing:2",
            4.0,
            stored_subsets=2,
            lower_bound=3.0,
            relative_gap=0.25,
            completion_error=0.004,
            **fields,
        ),
        row("uncoded", 8.0, [10, 0, 0, 0]),
    ]
    lines, text = printed(
        Problem(LAW, 4, 10),
        rows,
        1.0,
        baseline=rows[2],
        unit=(2.0, "seconds"),
        enough=3,
    )
    assert "chunks, no code" in lines[2]
    assert (
        "With 2 subsets stored no exact scheme is faster than 1.5, 25 % less than "
        "sharing:2."
    ) in text
    assert "Probabilities by draws, standard error up to 0.004: sharing:2." in text
    assert "With 4 subsets" not in text  # that is the limit of any scheme
    _, above = printed(
        Problem(LAW, 4, 10), rows, 3.2, baseline=rows[2], unit=(2.0, "seconds")
    )
    assert (
        "stored no exact scheme is faster than 1.6, 20 % less than sharing:2." in above
    )
    assert "To store 3 subsets is enough: the limit is within 5 %" in text
    _, of_one_subset = printed(
        Problem(LAW, 4, 10), rows, 1.0, baseline=rows[2], enough=1
    )
    assert "To store 1 subset is enough: the limit is within 5 %" in of_one_subset
    _, slow = printed(Problem(LAW, 4, 10), rows, 1.0, baseline=rows[2], stays_slow=True)
    assert "no exact scheme" not in slow
    assert "some workers stay slow. Their data can be stored elsewhere" in slow
    assert "try --method" not in text
    _, text = printed(Problem(LAW, 4, 10), rows[2:], 1.0)
    assert (
        "try --method nested, and --method sharing:2 where workers can ask for work."
        in text
    )


def test_all_times_are_printed_in_one_unit(printed):
    rows = [
        row("time", 8.0, [60, 0, 0, 0], lower_bound=6.0, completion_probability=0.25)
    ]
    baseline, interval = row("uncoded", 16.0), (7.0, 9.0)
    lines, text = printed(
        Problem(LAW, 4, 60), rows, 4.0, 16.0, baseline, interval, unit=(2.0, "seconds")
    )
    assert " 8) " in lines[1]
    assert "Runtimes are in seconds. Blocks" in text
    assert lines[2].split()[:7] == ["time", "4", "50.0", "%", "33", "%", "0.2500"]
    assert "faster than 2, assuming" in text
    assert "time: 3.5 to 4.5 with 95 % confidence" in text


def test_what_stands_for_an_expectation_is_said(printed):
    plan = row("uncoded", 4.0, [60, 0, 0, 0], runtime_error=0.04)
    _, text = printed(
        Problem(EmpiricalRows(np.ones((6, 4))), 4, 60), [plan], 1.0, interval=(3.5, 4.5)
    )
    assert "Means over the trace's 6 steps" in text
    assert "uncoded: 3.5 to 4.5 with 95 % confidence" in text
    _, text = printed(
        Problem(Heterogeneous([Uniform(1.0, 2.0)] * 3 + [LAW]), 4, 60), [plan], 1.0
    )
    assert re.search(r"Means of \d+ draws, standard error up to 1 %", text)


def test_a_bar_is_drawn_for_each_level_or_group_of_levels():
    assert (draw([0, 4, 0]), len(draw(list(range(100)))), draw(None)) == (
        "·█·",
        20,
        "no partition",
    )


def test_what_is_saved_is_of_the_time_of_the_uncoded_scheme_where_both_are_finite():
    cases = {
        "fast": (2.0, 0.5),
        "uncoded": (4.0, 0.0),
        "slow": (40.0, -9.0),
        "never": (np.inf, None),
    }
    words = {"fast": "50.0 %", "uncoded": "0.0 %", "slow": "× 10", "never": "–"}
    for name, (runtime, share) in cases.items():
        solved = row(name, runtime)
        assert share_saved(solved, row("uncoded", 4.0)) == share
        assert saved_in_words(share) == words[name]
        assert share_saved(solved, row("uncoded", np.inf)) is None
