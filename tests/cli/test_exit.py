"""Ctrl-C: heard whatever goes on, one line, no traceback and no crash."""

import os
import signal
import threading
from pathlib import Path

import click
import jax
import pytest

import bcgc_jax.cli
from bcgc_jax.cli import exit as command_exit
from tests.raising import raising
from tests.scripts import python
from tests.signals import ctrl_c

ROOT = Path(bcgc_jax.__file__).parents[1]
LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]
SWEEP = ["sweep", *LAW, "--workers", "4", "--coordinates", "60", "--out"]


@pytest.fixture(autouse=True)
def heard():
    with ctrl_c():
        yield


class Left(Exception):
    """In place of the end of this process."""


@pytest.fixture
def left(monkeypatch):
    """Statuses that the process would have ended with."""
    statuses: list[int] = []

    def leave(status):
        statuses.append(status)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    return statuses


def test_ctrl_c_is_heard_while_a_thread_works():
    over = threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        over.wait()

    with pytest.raises(KeyboardInterrupt):
        command_exit.interruptible(work)
    over.set()


def test_work_in_a_thread_has_the_callers_precision_and_errors():
    for x64 in (True, False):
        with jax.enable_x64(x64):
            assert command_exit.interruptible(lambda: jax.numpy.ones(()).dtype) == (
                "float64" if x64 else "float32"
            )
    with pytest.raises(ValueError, match="no such number"):
        command_exit.interruptible(raising(ValueError("no such number")))


@pytest.mark.parametrize(
    ("work", "parts", "hint"),
    [
        ("sweep.write_sweep", True, ": what is solved is kept; go on with --resume"),
        ("sweep.write_sweep", False, ""),
        ("solve._solve_all", False, ""),
    ],
)
def test_a_command_says_so_and_leaves_at_once(
    command, tmp_path, monkeypatch, capsys, left, work, parts, hint
):
    def interrupt(*_, **__):
        if parts:
            (tmp_path / "sweep.csv.parts").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bcgc_jax.cli.{work}", interrupt)
    with pytest.raises(Left):
        command(*([*SWEEP, str(tmp_path / "sweep.csv")] if "sweep" in work else ["solve", *SWEEP[1:-1]]))
    assert (capsys.readouterr().err.lstrip(), left) == (f"bcgc: interrupted{hint}\n", [130])


@pytest.mark.parametrize("given", [SWEEP[:-1], ["solve", *LAW]], ids=["the command's", "a law's"])
def test_the_imports_may_be_interrupted(given, tmp_path):
    (tmp_path / "jax.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = python("-m", "bcgc_jax", *given, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr.lstrip()) == (130, "", "bcgc: interrupted\n")


@pytest.mark.parametrize(
    ("where", "error"), [("commands.cli.main", click.Abort()), ("_run", KeyboardInterrupt())]
)
def test_an_interruption_of_the_options_is_no_traceback_either(monkeypatch, capsys, left, where, error):
    monkeypatch.setattr(f"bcgc_jax.cli.{where}", raising(error))
    with pytest.raises(Left):
        bcgc_jax.cli.main()
    assert (left, capsys.readouterr().err) == ([130], "bcgc: interrupted\n")
