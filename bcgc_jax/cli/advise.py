"""`bcgc advise`: what slows the steps of a log, what can be done, and what that is worth."""

import functools
import sys
from pathlib import Path

import click
import numpy as np
from rich.table import Column

from bcgc_jax.cli import advise_files, output
from bcgc_jax.cli.commands import AdviseOptions
from bcgc_jax.cli.output import Row, Shown, print_lines, print_rows
from bcgc_jax.cli.progress import Progress
from bcgc_jax.measured import advice, remedies
from bcgc_jax.measured.advice import Advice
from bcgc_jax.measured.intervals import percent
from bcgc_jax.measured.remedies import Planned
from bcgc_jax.measured.slowness import IN_WORDS, NOT_TIMED_APART
from bcgc_jax.measured.traces import ColumnError, Trace, load_trace

_NONE = "none that shows"
_DO = {
    remedies.DEALT: "deal the chunks to the workers by their length",
    "sharing:2": "share the work, with two subsets stored (sharing:2)",
    "sharing:3": "share the work, with three subsets stored (sharing:3)",
    remedies.ALL_DATA: "share the work, with all data stored (sharing:all)",
    remedies.FIXED: "give each worker data by its speed, once",
    remedies.ANEW: "give each worker data by its speed, anew before each step",
}
_RECORD = (
    "Give a row for each chunk (microbatch), with its number in a column `chunk`. Then slow "
    "workers, long chunks and pauses can be told apart."
)


def answer(question: AdviseOptions) -> None:
    with Progress("replaying the log"):
        trace = _read(question)
        found = advice.advise(
            trace,
            chunks=question.chunks,
            stored=question.stored,
            round_trip=question.round_trip,
            methods=_codes(question, trace),
            seed=question.seed,
        )
    rows = [_flat(row) for row in found.rows]
    name = "standard input" if question.log == "-" else Path(question.log).name
    output.print_answer(question, rows, lambda: _json(found), lambda: _print(name, found))
    output.write_figure(question, lambda: advise_files.picture(found))
    if question.out is not None:
        plan = advise_files.plan_of(found)
        output.write_beside(question, question.out, f"The plan of {found.advised}", plan.save)


def _read(question: AdviseOptions) -> Trace:
    columns = dict(question.columns or {})
    if "forward_seconds" in columns:
        columns["forward"] = columns.pop("forward_seconds")
    try:
        path = sys.stdin.buffer if question.log == "-" else question.log
        return load_trace(path, layout=question.layout, **columns)
    except ColumnError as error:
        text = str(error).replace("step=, worker=, seconds=", "--columns step=…,worker=…,seconds=…")
        raise click.UsageError(text.replace('layout="wide"', "--layout wide")) from None


def _codes(question: AdviseOptions, trace: Trace) -> dict[str, Planned]:
    if not question.methods:
        return {}
    import jax

    from bcgc_jax.solvers.measured_steps import replayed

    parts = trace.microbatches
    forward = question.forward
    if forward is None:
        forward = (parts and parts.forward_ratio) or 0.0

    def code(method: str, planned: np.ndarray, judged: np.ndarray) -> tuple[np.ndarray, int]:
        with jax.enable_x64(True):
            return replayed(method, planned, judged, forward)

    return {method: functools.partial(code, method) for method in question.methods}


def _json(found: Advice) -> Row:
    slow = [one._asdict() for one in found.slow_workers]
    return vars(found) | {"slow_workers": slow, "rows": [row._asdict() for row in found.rows]}


def _flat(row: advice.Row) -> Row:
    """A column for each number."""
    low, high = row.range
    flat = {"remedy": row.remedy, "saved": row.saved.value, "saved_low": row.saved.low}
    flat |= {"saved_high": row.saved.high, "range_low": low, "range_high": high}
    return flat | {
        name: getattr(row, name) for name in ("lost", "longer", "stored_subsets", "needs")
    }


