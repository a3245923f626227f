"""Options that are fields: what is typed becomes a question, or is refused."""

import dataclasses

import click
import pytest

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

    def __post_init__(self) -> None:
        if self.size.flat and self.size.width > 5:
            raise ValueError("too wide to be flat")


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


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["x", "--width", "0"], "Invalid value for '--width': must be a whole number at least 1, got '0'"),
        (["x", "--name", "c"], "Invalid value for '--name': 'c' is not one of 'a', 'b'."),
        (["x", "--width", "6", "--flat"], "too wide to be flat"),
        ([], "Missing argument 'FILE'."),
    ],
)
def test_what_cannot_be_meant_is_refused(typed, words):
    with pytest.raises(click.UsageError) as refused:
        ask.main(typed, standalone_mode=False)
    assert refused.value.format_message() == words
