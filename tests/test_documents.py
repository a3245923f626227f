"""README and docs: what stands there runs, in the order in which it stands, in a clone and nothing else."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Environments are made by .ci/run, the whole suite is this one.
_ELSEWHERE = ("python3 -m venv", ".venv/bin/python -m pytest")
# Studies, a minute's training and worker processes have tests of their own; a cluster of several machines is
# not here.
_OWN_TESTS = ("bcgc train --workers 20", "bcgc train --engine ray", "ray start", "python -m experiments.")


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.stem


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that has what a clone has, but may be written to."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if _blocks(path, "python")], ids=_name)
def test_the_python_of_a_document_runs(path, clone):
    names = {"__name__": "a_document"}
    for block in _blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if _blocks(path, "sh")], ids=_name)
def test_the_commands_of_a_document_run(path, clone, command):
    # What the text supposes that its reader has: files of a recorder, of as many times as the sample trace.
    for worker in range(8):
        rows = (f"{step},{worker},{0.1 + 0.01 * (step % (7 + worker))}\n" for step in range(120))
        (clone / f"worker-{worker}.csv").write_text("".join(rows))
    commands = _commands(path)
    assert commands
    for typed in commands:
        # What needs no file of its own is run for the first document that has it.
        first = next(other for other in DOCUMENTS if typed in _commands(other))
        if typed.startswith((*_ELSEWHERE, *_OWN_TESTS)) or first != path:
            continue
        if typed.startswith("bcgc "):
            status, _, err = command(*shlex.split(typed, comments=True)[1:])
        else:
            done = subprocess.run(typed, shell=True, capture_output=True, text=True)
            status, err = done.returncode, done.stderr
        assert status == 0, f"{typed}\n{err}"


def _commands(path: Path) -> list[str]:
    """Those over several lines in one."""
    blocks = "".join(_blocks(path, "sh")).replace("\\\n", " ")
    return [" ".join(line.split()) for line in blocks.splitlines() if line.strip()]
