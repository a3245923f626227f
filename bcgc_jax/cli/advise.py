"""`bcgc advise`: what slows the steps of a log, what can be done, and what that is worth."""

import functools
from pathlib import Path

import numpy as np
from rich.table import Column

from bcgc_jax.cli import advise_files, output
from bcgc_jax.cli.commands import AdviseOptions
from bcgc_jax.cli.logs import log_name, read_log
from bcgc_jax.cli.output import Row, Shown, print_lines, print_rows
from bcgc_jax.cli.progress import Progress
from bcgc_jax.measured import remedies
from bcgc_jax.measured.advice import FEWEST_STEPS, Advice, Remedy, advise
from bcgc_jax.measured.intervals import percent
from bcgc_jax.measured.remedies import Planned
from bcgc_jax.measured.slowness import (
    IN_WORDS,
    NOT_TIMED_APART,
    long_start_in_words,
    seldom_there,
)
from bcgc_jax.measured.traces import Trace

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
        advice = advise(
            trace,
            chunks=question.chunks,
            stored=question.stored,
            round_trip=question.round_trip,
            methods=_codes(question, trace),
            seed=question.seed,
        )
    rows = [_flat(row) for row in advice.rows]
    name = Path(log_name(question.log)).name
    output.print_answer(question, rows, lambda: _json(advice), lambda: _print(name, advice, trace))
    output.write_figure(question, lambda: advise_files.picture(advice))
    if question.out is not None:
        plan = advise_files.plan_of(advice)
        output.write_beside(question, question.out, f"The plan of {advice.advised}", plan.save)


def _read(question: AdviseOptions) -> Trace:
    columns = dict(question.columns or {})
    if "forward_seconds" in columns:
        columns["forward"] = columns.pop("forward_seconds")
    columns["layout"] = question.layout
    return read_log(question.log, "--columns step=…,worker=…,seconds=…", **columns)


def _codes(question: AdviseOptions, trace: Trace) -> dict[str, Planned]:
    if not question.methods:
        return {}
    import jax

    from bcgc_jax.solvers.measured_steps import replayed

    forward = question.forward
    if forward is None and trace.microbatches is not None:
        forward = trace.microbatches.forward_ratio

    def code(method: str, planned: np.ndarray, judged: np.ndarray) -> tuple[np.ndarray, int]:
        with jax.enable_x64(True):
            return replayed(method, planned, judged, forward or 0.0)

    return {method: functools.partial(code, method) for method in question.methods}


def _json(advice: Advice) -> Row:
    slow = [one._asdict() for one in advice.slow_workers]
    long = None if advice.long_chunks is None else advice.long_chunks._asdict()
    rows = [row._asdict() for row in advice.rows]
    return vars(advice) | {"slow_workers": slow, "long_chunks": long, "rows": rows}


def _flat(row: Remedy) -> Row:
    """A column for each number."""
    low, high = row.range
    return {
        "remedy": row.remedy,
        "saved": row.saved.value,
        "saved_low": row.saved.low,
        "saved_high": row.saved.high,
        "range_low": low,
        "range_high": high,
        "lost": row.lost,
        "longer": row.longer,
        "stored_subsets": row.stored_subsets,
        "needs": row.needs,
    }


