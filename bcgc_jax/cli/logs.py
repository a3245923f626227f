"""A log that was named on the command line: its name, and its times, read without JAX."""

import sys
from typing import Any

import click

from bcgc_jax.cli.exit import say
from bcgc_jax.measured.traces import ColumnError, Trace, load_trace
from bcgc_jax.measured.units import unusual_in_words


def log_name(path: str) -> str:
    return "standard input" if path == "-" else path


def read_log(path: str, options: str, unit: str | None = None, **columns: Any) -> Trace:
    """Read a log as its file has it; its columns are named by these options.

    Where no `unit` was asked for, and times are odd in seconds, a line says so.

    Raises ValueError for a file that cannot be read, UsageError for one without the columns.
    """
    try:
        file = sys.stdin.buffer if path == "-" else path
        trace = load_trace(file, unit=unit or "s", **columns)
    except ColumnError as error:
        text = str(error).replace("step=, worker=, seconds=", options)
        # No ValueError: columns such as num_workers are to be told as the file has them.
        raise click.UsageError(text.replace('layout="wide"', "--layout wide")) from None
    if unit is None:
        say_unusual(trace)
    return trace


def say_unusual(trace: Trace) -> None:
    """Say that times which were taken for seconds are odd in these, where they are."""
    if said := unusual_in_words(trace.step, trace.seconds):
        say(f"bcgc: {' '.join(said)}".replace("give their unit:", "give their unit with --unit:"))
