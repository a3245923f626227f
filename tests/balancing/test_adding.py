"""What a newcomer touches to add a scheme, a remedy or a law, in a copy."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bcgc_jax
from bcgc_jax.balancing.scheme import Resources
from bcgc_jax.balancing.scheme_names import ADVISED, possible
from tests.cli.steps import written

_TOY = '''
"""Every step ends with the mean worker: nothing can do that."""

from bcgc_jax.balancing.remedies import Unplanned
from bcgc_jax.balancing.steps import Outcome


class Toy(Unplanned):
    name = "toy"
    advice = "wish"
    advisable = True

    def needs(self, choice):
        return "a fairy"

    def outcome(self, steps):
        return Outcome(steps.times().mean(axis=1) / 10)
'''
_REMEDY = '''
"""The worker that was slowest on average computes no more: its data are lost."""

import dataclasses

import numpy as np

from bcgc_jax.balancing.scheme import Scheme
from bcgc_jax.balancing.steps import LogRule
from bcgc_jax.balancing.steps import Outcome


class Sacked(Scheme):
    name = "slowest sacked"

    def needs(self, choice):
        return f"all but worker {choice[0]:.0f}"

    def plan_on(self, steps, which):
        return WithoutOne(int(steps.times()[which].mean(axis=0).argmax()))


@dataclasses.dataclass(frozen=True)
class WithoutOne(LogRule):
    worker: int
    exact_gradient = False

    def replay(self, steps, which=None):
        times = steps.times()[slice(None) if which is None else which]
        used = np.ones((*times.shape, 1), bool)
        used[:, self.worker] = False
        seconds = np.delete(times, self.worker, axis=1).max(axis=1)
        return Outcome(seconds, used, choice=(float(self.worker),))
'''
_METHOD = '''
"""Half of the coordinates uncoded, half with a worker to spare."""

import jax.numpy as jnp

from bcgc_jax._pytree import pytree_dataclass
from bcgc_jax.solution import assess
from bcgc_jax.solvers.method import Method


@pytree_dataclass
class Halves(Method):
    name = "halves"

    def plan(self, problem, key):
        level = jnp.arange(problem.max_workers)
        return assess(problem, jnp.where(level < 2, problem.total / 2, 0))
'''
_LAW = '''

@pytree_dataclass
class Rayleigh(_Shifted):
    """P(T > t) = exp(-(t - shift)²/(2 scale²))."""

    scale: ArrayLike
    shift: ArrayLike = 0.0

    conditions = (("scale", "> 0"), ("shift", ">= 0"))

    def _hazard(self, excess):
        return (excess / self.scale) ** 2 / 2

    def _inverse_hazard(self, a):
        return self.scale * jnp.sqrt(2 * a)

    def mean(self):
        return self.shift + self.scale * np.sqrt(np.pi / 2)
'''


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of the package."""
    shutil.copytree(Path(bcgc_jax.__file__).parent, tmp_path / "bcgc_jax")
    return tmp_path


def added(file: Path, line: str, after: str) -> None:
    """Write a line after another one, which is there once."""
    text = file.read_text("utf-8")
    assert text.count(after) == 1
    file.write_text(text.replace(after, f"{after}{line}"), "utf-8")


