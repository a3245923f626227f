"""README and docs run as they stand, in their order, in a clone and nothing else."""

import contextlib
import importlib
import io
import operator
import re
import runpy
import shlex
import shutil
import subprocess
from inspect import ismodule
from pathlib import Path

import numpy as np
import pytest

import bcgc_jax as bcgc
from experiments import drawing, readme

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Environments are made by .ci/run, the whole suite is this one.
_ELSEWHERE = ("python3 -m venv", ".venv/bin/python -m pytest")
# Studies, a minute's training and worker processes have tests of their own.
_OWN_TESTS = ("python -m experiments.",)


def _blocks(path: Path, languages: str = "python|sh") -> list[tuple[str, str]]:
    """Language and text of each block of code in one of these `languages`."""
    fenced = rf"^```({languages})\n(.*?)^```$"
    return re.findall(fenced, path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def _answers(path: Path, language: str) -> dict[str, str]:
    """Blocks of code, each with the block of its answer, which is right behind it."""
    answered = rf"^```{language}\n((?:(?!```).*\n)*)```\n\n```\n((?:(?!```).*\n)*)```$"
    return dict(re.findall(answered, path.read_text("utf-8"), re.MULTILINE))


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that has what a clone has, but may be written to."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    """Links lead to a file, or to a heading of it; pictures are there."""
    text = path.read_text("utf-8")
    for picture in re.findall(r'src="([^"]*)"', text):
        assert (path.parent / picture).exists(), picture
    for file, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        target = path.parent / file if file else path
        assert "://" in file or target.exists(), file
        assert not heading or "://" in file or heading in _headings(target), (
            file,
            heading,
        )


def test_maintainers_walk_through_files_and_functions_that_are_there():
    """Names are `folder/file` or `folder/file.name`, within the package."""
    text = (ROOT / "docs" / "maintaining.md").read_text("utf-8")
    walks = text.partition("## Four walks")[2].partition("\n## ")[0]
    names = re.findall(r"\b(?:[a-z_]+/)*[a-z_]+(?:\.\w+)+|\b[a-z_]+/[a-z_]+", walks)
    assert len(names) > 50
    for name in names:
        file, _, inside = name.partition(".")
        module = importlib.import_module(f"bcgc_jax.{file.replace('/', '.')}")
        assert not inside or operator.attrgetter(inside)(module), name


def _headings(path: Path) -> set[str]:
    """Headings by GitHub's names: lower case, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
    }


def test_the_reference_has_each_public_name_once():
    """Packages by the names of imports; the names of `bcgc_jax` on its own page."""
    site = runpy.run_path(str(ROOT / "docs" / "site" / "build.py"))
    expected = {"bcgc_jax": {*bcgc.__all__}}
    root = Path(bcgc.__file__).parent
    for path in (*root.glob("*/**/__init__.py"), root / "sweeps.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        package = importlib.import_module(f"bcgc_jax.{name.removesuffix('.__init__')}")
        imported = re.findall(r" as (\w+)$", path.read_text("utf-8"), re.MULTILINE)
        if names := {*getattr(package, "__all__", imported)} - {*bcgc.__all__}:
            expected[package.__name__] = names
    assert set(site["PACKAGES"]) == expected.keys()
    for title, names in expected.items():
        objects = re.findall(r"^::: .*\.(\w+)$", site["reference"](title), re.MULTILINE)
        packages = {name for name in names if ismodule(getattr(bcgc, name, None))}
        assert sorted(objects) == sorted(names - packages)


def test_the_drawing_of_the_readme_is_what_its_script_makes():
    assert drawing.FILE.read_text("utf-8") == drawing.drawing()


def test_the_readme_shows_what_its_command_prints(command):
    """Whole lines from the first to the last; "…" is for lines that are left out."""
    ((typed, excerpt),) = _answers(ROOT / "README.md", "sh").items()
    status, printed, _ = command(*shlex.split(typed)[1:])
    assert status == 0
    lines = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
    parts = r"\n(?:.*\n)+".join(map(re.escape, excerpt.split("\n…\n")))
    assert re.fullmatch(parts, lines), "`python -m experiments.readme` prints it anew"
    assert readme.excerpt(printed) == excerpt


def test_the_readme_is_printed_anew_with_the_answers_of_today(monkeypatch):
    page = (
        "```python\nprint(6)\n```\n\n```\n5\n```\n\n```sh\nbcgc advise "
        "LOG\n```\n\n```\nold\n```\n"
    )
    advice = "a step \nlost\n\nwhy\n\nwhat\n\nDo this\n"
    ran: list[list[str]] = []

    def run(arguments):
        ran.append(arguments)
        return advice

    monkeypatch.setattr(readme, "_run", run)
    anew = readme.printed_anew(page)
    assert ran == [["-c", "print(6)\n"], ["-m", "bcgc_jax", "advise", "LOG"]]
    assert anew == page.replace("5\n", advice).replace(
        "old", "a step\nlost\n\nwhy\n…\nDo this"
    )


_TIMERS = """
 [2026-07-10 05:46:31] iteration  20/  50 | elapsed time per iteration (ms): 744.0 |
times across ranks (ms):
  forward-backward ...............................:
     rank  0: 100.00
     rank  1: 100.00
  forward-compute:
     rank  0: 12.50
     rank  1: 22.25
  backward-compute:
     rank  0: 20.00
     rank  1: 30.00
  optimizer:
     rank  0: 5.00
     rank  1: 5.00
 iteration       21/      50 | elapsed time per iteration (ms): 744.0 |
times across ranks (ms):
  forward-compute:
     rank  0: 1.00
     rank  1: 2.00
"""


@pytest.mark.skipif(shutil.which("awk") is None, reason="there is no awk")
def test_timers_of_megatron_become_a_log(tmp_path, monkeypatch):
    """The lines of the tutorial, on what Megatron prints."""
    monkeypatch.chdir(tmp_path)
    (script,) = [
        text
        for _, text in _blocks(ROOT / "docs" / "tutorial.md", "text")
        if text.startswith("awk")
    ]
    Path("train.log").write_text(_TIMERS)
    subprocess.run(["sh", "-c", script], check=True)
    trace = bcgc.traces.load_trace("steps.csv")
    assert trace.step_names.tolist() == ["20", "21"]
    np.testing.assert_allclose(
        trace.rows(), [[0.0325, 0.05225], [0.001, 0.002]], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if _blocks(path)], ids=lambda path: path.stem
)
def test_a_document_runs_from_top_to_bottom(path, clone, command):
    names = {"__name__": "a_document"}
    answers = _answers(path, "python")
    for language, block in _blocks(path):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block, str(path), "exec"), names)
            assert printed.getvalue() == answers.get(block, printed.getvalue())
        for typed in _commands(block) if language == "sh" else ():
            # What several documents show is run for the first of them.
            first = next(
                document for document in DOCUMENTS if typed in _commands_of(document)
            )
            if first == path and not typed.startswith((*_ELSEWHERE, *_OWN_TESTS)):
                _run(typed, command)


def _run(typed: str, command) -> None:
    if typed.startswith("bcgc "):
        status, _, err = command(*shlex.split(typed, comments=True)[1:])
    else:
        done = subprocess.run(typed, shell=True, capture_output=True, text=True)
        status, err = done.returncode, done.stderr
    assert status == 0, f"{typed}\n{err}"


def _commands(block: str) -> list[str]:
    """Join commands over several lines in one."""
    return [
        " ".join(line.split())
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def _commands_of(path: Path) -> list[str]:
    return [typed for _, block in _blocks(path, "sh") for typed in _commands(block)]
