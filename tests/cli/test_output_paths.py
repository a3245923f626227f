"""Where answers go is refused before the work, and what was computed is printed if it fails after all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import bcgc_jax.cli
from bcgc_jax.cli.output_paths import check_file
from experiments.report import check_folder
from tests.raising import raising

LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]


@pytest.fixture
def idle(monkeypatch):
    """No command may compute."""
    for work in ("fit._answer", "train._train_all", "sweep.write_sweep", "solve._problem"):
        monkeypatch.setattr(f"bcgc_jax.cli.{work}", raising(AssertionError("the work has begun")))


COMMANDS = {
    "--curves": ("train", *LAW, "--workers", "4", "--curves", "csv"),
    "--out": ("sweep", *LAW, "--workers", "4", "--coordinates", "60", "--out", "csv"),
    "--out of solve": ("solve", *LAW, "--workers", "4", "--coordinates", "60", "--out", "json"),
    "--out of fit": ("fit", "-", "--out", "json"),
}


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_before_the_work_what_it_could_not_write(refusal, tmp_path, name):
    *arguments, option, suffix = COMMANDS[name]
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / "file").touch()
    for place in (f"folder.{suffix}", f"missing/x.{suffix}", f"file/x.{suffix}"):
        err = refusal(*arguments, option, str(tmp_path / place))
        assert f"{option}: cannot write {tmp_path / place}: name a file in a folder that is there" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", f"folder.{suffix}"]


def test_a_check_leaves_files_and_folders_as_they_are(tmp_path):
    path = tmp_path / "there.png"
    path.write_text("kept")
    check_file("--figure", path, (".png",))
    check_file("--figure", tmp_path / "new.png")
    check_file("--figure", "/dev/null")
    assert ([p.name for p in tmp_path.iterdir()], path.read_text()) == (["there.png"], "kept")
    check_folder("--out", tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    with pytest.raises(ValueError, match=r"cannot write to .*: File exists"):
        check_folder("--out", path)


def test_what_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # as root everything may be written to
    with pytest.raises(ValueError, match=r"--figure: cannot write .*fit.png: permission denied"):
        check_file("--figure", tmp_path / "fit.png")
    with pytest.raises(ValueError, match=r"--out: cannot write to .*: permission denied"):
        check_folder("--out", tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("no font,\nat all")])
def test_the_answer_is_printed_whatever_becomes_of_plan_and_curves(command, tmp_path, monkeypatch, error):
    found = SimpleNamespace(best=None, fits=[], plans=[{"law": "gamma"}])
    monkeypatch.setattr("bcgc_jax.cli.fit._answer", lambda *_: found)
    monkeypatch.setattr("bcgc_jax.cli.fit._print", lambda *_: print("the table"))
    monkeypatch.setattr("bcgc_jax.cli.fit.save_plan", raising(error))
    plan = str(tmp_path / "plan.json")
    status, out, err = command("fit", "-", "--out", plan)
    assert (status, out, err.count("\n")) == (2, "the table\n", 1)
    assert err.startswith(f"bcgc: cannot write {plan}: ")
    assert ("No space left" in err) or ("RuntimeError: no font, at all" in err)
    monkeypatch.setattr("bcgc_jax.cli.train._train_all", lambda *_: [])
    monkeypatch.setattr("bcgc_jax.cli.train._iterations", raising(error))
    asked = [*LAW, "--workers", "4", "--method", "uncoded", "--format", "json"]
    status, out, err = command("train", *asked, "--curves", str(tmp_path / "x.csv"))
    assert (status, err.count("\n"), json.loads(out)["runs"]) == (2, 1, [])
    assert err.startswith("bcgc: cannot write ")


@pytest.fixture
def run(monkeypatch):
    """What becomes of a script that prints and ends as a command does; without the package, for speed."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PYTHONPATH", str(Path(bcgc_jax.cli.__file__).parent))

    def start(script, stdout):
        script = f"from exit import *\ntake_any_sign()\n{script}\nfinish('bcgc', 0)"
        done = subprocess.run([sys.executable, "-c", script], stdout=stdout, stderr=-1, text=True)
        return done.returncode, done.stdout, done.stderr

    return start


def test_what_cannot_be_written_is_no_traceback(run):
    assert run("print('above ≤ 3')", -1) == (0, "above ? 3\n", "")
    with open("/dev/full", "w") as full:
        told = "bcgc: cannot write the answer: No space left on device\n"
        assert run("print('x')", full) == (2, None, told)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        assert run("print('x')", closed) == (0, None, "")
