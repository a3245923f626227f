"""What is shown while one waits: a spinner on a terminal, in a log a line each half minute."""

import io
import re
import sys
import threading
import time

import pytest

from bcgc_jax.cli import progress
from experiments.report import each


@pytest.fixture
def told(monkeypatch, capsys):
    """Wait in a hurry, as long as a slow machine needs, until something like this is there."""
    for name in ("_QUIET", "_EVERY"):
        monkeypatch.setattr(progress, name, 0.01)

    def wait(words, read=lambda: capsys.readouterr().err):
        for _ in range(3000):
            if re.search(words, read(), re.MULTILINE):
                return True
            time.sleep(0.01)
        return False

    return wait


def test_lines_tell_how_far_it_is_where_there_is_no_terminal(told):
    before, seen = set(threading.enumerate()), []
    for item in each([1, 2, 3, 4], "counting"):
        seen.append(item)
        assert told(rf"^counting, {item - 1} of 4, \d+ s$")
    assert seen == [1, 2, 3, 4]
    assert set(threading.enumerate()) == before  # it is over: nobody tells any more


def test_cells_and_a_task_without_an_end_are_told_likewise(told):
    with progress.Progress("solving") as bar:
        bar.reach(3, 9)
        assert told(r"^solving, 3 of 9,")
    with progress.Progress("compiling") as bar:
        assert told(r"^compiling, \d+ s$")


def test_what_is_quick_says_nothing(capsys):
    assert (list(each([1, 2], "counting")), capsys.readouterr()) == ([1, 2], ("", ""))


def test_a_terminal_has_a_spinner_that_goes_away(told, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.Progress() as bar:
        bar.what = "solving optimal"
        assert told(r"solving optimal, \d+ s", screen.getvalue)
    assert screen.getvalue().rstrip().endswith("\x1b[2K")
