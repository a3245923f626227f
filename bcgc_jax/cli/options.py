"""Options of commands, each declared once: as a field of the dataclass that the command is asked with.

Needs none of JAX, nor do the checks of such a dataclass: help and refusals are there at once.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def option(
    kind: Any, text: str | None = None, *, typed: str | None = None, default: Any = None, **more: Any
) -> Any:
    """A field that is an option of its name, or of the one that is `typed`; `text` is its help.

    `kind` is one of click's types, a tuple of choices, or bool for a flag.
    """

    def named(name: str) -> Decorator:
        given: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
        if isinstance(kind, tuple):
            given["type"] = click.Choice(kind)
        if default is not None:
            given |= {"default": default, "show_default": True}
        return click.option(typed or f"--{name.replace('_', '-')}", name, help=text, **given, **more)

    return dataclasses.field(metadata={"options": named})


def argument(kind: Any) -> Any:
    """A field that is an argument of the command."""
    return dataclasses.field(metadata={"options": lambda name: click.argument(name, type=kind)})


def group(kind: type) -> Any:
    """A field that is a dataclass of such fields."""
    return dataclasses.field(metadata={"options": lambda name: options_of(kind, name)})


def options_of(kind: type, name: str = "question") -> Decorator:
    """The options of all fields of a dataclass, inherited ones last; the command is given one, as `name`."""
    inherited = {field.name for base in kind.__mro__[1:-1] for field in dataclasses.fields(base)}
    fields = sorted(dataclasses.fields(kind), key=lambda field: field.name in inherited)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def asked(**given: Any) -> None:
            own = {field.name: given.pop(field.name) for field in fields}
            try:
                question = kind(**own)
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            command(**{name: question}, **given)

        for field in reversed(fields):
            asked = field.metadata["options"](field.name)(asked)
        return asked

    return decorate


def answered_by(name: str) -> Decorator:
    """What a command is asked goes to the function `answer` of a file beside this one.

    It is imported now, and JAX with it: not for help, nor to refuse what was typed.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def answer(**asked: Any) -> None:
            importlib.import_module("bcgc_jax.cli.compilation").keep_programs()
            importlib.import_module(f"bcgc_jax.cli.{name}").answer(**asked)

        return answer

    return decorate


def format_option() -> Any:
    return option(("table", "json", "csv"), "What is printed.", typed="--format", default="table")


def plan_option(which: str) -> Any:
    """The option --out of a command whose plans are solutions."""
    text = f"Also write {which}, with its certificate, to a JSON file; in Python "
    return option(click.Path(), f"{text}bcgc_jax.Solution.load(FILE.json) reads it.", metavar="FILE.json")
