"""What is shown while one waits: nothing in a log but a line each half minute, whatever is computed."""

import contextlib
import re
import threading
import time

import pytest

from bcgc_jax.cli import waiting


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(waiting, "_EVERY", 0.01)


@pytest.fixture
def told(capsys):
    """Wait, as long as a slow machine needs, until a line begins so."""

    def wait(start):
        for _ in range(3000):
            if re.search(rf"^{start}", capsys.readouterr().err, re.MULTILINE):
                return True
            time.sleep(0.01)
        return False

    return wait


@pytest.mark.usefixtures("hurried")
def test_lines_tell_how_far_it_is_where_there_is_no_terminal(told):
    before, seen = set(threading.enumerate()), []
    for item in waiting.each([1, 2, 3, 4], "counting"):
        seen.append(item)
        assert told(rf"counting, {25 * (item - 1)} %, \d+ s\n")
    assert seen == [1, 2, 3, 4]
    for thread in set(threading.enumerate()) - before:
        thread.join()  # it is over: nobody tells any more


@pytest.mark.usefixtures("hurried")
def test_cells_and_a_task_without_an_end_are_told_likewise(told):
    with waiting.cells("solving") as report:
        report(0, 0)
        report(3, 9)
        assert told("solving, 33 %")
    with waiting.progress() as bar:
        bar.add_task("compiling")
        assert told(r"compiling, \d+ s\n")


def test_what_is_quick_says_nothing(capsys):
    assert (list(waiting.each([1, 2], "counting")), capsys.readouterr()) == ([1, 2], ("", ""))


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with waiting.cells("solving") as report:
        report(0, 20)
        report(10, 20)
    assert "10/20" in capsys.readouterr().err


@pytest.mark.usefixtures("hurried")
def test_parts_count_and_are_named_while_they_run(told):
    lines = waiting.Lines()
    with lines, waiting.Parts(lines, 2) as parts:
        parts.compiling(False)
        with parts.part("long"):
            with contextlib.suppress(ValueError), parts.part("short"):
                assert told("solving long, short, 0 %")
                raise ValueError("no plan")  # what fails is over too
            assert told("solving long, 50 %")
