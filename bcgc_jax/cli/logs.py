"""A log that was named on the command line: its name, and its times, read without JAX."""

import sys
from typing import Any

import click

from bcgc_jax.measured.traces import ColumnError, Trace, load_trace


def log_name(path: str) -> str:
    return "standard input" if path == "-" else path


def read_log(path: str, options: str, **columns: Any) -> Trace:
    """Read a log as its file has it; its columns are named by these options.

    Raises ValueError for a file that cannot be read, UsageError for one without the columns.
    """
    try:
        return load_trace(sys.stdin.buffer if path == "-" else path, **columns)
    except ColumnError as error:
        text = str(error).replace("step=, worker=, seconds=", options)
        # No ValueError: columns such as num_workers are to be told as the file has them.
        raise click.UsageError(text.replace('layout="wide"', "--layout wide")) from None
