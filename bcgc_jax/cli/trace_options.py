"""Options of a trace: how its file is laid out, and which law stands for its times."""

import functools
from collections.abc import Callable
from typing import Any

import click

from bcgc_jax.cli.arguments import interrupted_at_once, refuse_without_effect
from bcgc_jax.cli.names import LAYOUTS, TRACE_LAWS

# Those of the layout.
_COLUMNS = ("step", "worker", "seconds", "censored", "load")
_LAYOUT = ("layout", *(f"{name}_column" for name in _COLUMNS))


def layout_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say how a trace is laid out, given to `command` as `columns`, keywords of `load_trace`."""

    @functools.wraps(command)
    def with_columns(*args: Any, **given: Any) -> None:
        columns = {name: given.pop(f"{name}_column") for name in _COLUMNS}
        if given["layout"] == "wide":
            refuse_without_effect("in the wide layout", "worker_column", "seconds_column", "load_column")
        return command(*args, columns=columns | {"layout": given.pop("layout")}, **given)

    return _with_options(
        with_columns,
        click.option("--step-column", default="step", show_default=True, help="Column of the step."),
        click.option("--worker-column", default="worker", show_default=True, help="Column of the worker."),
        click.option("--seconds-column", default="seconds", show_default=True, help="Column of the times."),
        click.option(
            "--censored-column", help="Column of 0 or 1: the worker was cut off, the time a lower bound."
        ),
        click.option(
            "--load-column",
            help="Column of what a worker had done by then, in cycles; `load` where there is one.",
        ),
        click.option(
            "--layout",
            type=click.Choice(LAYOUTS),
            default="auto",
            show_default=True,
            help="A row for each step and worker (long), or a column for each worker (wide).",
        ),
    )


def trace_options(use: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options of a trace in place of a law, given to a command as `trace`, a `TraceFile` or None."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_trace(
            *args: Any,
            trace: str | None,
            trace_law: str,
            keep_workers: bool,
            columns: dict[str, Any],
            **given: Any,
        ) -> None:
            if trace is None:
                refuse_without_effect("without --trace", "keep_workers", "trace_law", *_LAYOUT)
            if keep_workers:
                refuse_without_effect("with --keep-workers, for which steps are whole", "trace_law")
            if trace is None:
                return command(*args, trace=None, **given)
            with interrupted_at_once():
                from bcgc_jax.cli.traces import TraceFile
            return command(*args, trace=TraceFile(trace, columns, trace_law, keep_workers), **given)

        kept = click.option(
            "--keep-workers",
            is_flag=True,
            help="Keep the steps of the trace whole: its workers are not alike.",
        )
        return _with_options(
            layout_options(kept(with_trace)),
            click.option(
                "--trace",
                type=click.Path(allow_dash=True),
                help=f"CSV (also .csv.gz) or Parquet of measured times; - is standard input{use}",
            ),
            click.option(
                "--trace-law",
                type=click.Choice(TRACE_LAWS),
                default=TRACE_LAWS[0],
                show_default=True,
                help="Each measured time an atom, or a smooth law, perhaps with a Pareto tail fitted to it; "
                "auto: atoms where that is quick, else a smooth law as near to them as the trace can tell.",
            ),
        )

    return decorate


def _with_options(
    command: Callable[..., None], *options: Callable[[Callable[..., None]], Callable[..., None]]
) -> Callable[..., None]:
    """`command` with the options in this order."""
    for option in reversed(options):
        command = option(command)
    return command
