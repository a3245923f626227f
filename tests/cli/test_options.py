"""Options that are fields: what is typed becomes a question."""

import dataclasses
import sys
from types import SimpleNamespace
from typing import ClassVar

from bcgc_jax.cli.arguments import number
from bcgc_jax.cli.options import Command, argument, option


@dataclasses.dataclass(frozen=True)
class Size:
    """Size"""

    width: int = option(number(1, include=True, whole=True), "How wide.", default=3)
    flat: bool = option(bool, "Without height.")


@dataclasses.dataclass(frozen=True)
class Asked(Size):
    """Names"""

    names: tuple[str, ...] = option(("a", "b"), "Names.", "--name", multiple=True)


@dataclasses.dataclass(frozen=True)
class AskOptions(Asked):
    """What is asked?"""

    after: ClassVar = "Examples: none."
    file: str = argument(str)
    flat: bool = option(bool, "On the floor.")


def test_what_is_typed_is_a_question_and_what_is_inherited_comes_last(monkeypatch, capsys):
    found: list[AskOptions] = []
    answers = SimpleNamespace(answer=found.append)
    monkeypatch.setitem(sys.modules, "bcgc_jax.cli.ask", answers)
    command = Command(AskOptions)
    command.main(["x.csv", "--name", "b", "--name", "a", "--width", "4"], standalone_mode=False)
    assert found == [AskOptions(file="x.csv", width=4, flat=False, names=("b", "a"))]
    assert [param.name for param in command.params] == ["file", "names", "width", "flat"]
    command.main(["--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    heads = [line for line in shown.splitlines() if line.endswith(":")]
    assert heads == ["Names:", "Size:", "Options:"]
    assert ("On the floor." in shown, shown.endswith("Examples: none.\n")) == (True, True)
