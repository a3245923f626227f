"""What a person reads of an answer, from rows made by hand: nothing is solved."""

import numpy as np
import pytest

from bcgc_jax import (
    Problem,
    ShiftedExponential,
)
from bcgc_jax.cli.output import saved_in_words
from bcgc_jax.cli.solve_rows import SolveAnswer, share_saved
from bcgc_jax.cli.solve_table import print_table
from bcgc_jax.solvers.compare import draw
from tests.cli.rows import row

LAW = ShiftedExponential(1e-3, 50.0)


@pytest.fixture
def printed(capsys):
    """The lines of an answer, none longer than so many signs, and its words."""

    def show(*answer, widest=100, **options):
        print_table(SolveAnswer(*answer, **options))
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= widest
        return out.splitlines(), " ".join(out.split())

    return show


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
