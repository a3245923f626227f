"""Options that are fields: what is typed becomes a question."""

import dataclasses

import click

from bcgc_jax.cli.arguments import Number
from bcgc_jax.cli.options import argument, group, option, options_of


@dataclasses.dataclass(frozen=True)
class Size:
    width: int = option(Number(1, include=True, whole=True), "How wide.", default=3)
    flat: bool = option(bool, "Without height.")


@dataclasses.dataclass(frozen=True)
class Asked:
    names: tuple[str, ...] = option(("a", "b"), "Names.", typed="--name", multiple=True)


@dataclasses.dataclass(frozen=True)
class Question(Asked):
    file: str = argument(str)
    size: Size = group(Size)


@click.command("ask")
@options_of(Question)
def ask(question):
    click.get_current_context().obj.append(question)


def test_what_is_typed_is_a_question_and_what_is_inherited_comes_last():
    typed = ["x.csv", "--name", "b", "--name", "a", "--width", "4"]
    found: list[Question] = []
    ask.main(typed, standalone_mode=False, obj=found)
    assert found == [Question(file="x.csv", size=Size(width=4, flat=False), names=("b", "a"))]
    assert [param.name for param in ask.params] == ["file", "width", "flat", "names"]