def _print(name: str, advice: Advice, trace: Trace) -> None:
    log = f"{name}: {advice.num_workers} workers, {_steps(advice.num_steps)}"
    if advice.recorded:
        log += f", {advice.num_chunks} chunks in a worker's step"
    log += "."
    if advice.left_out:
        log += f" Left out: {_steps(advice.left_out)} in which a worker has no whole time."
        log += f" {seldom_there(trace)}"
    print_lines(
        log,
        *long_start_in_words(trace),
        f"A step takes {advice.step:.4g} s on average. It would take {advice.balanced:.4g} s if "
        f"all workers ended together. So {percent(advice.loss)} % of the time is lost.",
    )
    if advice.alike:
        print_lines(NOT_TIMED_APART)
    else:
        _print_causes(advice)
    _print_rows(advice)
    print_lines("", *_sentences(advice))


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _print_causes(advice: Advice) -> None:
    causes = sorted(advice.causes, key=lambda cause: -advice.causes[cause].value)

    def share(cause: str) -> str:
        of_loss = advice.causes[cause]
        return f"{percent(of_loss.value)} %" if advice.cause_shows(cause) else _NONE

    def interval(cause: str) -> str:
        of_loss = advice.causes[cause]
        if advice.cause_shows(cause):
            return of_loss.in_percent()
        return f"at most {percent(of_loss.high)}" if of_loss.high > 0.0005 else ""

    columns: list[Shown] = [
        (Column("why", no_wrap=True), lambda cause: IN_WORDS[cause]),
        ("share of the loss", share),
        ("95 %", interval),
    ]
    print_lines("")
    print_rows(causes, columns)
    print_lines(*advice.slow_workers_in_words(), *advice.doubts())
    if advice.together.shows:
        print_lines(f"{advice.together_in_words()} Nothing here helps against that.")
    else:
        print_lines(f"All workers slow at once: {_NONE}.")


def _print_rows(advice: Advice) -> None:
    columns: list[Shown] = [
        (output.names("what can be done"), lambda row: row.remedy),
        ("saved", lambda row: f"{percent(row.saved.value)} %"),
        ("95 %", lambda row: row.saved.in_percent() if row.saved.known else ""),
    ]
    if advice.several_models:
        columns.append(("by model", lambda row: " to ".join(map(percent, row.range))))
    columns += [
        ("subsets\nstored", lambda row: str(row.stored_subsets)),
        ("samples\nlost", lambda row: f"{percent(row.lost)} %" if row.lost else "none"),
        (Column("needs"), _needs),
    ]
    print_lines("")
    print_rows(advice.rows, columns)


def _needs(row: Remedy) -> str:
    if row.remedy == remedies.LIMIT:
        return "no exact scheme saves more"
    if not row.lost:
        return row.needs
    times = f"{row.longer:.2g} times as long" if row.longer else "all of them"
    return f"{row.needs}; lost are {times}"


def _sentences(advice: Advice) -> list[str]:
    said = [
        "Each remedy is planned on one half of the steps and replayed in the other one. Saved is "
        "of the time for a sample that is used."
    ]
    if advice.lengths is not None:
        said.append(
            f"Lengths of chunks are predicted from {advice.lengths}. "
            "They are taken as known before."
        )
    if not advice.recorded:
        said.append(
            f"The log has no chunks. {advice.num_chunks} equal ones are supposed in a worker's "
            "step, and that workers are slow. The column `by model` goes down to long or single "
            "slow chunks. " + _RECORD
        )
    elif advice.several_models:
        said.append(
            "The table takes long chunks for data. The column `by model` is also for chunks of "
            "more than three times their worker's median that have paused."
        )
    if advice.changing:
        said.append("Speeds have changed in the last quarter: shares by speed are not advised.")
    return [*said, "", _verdict(advice)]


def _verdict(advice: Advice) -> str:
    if not advice.enough:
        few = f"This is too little for advice: {advice.num_steps} steps."
        return f"{few} Record {FEWEST_STEPS} steps or more."
    if advice.advised is None:
        return "Nothing here pays more than 2 %."
    text = f"Do this: {_DO[advice.advised]}. {_saves(advice, advice.advised)}"
    if advice.as_good:
        text += f" Within the error as good: {', '.join(advice.as_good)}."
    if advice.beforehand in (None, advice.advised):
        return text
    other = f"{_DO[advice.beforehand]}. {_saves(advice, advice.beforehand)}"
    return f"{text} If workers cannot ask within a step: {other}"


def _saves(advice: Advice, remedy: str) -> str:
    row = advice.row(remedy)
    between = ""
    if advice.several_models and percent(row.range[0]) != percent(row.saved.value):
        what = "long chunks have paused" if advice.recorded else "chunks are slow, not workers"
        between = f", or {percent(row.range[0])} % if {what}"
    return f"It saves {percent(row.saved.value)} % ({row.saved.in_percent()} %){between}."
