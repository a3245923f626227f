"""What all commands print, as files: to compare two versions of the package byte by
byte.

`python -m tests.golden FOLDER` writes them; `diff -r` compares two folders.
"""

import contextlib
import io
import sys
from pathlib import Path
from unittest import mock

import numpy as np

from bcgc_jax import cli
from tests.cli.steps import TIMES, written, written_in_parts

DATA = Path("experiments/data")
_LAW = ("--cycle-time", "shifted-exponential:rate=1e-3,shift=50")
_PROBLEM = ("--workers", "6", "--coordinates", "600", *_LAW)
_SCHEMES = (
    "optimal",
    "time",
    "sharing:2",
    "limit:2",
    "backup",
    "drop",
    "cyclic:2",
    "nested:2",
)
_DEADLINE = ("--objective", "completion-probability", "--deadline", "2e5")
FORMATS = ("table", "json", "csv")
COMMANDS = ("advise", "fit", "solve", "sweep")


def questions(folder: Path) -> dict[str, tuple[str, ...]]:
    """Each command line by the name of its file; logs are written into `folder`."""
    rng = np.random.default_rng(0)
    loads = rng.pareto(2.2, (24, 5, 4)) + 0.2
    seconds = 0.1 * loads * rng.gamma(20.0, 0.05, (24, 5, 1))
    parts = written_in_parts(folder / "parts.csv", seconds, load=loads)
    times = written(
        folder / "times.csv", np.tile(TIMES, (3, 1)) + 0.01 * rng.random((18, 4))
    )
    asked: dict[str, tuple[str, ...]] = {
        "help": ("--help",),
        **{f"{name}-help": (name, "--help") for name in COMMANDS},
    }
    logs = {
        "chunks": str(DATA / "chunks.csv"),
        "steps": str(DATA / "steps.csv"),
        "parts": parts,
    }
    methods = [part for name in _SCHEMES for part in ("--method", name)]
    sweep = ("sweep", "--workers", "4:6", *_PROBLEM[2:], *methods[:6])
    for kind in FORMATS:
        format = ("--format", kind)
        for name, log in logs.items():
            asked[f"advise-{name}-{kind}"] = ("advise", log, *format)
        asked[f"advise-cheap-{kind}"] = (
            *("advise", parts, "--stored", "2", "--round-trip", "0.01"),
            *("--chunk-overhead", "0.01", "--method", "cyclic:2", *format),
        )
        asked[f"fit-{kind}"] = ("fit", times, "--coordinates", "600", *format)
        asked[f"solve-{kind}"] = ("solve", *_PROBLEM, *methods, *format)
        asked[f"solve-deadline-{kind}"] = ("solve", *_PROBLEM, *_DEADLINE, *format)
        asked[f"solve-trace-{kind}"] = (
            "solve",
            "--trace",
            times,
            "--coordinates",
            "600",
            *format,
        )
        asked[f"sweep-{kind}"] = (*sweep, *format)
    return asked


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in questions(folder).items():
        out = io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["bcgc", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.suppress(SystemExit),
        ):
            cli.main()
        (folder / f"{name}.txt").write_text(out.getvalue(), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
