"""Options of commands, each declared once: as a field of the dataclass that a command is asked with.

JAX is imported when a command is answered: not for help, nor to refuse what was typed.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import click


def option(
    kind: Any, text: str | None = None, *, typed: str | None = None, default: Any = None, **more: Any
) -> Any:
    """A field that is an option of its name, or of the one that is `typed`; `text` is its help.

    `kind` is one of click's types, bool for a flag, or a tuple of choices, the first of them by default.
    """
    if kind is bool:
        more["is_flag"] = True
    elif isinstance(kind, tuple):
        more["type"], default = click.Choice(kind), None if "multiple" in more else kind[0]
    else:
        more["type"] = kind
    if default is not None:
        more |= {"default": default, "show_default": True}

    def made(name: str) -> click.Parameter:
        return click.Option([typed or f"--{name.replace('_', '-')}", name], help=text, **more)

    return dataclasses.field(metadata={"made": made})


def argument(kind: Any) -> Any:
    """A field that is an argument of the command."""
    return dataclasses.field(metadata={"made": lambda name: click.Argument([name], type=kind)})


def group(kind: type) -> Any:
    """A field that is a dataclass of such fields; its docstring is the head of their section in the help."""
    return dataclasses.field(metadata={"group": kind})


def parameters(kind: type, section: str = "Options") -> Iterator[tuple[str, click.Parameter]]:
    """What may be typed for a dataclass, each with its section; what is inherited comes last."""
    inherited = {
        field.name: str(base.__doc__) for base in kind.__mro__[1:-1] for field in dataclasses.fields(base)
    }
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name in inherited):
        if nested := field.metadata.get("group"):
            yield from parameters(nested, nested.__doc__)
        else:
            yield inherited.get(field.name, section), field.metadata["made"](field.name)


class Command(click.Command):
    """Asked with the dataclass `kind`, whose docstring is its help; answered by the file of its name."""

    def __init__(self, name: str, kind: type, **texts: Any) -> None:
        found = list(parameters(kind))
        self.kind, self.sections = kind, {param.name: section for section, param in found}
        params = [param for _, param in found]
        super().__init__(name, params=params, callback=self.answer, help=kind.__doc__, **texts)

    def asked(self, kind: Any, given: Mapping[str, Any]) -> Any:
        """The dataclass of what was given."""
        nested = {field.name: field.metadata.get("group") for field in dataclasses.fields(kind)}
        return kind(**{name: self.asked(of, given) if of else given[name] for name, of in nested.items()})

    def answer(self, **given: Any) -> None:
        try:
            question = self.asked(self.kind, given)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        from bcgc_jax.cli.compilation import keep_programs
        from bcgc_jax.cli.output import one_line_errors

        keep_programs()
        with one_line_errors():
            importlib.import_module(f"bcgc_jax.cli.{self.name}").answer(question)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                found.setdefault(self.sections.get(param.name, "Options"), []).append(record)
        for section, records in found.items():
            with formatter.section(section):
                formatter.write_dl(records)
