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


@pytest.fixture
def at_once(monkeypatch):
    """The status of a process that ends at once is a thousand more."""

    def leave(status):
        raise SystemExit(1000 + status)

    monkeypatch.setattr(os, "_exit", leave)


def test_ctrl_c_is_heard_while_a_thread_works():
    over = threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        over.wait()

    with pytest.raises(KeyboardInterrupt):
        command_exit.interruptible(work)
    over.set()


def test_work_in_a_thread_has_the_callers_precision_and_errors():
    for x64, dtype in ((True, "float64"), (False, "float32")):
        with jax.enable_x64(x64):
            assert command_exit.interruptible(lambda: jax.numpy.ones(()).dtype) == dtype
    with pytest.raises(ValueError, match="no such number"):
        command_exit.interruptible(raising(ValueError("no such number")))


KEPT = ": what is solved is kept; go on with --resume"


@pytest.mark.parametrize(
    ("work", "hint"),
    [
        ("sweep.write_sweep", KEPT),
        ("sweep.write_sweep", ""),
        ("solve_schemes._solve_all", ""),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_a_command_says_so_and_leaves(command, tmp_path, monkeypatch, work, hint):
    if hint:
        (tmp_path / "sweep.csv").touch()
    monkeypatch.setattr(f"bcgc_jax.cli.{work}", raising(KeyboardInterrupt()))
    asked = (
        [*SWEEP, str(tmp_path / "sweep.csv")]
        if "sweep" in work
        else ["solve", *SWEEP[1:-1]]
    )
    status, _, err = command(*asked)
    assert (status, err.lstrip()) == (1130, f"bcgc: interrupted{hint}\n")


@pytest.mark.parametrize(
    "arguments", [SWEEP[:-1], ["solve", *LAW]], ids=["the command's", "a law's"]
)
def test_the_imports_may_be_interrupted(arguments, tmp_path):
    script = "import signal; signal.raise_signal(signal.SIGINT)"
    (tmp_path / "jax.py").write_text(script)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = python("-m", "bcgc_jax", *arguments, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr.lstrip()) == (
        130,
        "",
        "bcgc: interrupted\n",
    )


@pytest.mark.parametrize(
    ("where", "error"),
    [("commands.cli.main", click.Abort()), ("_run", KeyboardInterrupt())],
)
@pytest.mark.usefixtures("at_once")
def test_an_interruption_of_the_options_is_no_traceback_either(
    command, monkeypatch, where, error
):
    monkeypatch.setattr(f"bcgc_jax.cli.{where}", raising(error))
    assert command() == (1130, "", "bcgc: interrupted\n")
