"""The tables and the help texts of all commands are those of their snapshots.

The sentences of an answer are compared here, and nowhere else. Other tests compare
numbers. `pytest tests/cli/test_answers.py --snapshot-update` accepts new answers, and
`git diff` shows what has changed.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from syrupy.assertion import SnapshotAssertion

from tests.cli.steps import TIMES, written, written_in_parts

DATA = "experiments/data"
LAW = "--cycle-time shifted-exponential:rate=1e-3,shift=50"
PROBLEM = f"--workers 6 --coordinates 600 {LAW}"
METHODS = "--method optimal --method time --method sharing:2 --method limit:2"
MORE = "--method backup --method drop --method cyclic:2 --method nested:2"

SOLVED_IN = re.compile(r"(partition|no code|[▁-█·]) +[\d.]+$", re.MULTILINE)
"""The last column of `solve`, which no second run repeats."""

QUESTIONS = {
    "help": "--help",
    **{
        f"{name} help": f"{name} --help" for name in ("advise", "fit", "solve", "sweep")
    },
    "advise chunks": f"advise {DATA}/chunks.csv",
    "advise steps": f"advise {DATA}/steps.csv",
    "advise loads": "advise parts.csv",
    "advise overheads": (
        "advise parts.csv --stored 2 --round-trip 0.01 --chunk-overhead 0.01 "
        "--method cyclic:2"
    ),
    "fit": "fit times.csv --coordinates 600",
    "solve": f"solve {PROBLEM} {METHODS} {MORE}",
    "solve deadline": (
        f"solve {PROBLEM} --objective completion-probability --deadline 2e5"
    ),
    "solve trace": "solve --trace times.csv --coordinates 600",
    "sweep": f"sweep --workers 4:6 --coordinates 600 {LAW} {METHODS} --method drop",
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of steps, whole and in parts, and the recorded ones beside them."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "experiments").symlink_to(Path("experiments").absolute())
    rng = np.random.default_rng(0)
    loads = rng.pareto(2.2, (24, 5, 4)) + 0.2
    seconds = 0.1 * loads * rng.gamma(20.0, 0.05, (24, 5, 1))
    written_in_parts(folder / "parts.csv", seconds, load=loads)
    noise = 0.01 * rng.random((18, 4))
    written(folder / "times.csv", np.tile(TIMES, (3, 1)) + noise)
    return folder


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_answer_is_that_of_its_snapshot(
    name: str,
    logs: Path,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
) -> None:
    monkeypatch.chdir(logs)
    status, out, err = command(*QUESTIONS[name].split())
    assert (status, err) == (0, "")
    assert SOLVED_IN.sub(r"\1 (seconds)", out) == snapshot
