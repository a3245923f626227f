"""A log named on the command line: its files, and its times, read without JAX."""

import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bcgc_jax.cli.exit import say
from bcgc_jax.traces.tables import ColumnError
from bcgc_jax.traces.trace import Trace, load_trace
from bcgc_jax.traces.units import counted, unusual_in_words

_LOG = re.compile(r"\.(csv|tsv|jsonl)(\.gz)?$")


def log_name(path: str) -> str:
    if path == "-":
        return "standard input"
    return path


def short_name(paths: Sequence[str]) -> str:
    """What a person calls the files or folders that were named."""
    other_files = ""
    if len(paths) > 1:
        other_files = f" and {counted(len(paths) - 1, 'other')}"
    return Path(log_name(paths[0])).name + other_files


def files_of(paths: Sequence[str]) -> list[str]:
    """The files that were named, those of a pattern, and those below a folder."""
    named = [file for path in paths for file in _matching(path)]
    files: list[str] = []
    for path in named:
        if os.path.isdir(path):
            files += sorted(
                str(file) for file in Path(path).rglob("*") if file.is_file()
            )
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _matching(path: str) -> list[str]:
    if os.path.exists(path) or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(path, recursive=True))


def logs_among(files: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Those of the files that are plain logs: what was named, and below folders by
    their ends.

    Raises UsageError where there is none.
    """
    logs = [file for file in files if file in paths or _LOG.search(file)]
    if not logs:
        raise click.UsageError(
            f"{short_name(paths)} has no traces of a profiler (PyTorch: *.json, JAX: "
            "*.xplane.pb), and no logs (*.csv, *.jsonl)"
        )
    return logs


def read_log(
    path: str | Sequence[str], options: str, unit: str | None = None, **columns: Any
) -> Trace:
    """Read a log as its file has it, or its files; its columns are named by these
    options.

    Where no `unit` was asked for, and times are odd in seconds, a line says so.

    Raises ValueError for a file that cannot be read, UsageError for one without the
    columns.
    """
    try:
        file: Any = path
        if path in ("-", ["-"]):
            file = sys.stdin.buffer
        trace = load_trace(file, unit=unit or "s", **columns)
    except ColumnError as error:
        text = str(error).replace("step=, worker=, seconds=", options)
        text = text.replace("cost=", "--cost a,b")
        # No ValueError: columns such as num_workers are to be told as the file has
        # them.
        raise click.UsageError(text.replace('layout="wide"', "--layout wide")) from None
    if unit is None and not trace.of_lengths:
        say_unusual(trace)
    return trace


def say_unusual(trace: Trace) -> None:
    """Say that times which were taken for seconds are odd in these, where they are."""
    if said := unusual_in_words(trace.step, trace.seconds):
        say(
            f"bcgc: {' '.join(said)}".replace(
                "give their unit:", "give their unit with --unit:"
            )
        )