def bcgc(folder: Path, *typed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bcgc_jax", *typed],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    return done.stdout


def add_scheme(folder: Path, text: str, where: str) -> str:
    """Add a scheme, a file and a line; a log is written too, and its path returned."""
    schemes = folder / "bcgc_jax" / "balancing"
    (schemes / f"{where.partition('.')[0]}.py").write_text(text, "utf-8")
    names = schemes / "scheme_names.py"
    added(names, f'    "{where}",\n', after='    "remedies.Drop",\n')
    rng = np.random.default_rng(0)
    return written(folder / "log.csv", rng.gamma(2.0, 1.0, (24, 4)) + 0.1)


@pytest.mark.slow
def test_a_scheme_is_one_file_and_one_line(copied):
    log = add_scheme(copied, _TOY, "toy.Toy")
    said = bcgc(copied, "advise", log)
    assert "a fairy" in said
    assert "Do this: wish. It saves" in said
    assert "\ntoy,0.9" in bcgc(copied, "advise", log, "--format", "csv")
    assert bcgc(copied, "--help").startswith("Usage: bcgc")


@pytest.mark.slow
def test_a_scheme_with_a_search_is_one_file_and_one_line(copied):
    (copied / "bcgc_jax" / "solvers" / "halves.py").write_text(_METHOD, "utf-8")
    names = copied / "bcgc_jax" / "balancing" / "scheme_names.py"
    line = '    "halves": About(solver="halves.Halves"),\n'
    added(names, line, after="ABOUT: Mapping[str, About] = {\n")
    assert "halves, optimal" in bcgc(copied, "solve", "--help")
    law = (
        "--cycle-time",
        "exponential:rate=1",
        "--workers",
        "4",
        "--coordinates",
        "400",
    )
    options = ("--method", "halves", "--format", "json")
    solution = json.loads(bcgc(copied, "solve", *law, *options))["solutions"][0]
    assert solution["partition"] == [200, 200, 0, 0]
    log = written(
        copied / "log.csv", np.random.default_rng(0).gamma(2.0, 1.0, (24, 4)) + 0.1
    )
    rows = json.loads(bcgc(copied, "advise", log, *options))["rows"]
    assert [row["stored_subsets"] for row in rows if row["remedy"] == "halves"] == [2]


@pytest.mark.slow
def test_a_remedy_that_is_planned_on_steps_is_one_file_and_one_line(copied):
    log = add_scheme(copied, _REMEDY, "sacked.Sacked")
    (row,) = (
        row
        for row in json.loads(bcgc(copied, "advise", log, "--format", "json"))["rows"]
        if row["remedy"] == "slowest sacked"
    )
    times = np.loadtxt(log, delimiter=",", skiprows=1)[:, 2].reshape(24, 4)
    # Each half goes by the other one.
    halves = times[:12], times[12:]
    slowest = [half.mean(axis=0).argmax() for half in reversed(halves)]
    without = map(functools.partial(np.delete, axis=1), halves, slowest)
    seconds = np.mean([half.max(axis=1) for half in without])
    saved = 1 - seconds / times.max(axis=1).mean() / 0.75
    assert row["saved"][0] == pytest.approx(saved, rel=1e-9)
    assert row["lost"] == 0.25


@pytest.mark.slow
def test_a_distribution_is_a_class_and_four_names(copied):
    package = copied / "bcgc_jax"
    families = package / "distributions" / "families.py"
    families.write_text(families.read_text("utf-8") + _LAW, "utf-8")
    line = "from bcgc_jax.distributions{}import {} as {}\n"
    for file, module in (
        ("distributions/__init__.py", ".families "),
        ("__init__.pyi", " "),
    ):
        pareto, rayleigh = (
            line.format(module, law, law) for law in ("Pareto", "Rayleigh")
        )
        added(package / file, rayleigh, after=pareto)
    weibull = '    "weibull": {"scale": None, "shape": None, "shift": 0.0},\n'
    row = '    "rayleigh": {"scale": None, "shift": 0.0},\n'
    added(package / "cli" / "arguments.py", row, after=weibull)
    added(package / "cli" / "arguments.py", '"rayleigh", ', after="_NOT_FITTED = (")
    problem = (
        "--workers",
        "4",
        "--coordinates",
        "400",
        "--method",
        "uncoded",
        "--format",
        "json",
    )
    # It is a Weibull distribution.
    laws = ("rayleigh:scale=1,shift=1", f"weibull:scale={2**0.5!r},shape=2,shift=1")
    answers = [
        json.loads(bcgc(copied, "solve", "--cycle-time", law, *problem)) for law in laws
    ]
    rayleigh_runtime, weibull_runtime = (
        answer["solutions"][0]["expected_runtime"] for answer in answers
    )
    assert rayleigh_runtime == pytest.approx(weibull_runtime, rel=1e-9)
    assert "rayleigh:scale=,[shift=0]" in bcgc(copied, "solve", "--help")


def test_the_schemes_of_a_log_are_those_that_its_workers_can_use():
    by_name = possible(Resources(4, know_lengths=True))
    together = possible(Resources(4, know_lengths=True, lock_step=True))
    hosts = possible(Resources(6, hosts=(0, 0, 1, 1, 2, 2)))
    schemes = [*by_name.values(), *together.values(), *hosts.values()]
    kinds = {
        f"{type(scheme).__module__}.{type(scheme).__qualname__}" for scheme in schemes
    }
    assert kinds == {f"bcgc_jax.balancing.{where}" for where in ADVISED}
    assert [name for name, scheme in by_name.items() if scheme.advisable] == [
        "dealt by length",
        "dealt, equal numbers",
        *(
            f"sharing:{stored}{lengths}"
            for stored in "23"
            for lengths in ("", ", lengths")
        ),
        *("sharing:all", "sharing:all, lengths"),
        *("shares by speed", "shares anew"),
    ]
    assert [name for name in possible(Resources(4, 2)) if name not in by_name] == []
    assert {scheme.by_length for scheme in possible(Resources(4, 2)).values()} == {
        False
    }