def _print(name: str, found: Advice) -> None:
    left_out = ""
    if found.left_out:
        left_out = f" Left out: {_steps(found.left_out)} in which a worker has no whole time."
    chunks = f", {found.num_chunks} chunks in a worker's step" if found.recorded else ""
    print_lines(
        f"{name}: {found.num_workers} workers, {_steps(found.num_steps)}{chunks}.{left_out}",
        f"A step takes {found.step:.4g} s on average. It would take {found.balanced:.4g} s if all "
        f"workers ended together. So {percent(found.loss)} % of the time is lost.",
    )
    if found.alike:
        print_lines(NOT_TIMED_APART)
    _print_causes(found)
    _print_rows(found)
    print_lines("", *_sentences(found))


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _print_causes(found: Advice) -> None:
    columns: list[Shown] = [
        (Column("why", no_wrap=True), lambda cause: IN_WORDS[cause[0]]),
        (
            "share of the loss",
            lambda cause: f"{percent(cause[1].value)} %" if cause[1].shows else _NONE,
        ),
        ("95 %", lambda cause: cause[1].in_percent() if cause[1].shows else ""),
    ]
    print_lines("")
    print_rows(sorted(found.causes.items(), key=lambda cause: -cause[1].value), columns)
    print_lines(*found.slow_workers_in_words())
    if found.together.shows:
        print_lines(f"{found.together_in_words()} Nothing here helps against that.")
    else:
        print_lines(f"All workers slow at once: {_NONE}.")


def _print_rows(found: Advice) -> None:
    columns: list[Shown] = [
        (output.names("what can be done"), lambda row: row.remedy),
        ("saved", lambda row: f"{percent(row.saved.value)} %"),
        ("95 %", lambda row: row.saved.in_percent()),
    ]
    if not found.recorded:
        columns.append(("by model", lambda row: " to ".join(map(percent, row.range))))
    columns += [
        ("subsets\nstored", lambda row: str(row.stored_subsets)),
        ("samples\nlost", lambda row: f"{percent(row.lost)} %" if row.lost else "none"),
        (Column("needs"), _needs),
    ]
    print_lines("")
    print_rows(found.rows, columns)


def _needs(row: advice.Row) -> str:
    if row.remedy == remedies.LIMIT:
        return "no exact scheme saves more"
    if not row.lost:
        return row.needs
    times = f"{row.longer:.2g} times as long" if row.longer else "all of them"
    return f"{row.needs}; lost are {times}"


def _sentences(found: Advice) -> list[str]:
    said = [
        "Each remedy is planned on one half of the steps and replayed in the other one. Saved is "
        "of the time for a sample that is used."
    ]
    if found.lengths is not None:
        said.append(
            f"Lengths of chunks are predicted from {found.lengths}. They are taken as known before."
        )
    if not found.recorded:
        said.append(
            f"The log has no chunks. {found.num_chunks} equal ones are supposed in a worker's "
            "step, and that workers are slow. The column `by model` goes down to long or single "
            "slow chunks. " + _RECORD
        )
    if found.changing:
        said.append("Speeds have changed in the last quarter: shares by speed are not advised.")
    return [*said, "", _verdict(found)]


def _verdict(found: Advice) -> str:
    if not found.enough:
        fewest = advice.FEWEST_STEPS
        return (
            f"This is too little for advice: {found.num_steps} steps. Record {fewest} steps or "
            "more."
        )
    if found.advised is None:
        return "Nothing here pays more than 2 %."
    text = f"Do this: {_DO[found.advised]}. {_saves(found, found.advised)}"
    if found.beforehand in (None, found.advised):
        return text
    other = f"{_DO[found.beforehand]}. {_saves(found, found.beforehand)}"
    return f"{text} If workers cannot ask within a step: {other}"


def _saves(found: Advice, remedy: str) -> str:
    row = found.row(remedy)
    between = ""
    if not found.recorded and row.range[0] < row.saved.low:
        between = f", or {percent(row.range[0])} % if chunks are slow in place of workers"
    return f"It saves {percent(row.saved.value)} % ({row.saved.in_percent()} %){between}."
