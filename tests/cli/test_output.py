"""Output of all commands: one width, one way to write rows, one-line errors, files."""

import json
import operator
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from rich.table import Column

import bcgc_jax.cli
from bcgc_jax.cli import output, progress
from bcgc_jax.cli.exit import check_file
from bcgc_jax.cli.options import one_line_errors
from experiments.report import check_folder, with_progress
from tests.raising import raising
from tests.waiting import comes_true


def test_rows_are_written_with_every_column_that_one_of_them_has(capsys):
    output.write_rows(
        [{"a": [1, 2], "b": None}, {"a": float("inf"), "c": {"low": 1.5, "high": None}}]
    )
    text = capsys.readouterr().out
    assert text == "a,b,c\n1 2,,\n,,low=1.5 high=\n"
    rows: list[output.Row] = [{"i": 0}, {"i": {"groups": ((0,), (1,))}}]
    output.write_rows(iter(rows))
    assert capsys.readouterr().out == 'i\n0\n"{""groups"": [[0], [1]]}"\n'


def test_json_has_its_version_first_and_nothing_that_is_no_json():
    assert output.json_of({"limit": 1.0}) == '{\n  "version": 3,\n  "limit": 1.0\n}'
    assert output.json_of([{"limit": None}]) == '[\n {\n  "limit": null\n }\n]'
    text = output.json_of([{"limits": (float("nan"), float("inf"))}])
    assert json.loads(text) == [{"limits": [None, None]}]
    assert [output.finite(x) for x in (2, float("inf"), float("nan"))] == [
        2.0,
        None,
        None,
    ]


def _columns(*heads):
    return [
        (head, operator.itemgetter(i))
        for i, head in enumerate((output.names("scheme"), *heads))
    ]


def test_a_table_is_100_columns_wide_whatever_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    output.print_rows([("optimal", "1.5")], _columns("expected\nruntime"))
    assert (
        capsys.readouterr().out
        == "         expected\nscheme    runtime\noptimal       1.5\n"
    )
    output.console().print("word " * 30)
    output.print_rows([("optimal", "word " * 30)], _columns(Column("text")))
    assert max(map(len, capsys.readouterr().out.splitlines())) in range(95, 101)


@pytest.mark.parametrize("rows", [1, 2])
def test_numbers_are_never_cut(capsys, rows):
    """A long name is, and a table with more columns than there is room for is wider."""
    row = (
        "optimal, levels 0,1,2,3,4,5,6,7,8,9",
        *(f"{i}.234e+99" for i in range(9 * rows)),
    )
    output.print_rows([row], _columns(*(f"column\n{i}" for i in range(9 * rows))))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split("…")[0] == "optimal, levels 0,1,2"
    assert line.split("…")[1].split() == [f"{i}.234e+99" for i in range(9 * rows)]


def test_what_is_wrong_is_one_line_in_the_words_of_the_shell():
    for typed, error in {
        "--workers must be >= 1, got 0": ValueError("num_workers must be >= 1, got 0"),
        "--method time knows no --setup-cycles": ValueError(
            'method="time" knows no setup_cycles'
        ),
        "cannot read my/num_workers.csv": ValueError("cannot read my/num_workers.csv"),
        "x.csv: No such file": FileNotFoundError(2, "No such file", "x.csv"),
        "the disk is gone": OSError("the disk is gone"),
        "needs matplotlib": ImportError("needs matplotlib"),
        "many atoms: take --trace-distribution smooth": ValueError(
            "many atoms: take a smooth distribution"
        ),
    }.items():
        with pytest.raises(click.UsageError) as refusal, one_line_errors():
            raise error
        assert refusal.value.format_message() == typed


def test_a_reader_that_has_enough_is_no_error():
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture
def wait_for_words(monkeypatch, capsys):
    """Wait in a hurry, as long as a slow machine needs, until the words are there."""
    for name in ("_QUIET", "_EVERY"):
        monkeypatch.setattr(progress, name, 0.01)

    def wait(words, read=lambda: capsys.readouterr().err):
        return comes_true(lambda: re.search(words, read(), re.MULTILINE), 30.0)

    return wait


