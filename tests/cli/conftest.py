"""What the tests of the commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.schema import problems, strict_json
from tests.cli.steps import written


@pytest.fixture
def answer(command: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """What `bcgc ARGS --format json` prints: as the schema says, field by field."""

    def ask(*args: str) -> Any:
        status, out, err = command(*args, "--format", "json")
        assert status == 0, err
        output = strict_json(out)
        assert (
            problems(
                "sweep_summary" if args[0] == "sweep" and "--out" in args else args[0],
                output,
            )
            == []
        )
        return output

    return ask


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Six steps of four workers that differ."""
    return written(tmp_path / "trace.csv")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Screens and speeds of the machine that runs the tests change nothing."""
    monkeypatch.setattr("bcgc_jax.cli.progress._EVERY", 1e6)
    for name in (
        "COLUMNS",
        "FORCE_COLOR",
        "LINES",
        "NO_COLOR",
        "TTY_COMPATIBLE",
        "TTY_INTERACTIVE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refusal(command: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """The one line with which `bcgc ARGS` is refused."""

    def refused(*args: str) -> str:
        status, out, err = command(*args)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("bcgc: ")
        return err

    return refused
