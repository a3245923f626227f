"""Options of commands, each declared once: as a field of the dataclass that the command is asked with.

Needs none of JAX, nor do the checks of such a dataclass: help and refusals are there at once.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bcgc_jax.cli.arguments import Number, interrupted_at_once, refuse_without_effect
from bcgc_jax.cli.names import OBJECTIVES

if TYPE_CHECKING:
    from bcgc_jax.solvers.schemes import Scheme

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


def group(options: Decorator | type) -> Any:
    """A field that several options make: those of a decorator, or of a dataclass of such fields."""
    if isinstance(options, type):
        return dataclasses.field(metadata={"options": lambda name: options_of(options, name)})
    return dataclasses.field(metadata={"options": lambda name: options})


def options_of(kind: type, name: str = "question") -> Decorator:
    """The options of all fields of a dataclass; the command is given one of it, as `name`."""
    fields = dataclasses.fields(kind)

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
            with interrupted_at_once():
                module = importlib.import_module(f"bcgc_jax.cli.{name}")
                compilation = importlib.import_module("bcgc_jax.cli.compilation")
            compilation.keep_programs(click.get_current_context().find_root().params["compilation_cache"])
            module.answer(**asked)

        return answer

    return decorate


def _load_schemes(ctx: click.Context, param: click.Parameter, path: str | None) -> "list[Scheme]":
    if path is None:
        return []
    with interrupted_at_once():
        from bcgc_jax.solvers.schemes import load_schemes
    try:
        return load_schemes(path)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


format_option = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="What is printed.",
)
schemes_option = click.option(
    "--schemes",
    type=click.Path(),
    callback=_load_schemes,
    help="Python file with a list SCHEMES of bcgc_jax.Scheme: schemes of your own.",
)


def plan_option(which: str) -> Decorator:
    """The option --out of a command whose plans are solutions."""
    return click.option(
        "--out",
        type=click.Path(),
        metavar="FILE.json",
        help=f"Also write {which}, with its certificate, to a JSON file; in Python "
        "bcgc_jax.Solution.load(FILE.json) reads it.",
    )


def methods_option(text: str) -> Any:
    return option(str, text, typed="--method", multiple=True)


def round_trip_option() -> Any:
    text = "What a question of the master takes, in the unit of runtimes: of sharing:CHUNKS."
    return option(Number(include=True), text, default=0.0)


def objective_option() -> Any:
    text = "What is to be best; the second is the method `deadline`, and needs --deadline."
    return option(OBJECTIVES, text, default=OBJECTIVES[0])


NO_DEADLINE = (
    "the most probable plan, --method deadline, --objective completion-probability or --min-completion, "
    "needs a --deadline"
)


def check_law(cycle_time: Any, trace: Any, start_up: Any, several: bool = False) -> None:
    """UsageError for no law of the cycle time and for two, and for a law of start-ups of unlike workers."""
    if bool(cycle_time) == (trace is not None):
        raise click.UsageError("give the law of the cycle time: either --cycle-time or --trace")
    unlike = "--keep-workers" if trace is not None and trace.keep_workers else "several --cycle-time"
    if start_up and (several or unlike == "--keep-workers"):
        raise click.UsageError(
            "--start-up may be a law only where all workers have one law of the cycle time, not with "
            f"{unlike}: give a number"
        )


def check_methods(methods: Sequence[str], schemes: "Sequence[Scheme]") -> None:
    """UsageError for options that none of the methods, if some are named, has a use for."""
    if methods and not {scheme.name for scheme in schemes} & {*methods}:
        refuse_without_effect("unless a --method is one of these", "schemes")
    if not any(name.partition(":")[0] == "sharing" for name in methods):
        refuse_without_effect("without a --method sharing:CHUNKS", "round_trip")
