"""What a newcomer touches for a scheme: one file, and one line in `schemes/names.py`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bcgc_jax
from bcgc_jax.schemes.base import Resources
from bcgc_jax.schemes.names import ADVISED, possible
from tests.cli.steps import written

_TOY = '''
"""Every step ends with the mean worker: nothing can do that."""

from bcgc_jax.schemes.unplanned import Unplanned
from bcgc_jax.steps.steps import Outcome


class Toy(Unplanned):
    name = "toy"
    advice = "wish"
    advisable = True

    def needs(self, choice):
        return "a fairy"

    def outcome(self, steps):
        return Outcome(steps.times().mean(axis=1) / 10)
'''
_LAST = '    "inexact.Drop",\n'


@pytest.mark.slow
def test_a_scheme_is_one_file_and_one_line(tmp_path):
    shutil.copytree(Path(bcgc_jax.__file__).parent, tmp_path / "bcgc_jax")
    folder = tmp_path / "bcgc_jax" / "schemes"
    (folder / "toy.py").write_text(_TOY)
    names = (folder / "names.py").read_text("utf-8")
    assert names.count(_LAST) == 1
    (folder / "names.py").write_text(names.replace(_LAST, f'{_LAST}    "toy.Toy",\n'), "utf-8")
    rng = np.random.default_rng(0)
    log = written(tmp_path / "log.csv", rng.gamma(2.0, 1.0, (24, 4)) + 0.1)

    def run(*typed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "bcgc_jax", *typed],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        return done.stdout

    said = run("advise", log)
    assert "a fairy" in said
    assert "Do this: wish. It saves" in said
    assert "\ntoy,0.9" in run("advise", log, "--format", "csv")
    assert run("--help").startswith("Usage: bcgc")


def test_the_schemes_of_a_log_are_those_that_its_workers_can_use():
    every = possible(Resources(4, know_lengths=True))
    kinds = {f"{type(scheme).__module__}.{type(scheme).__qualname__}" for scheme in every.values()}
    assert kinds == {f"bcgc_jax.schemes.{where}" for where in ADVISED}
    assert [name for name, scheme in every.items() if scheme.advisable] == [
        "dealt by length",
        *(f"sharing:{stored}{known}" for stored in "23" for known in ("", ", lengths")),
        *("sharing:all", "sharing:all, lengths"),
        *("shares by speed", "shares anew"),
    ]
    assert [name for name in possible(Resources(4, 2)) if name not in every] == []
    assert {scheme.by_length for scheme in possible(Resources(4, 2)).values()} == {False}
