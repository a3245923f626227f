"""Options of commands, each declared once: as a field of the dataclass of a command's
question.

JAX is imported when a command is answered: not for help, nor to refuse what was typed.
Errors are one line, in the words of the options.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bcgc_jax._removed import COMMANDS


def option(
    kind: Any,
    text: str | None = None,
    typed: str | None = None,
    *,
    default: Any = None,
    **settings: Any,
) -> Any:
    """A field that is an option of its name, or of the one that is `typed`; `text` is
    its help.

    `kind` is one of click's types, bool for a flag, or a tuple of choices, the first of
    them by default.
    """
    if kind is bool:
        settings["is_flag"] = True
    elif isinstance(kind, tuple):
        settings |= {"type": click.Choice(kind), "metavar": "NAME"}
        text = f"{text}: {', '.join(kind[:-1])} or {kind[-1]}."
        default = None
        if "multiple" not in settings:
            default = kind[0]
    else:
        settings["type"] = kind
    if default is not None:
        settings |= {"default": default, "show_default": True}

    def parameter(name: str) -> click.Parameter:
        return click.Option(
            [typed or f"--{name.replace('_', '-')}", name], help=text, **settings
        )

    return dataclasses.field(metadata={"parameter": parameter})


def argument(kind: Any, **settings: Any) -> Any:
    def parameter(name: str) -> click.Parameter:
        return click.Argument([name], type=kind, **settings)

    return dataclasses.field(metadata={"parameter": parameter})


# What the library calls a thing, and `--workers`, `--setup-cycles` and so on stand for.
_TYPED = re.compile(
    r"(?<![\w./-])(?:num_(workers|coordinates|samples)|"
    r"(setup_cycles|start_up|send_time|chain_cycles|unit_costs|batch_size))\b"
)


def _as_typed(text: str) -> str:
    """What the library says of its arguments, of the options that they came from."""
    text = text.replace("a smooth distribution", "--trace-distribution smooth")
    text = re.sub(r'\bmethod="(.*?)"', r"--method \1", text)
    return _TYPED.sub(lambda name: f"--{(name[1] or name[2]).replace('_', '-')}", text)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell in one line what is wrong with the input or its files; end with status 2."""
    try:
        yield
    except (BrokenPipeError, ModuleNotFoundError):  # `main` knows what to say
        raise
    except OSError as error:
        named = ""
        if error.filename:
            named = f"{error.filename}: "
        raise click.UsageError(f"{named}{error.strerror or error}") from None
    except MemoryError:
        raise click.UsageError(
            "this takes more memory than there is: give smaller numbers, or fewer times"
        ) from None
    except (ValueError, ImportError) as error:
        raise click.UsageError(_as_typed(str(error))) from None


_QUICKLY = "--xla_cpu_use_fusion_emitters"
_UNKNOWN_FROM = (0, 11, 1)


def quick_flags(flags: str) -> str:
    """XLA's flags, with which it compiles for CPUs in half the time, unless they say
    how.

    By its older emitters: programs of many workers then take up to twice as long. A
    flag that XLA does not know ends the process, and from jaxlib 0.11.1 on there are no
    older emitters.
    """
    version = re.findall(r"\d+", importlib.metadata.version("jaxlib"))
    is_known = tuple(map(int, version[:3])) < _UNKNOWN_FROM
    if is_known and _QUICKLY not in flags:
        return f"{flags} {_QUICKLY}=false".strip()
    return flags


def compile_quickly() -> None:
    """Compile so in commands, which run once."""
    if "jax" not in sys.modules:
        os.environ["XLA_FLAGS"] = quick_flags(os.environ.get("XLA_FLAGS", ""))


def refuse_removed(words: str) -> None:
    """Raise UsageError if these words of the command line were removed."""
    if words in COMMANDS:
        raise click.UsageError(f"bcgc {words} was removed. {COMMANDS[words]}") from None


class Commands(click.Group):
    """The command `bcgc`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        refuse_removed(args[0])
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """A command: the dataclass NAMEOptions, `kind`, asks, and the file of its name
    answers.

    Its docstring is the help, and its `after` follows the options. Inherited options
    come in sections, each headed by the docstring of a base.
    """

    def __init__(self, kind: Any) -> None:
        bases = kind.__mro__[:-1]
        fields = dataclasses.fields(kind)
        self.home = {
            field.name: base for base in bases for field in dataclasses.fields(base)
        }
        self.kind = kind
        name = kind.__name__.removesuffix("Options").lower()
        ordered = sorted(fields, key=lambda field: bases.index(self.home[field.name]))
        params = [field.metadata["parameter"](field.name) for field in ordered]
        texts = {"help": kind.__doc__, "epilog": kind.after}
        super().__init__(name, params=params, callback=self.answer, **texts)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            refuse_removed(f"{self.name} {error.option_name}")
            raise

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        # Before options are read, which may need JAX.
        if getattr(self.kind, "runs_once", False):
            compile_quickly()
        return super().make_context(*arguments, **settings)

    def answer(self, **values: Any) -> None:
        with one_line_errors():
            question = self.kind(**values)
            if getattr(question, "compiles", True):
                importlib.import_module("bcgc_jax.cli.compilation").keep_programs()
            importlib.import_module(f"bcgc_jax.cli.{self.name}").answer(question)

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (
                record := param.get_help_record(ctx)
            ):
                base = self.home.get(param.name or "", self.kind)
                title = base.__doc__
                if base is self.kind:
                    title = "Options"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