def test_lines_tell_how_far_it_is_where_there_is_no_terminal(wait_for_words):
    before, seen = set(threading.enumerate()), []
    for item in with_progress([1, 2, 3, 4], "counting"):
        seen.append(item)
        assert wait_for_words(rf"^counting, {item - 1} of 4, \d+ s$")
    assert seen == [1, 2, 3, 4]
    assert set(threading.enumerate()) == before  # it is over: nobody tells any more


def test_what_is_quick_says_nothing(capsys):
    assert (list(with_progress([1, 2], "counting")), capsys.readouterr()) == (
        [1, 2],
        ("", ""),
    )


LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]

COMMANDS = {
    "--out": ("sweep", *LAW, "--workers", "4", "--coordinates", "60", "--out", "csv"),
    "--out of solve": (
        "solve",
        *LAW,
        "--workers",
        "4",
        "--coordinates",
        "60",
        "--out",
        "json",
    ),
    "--out of fit": ("fit", "-", "--out", "json"),
    "--out of advise": ("advise", "-", "--out", "json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_before_the_work_what_it_could_not_write(
    refusal, tmp_path, monkeypatch, name
):
    for work in (
        "fit.found_in",
        "sweep.write_sweep",
        "solve.problem_of",
        "advise._read",
    ):
        monkeypatch.setattr(
            f"bcgc_jax.cli.{work}", raising(AssertionError("the work has begun"))
        )
    *arguments, option, suffix = COMMANDS[name]
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / "file").touch()
    for place in (f"folder.{suffix}", f"missing/x.{suffix}", f"file/x.{suffix}"):
        err = refusal(*arguments, option, str(tmp_path / place))
        assert (
            f"{option}: cannot write {tmp_path / place}: name a file in a folder that "
            "is there"
        ) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file",
        f"folder.{suffix}",
    ]


def test_a_check_leaves_files_and_folders_as_they_are(tmp_path):
    path = tmp_path / "there.png"
    path.write_text("kept")
    check_file("--figure", path, (".png",))
    check_file("--figure", tmp_path / "new.png")
    check_file("--figure", "/dev/null")
    assert ([p.name for p in tmp_path.iterdir()], path.read_text()) == (
        ["there.png"],
        "kept",
    )
    check_folder("--out", tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    with pytest.raises(ValueError, match=r"cannot write to .*: File exists"):
        check_folder("--out", path)


def test_what_may_not_be_written_is_refused(tmp_path, monkeypatch):
    # As root everything may be written to.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(
        ValueError, match=r"--figure: cannot write .*fit.png: permission denied"
    ):
        check_file("--figure", tmp_path / "fit.png")
    with pytest.raises(
        ValueError, match=r"--out: cannot write to .*: permission denied"
    ):
        check_folder("--out", tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("no font,\nat all")]
)
def test_the_answer_is_printed_whatever_becomes_of_the_plan(
    command, tmp_path, monkeypatch, error
):
    answer = SimpleNamespace(
        best=SimpleNamespace(problem=None),
        fits=[],
        plans=[SimpleNamespace(distribution="gamma")],
    )
    monkeypatch.setattr("bcgc_jax.cli.fit.found_in", lambda *_: answer)
    monkeypatch.setattr("bcgc_jax.cli.fit.print_answer", lambda *_: print("the table"))
    monkeypatch.setattr("bcgc_jax.cli.fit.save_plan", raising(error))
    plan = str(tmp_path / "plan.json")
    status, out, err = command("fit", "-", "--out", plan)
    assert (status, out, err.count("\n")) == (2, "the table\n", 1)
    assert err.startswith(f"bcgc: cannot write {plan}: ")
    assert ("No space left" in err) or ("RuntimeError: no font, at all" in err)


def test_what_cannot_be_written_is_no_traceback(monkeypatch):
    """A script prints and ends as a command does; without the package, for speed."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONPATH", str(Path(bcgc_jax.cli.__file__).parent))

    def run(script, stdout):
        script = f"from exit import *\ntake_any_sign()\n{script}\nfinish('bcgc', 0)"
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=stdout, stderr=-1, text=True
        )
        return done.returncode, done.stdout, done.stderr

    assert run("print('above ≤ 3')", -1) == (0, "above ? 3\n", "")
    with open("/dev/full", "w") as full:
        message = "bcgc: cannot write the answer: No space left on device\n"
        assert run("print('x')", full) == (2, None, message)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        assert run("print('x')", closed) == (0, None, "")
