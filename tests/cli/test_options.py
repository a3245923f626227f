"""Options that are fields: what is typed becomes a question."""

import dataclasses
import sys
from types import SimpleNamespace

from bcgc_jax.cli.arguments import Number
from bcgc_jax.cli.options import Command, argument, group, option


@dataclasses.dataclass(frozen=True)
class Size:
    """Size"""

    width: int = option(Number(1, include=True, whole=True), "How wide.", default=3)
    flat: bool = option(bool, "Without height.")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Names"""

    names: tuple[str, ...] = option(("a", "b"), "Names.", typed="--name", multiple=True)


@dataclasses.dataclass(frozen=True)
class Question(Asked):
    """What is asked?"""

    file: str = argument(str)
    size: Size = group(Size)


def test_what_is_typed_is_a_question_and_what_is_inherited_comes_last(monkeypatch, capsys):
    found: list[Question] = []
    answers = SimpleNamespace(answer=found.append)
    monkeypatch.setitem(sys.modules, "bcgc_jax.cli.ask", answers)
    command = Command("ask", Question)
    command.main(["x.csv", "--name", "b", "--name", "a", "--width", "4"], standalone_mode=False)
    assert found == [Question(file="x.csv", size=Size(width=4, flat=False), names=("b", "a"))]
    assert [param.name for param in command.params] == ["file", "width", "flat", "names"]
    command.main(["--help"], standalone_mode=False)
    heads = [line for line in capsys.readouterr().out.splitlines() if line.endswith(":")]
    assert heads == ["Size:", "Names:", "Options:"]
