"""`bcgc advise`: what slows the steps of a log, and what each remedy is worth."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column

from bcgc_jax.balancing.remedies import Limit, Replaced
from bcgc_jax.balancing.scheme import Scheme
from bcgc_jax.cli import advise_files, output
from bcgc_jax.cli.arguments import refuse_without_effect
from bcgc_jax.cli.columns import ADVICE, csv_names, flat, table_of, values
from bcgc_jax.cli.commands import AdviseOptions
from bcgc_jax.cli.exit import say
from bcgc_jax.cli.logs import files_of, logs_among, read_log, short_name
from bcgc_jax.cli.output import Row, Shown, print_lines, print_rows
from bcgc_jax.cli.progress import Progress
from bcgc_jax.diagnosis.advice import FEWEST_STEPS, WORTH, Advice, Remedy, advise
from bcgc_jax.diagnosis.slowness import (
    MOST_TOLD,
    SlowWorker,
    long_start_in_words,
    perhaps_jitter,
)
from bcgc_jax.traces.intervals import percent
from bcgc_jax.traces.profiles.folder import log_of
from bcgc_jax.traces.profiles.log import MadeLog
from bcgc_jax.traces.profiles.recording import IN_ONE_JIT
from bcgc_jax.traces.trace import Trace, load_trace
from bcgc_jax.traces.units import counted
from bcgc_jax.traces.whole_steps import left_out_in_words

_NONE = "none that shows"
_RECORD = (
    "Give a row for each chunk (microbatch), with its number in a column `chunk`. Then "
    "slow workers, long chunks and pauses can be told apart."
)
_RECORD_TRACE = (
    "A worker's step is one chunk. Record one with several microbatches, or name what "
    "begins one by --chunk-name."
)
_RECORD_JAX = (
    "A worker's step is one chunk. Record one in which each microbatch is a run of a "
    "jitted function, and name that by --chunk-name, or see above."
)
_LENGTHS_ALONE = (
    "Seconds are what lengths are said to cost (--cost), on workers of one speed. "
    "Nothing is known of slow workers."
)
_APART = "bcgc advise --timed-apart takes the log for that, and says what else is lost."


def answer(question: AdviseOptions) -> None:
    with Progress("reading the log") as bar:
        log, trace = _read(question)
        advice = advise(
            trace,
            chunks=question.chunks,
            stored=question.stored,
            round_trip=question.round_trip,
            chunk_overhead=question.chunk_overhead,
            codes=_codes(question),
            forward=question.forward,
            seed=question.seed,
            timed_apart=question.timed_apart,
            lock_step=question.lock_step,
            report=bar.show,
        )
    rows = [flat(ADVICE, row) for row in advice.rows]

    def table() -> None:
        record = _RECORD
        if log:
            print_lines(*log.remarks)
            record = _RECORD_TRACE
            if IN_ONE_JIT in log.remarks:
                record = _RECORD_JAX
        _print(short_name(question.logs), advice, record)
        # Chunks, loads and workers that stay slow are no jitter.
        told_apart = question.timed_apart or advice.collective is not None
        no_jitter = (
            advice.recorded or advice.lengths is not None or advice.unlike_workers
        )
        if advice.advised is not None and not (told_apart or no_jitter):
            print_lines(*perhaps_jitter(advice.steps.times))

    if log and question.output != "table":
        say(f"bcgc: {' '.join(log.remarks)}")
    output.print_answer(question, rows, lambda: _json(advice), table, csv_names(ADVICE))
    if advice.alike and question.output == "csv":
        say(f"bcgc: {advice.alike_in_words()[0]}")
    if log and question.made_log:
        text = log.text
        output.write_beside(
            question, question.made_log, "The log", lambda to: Path(to).write_text(text)
        )
    output.write_figure(question, lambda: advise_files.picture(advice))
    if question.out is not None:
        plan = advise_files.plan_of(advice)
        output.write_beside(
            question, question.out, f"The plan of {advice.advised}", plan.save
        )


def _read(question: AdviseOptions) -> tuple[MadeLog | None, Trace]:
    """The log that was made of traces, if they are some, and the log as it is read."""
    files = files_of(question.logs)
    log = None
    if files != ["-"]:
        log = log_of(files, question.chunk_name)
    if log is not None:
        refuse_without_effect(
            "on traces of a profiler", "columns", "layout", "unit", "cost"
        )
        return log, load_trace(io.BytesIO(log.text.encode()))
    refuse_without_effect("without traces of a profiler", "chunk_name", "made_log")
    columns = dict(question.columns or {})
    if "forward_seconds" in columns:
        columns["forward"] = columns.pop("forward_seconds")
    names = "--columns step=…,worker=…,seconds=…"
    logs = logs_among(files, question.logs)
    options: Any = {**columns, "layout": question.layout, "cost": question.cost}
    return None, read_log(logs, names, question.unit, **options)


def _codes(question: AdviseOptions) -> list[Scheme]:
    if not question.methods:
        return []
    from bcgc_jax.solvers.methods import code_of

    return list(map(code_of, question.methods))


def _json(advice: Advice) -> Row:
    plain: Row = {"rows": [values(ADVICE, row) for row in advice.rows]}
    for name in ("slow_workers", "look_at"):
        plain[name] = [worker._asdict() for worker in getattr(advice, name)]
    parts = {name: getattr(advice, name) for name in ("load_line", "long_chunks")}
    plain |= {
        name: None if part is None else part._asdict() for name, part in parts.items()
    }
    costs = advice.costs.asking._asdict() | {"of_chunk": advice.costs.of_chunk}
    fields = vars(advice) | {"costs": costs, **plain}
    return {name: value for name, value in fields.items() if name != "steps"}


def _print(name: str, advice: Advice, record: str) -> None:
    """Print the answer; `record` says how a log without chunks gets some."""
    log = f"{name}: {advice.num_workers} workers, {counted(advice.num_steps, 'step')}"
    if advice.recorded:
        log += f", {advice.num_chunks} chunks in a worker's step"
    left_out = left_out_in_words(advice.steps)
    print_lines(" ".join([f"{log}.", *left_out]), *long_start_in_words(advice.steps))
    together = "A step"
    if advice.lock_step:
        together = "In lock-step a step"
    step = f"{together} takes {advice.step:.4g} s on average."
    if advice.alike:
        print_lines(step, "", *advice.alike_in_words(), _APART)
        return
    print_lines(
        f"{step} It would take {advice.balanced:.4g} s if all workers ended together. "
        f"So {percent(advice.loss)} % of the time is lost.",
        *advice.collective_in_words(),
    )
    if advice.steps.trace.of_lengths:
        print_lines(_LENGTHS_ALONE)
    else:
        _print_causes(advice)
    _print_rows(advice)
    print_lines("", *_sentences(advice, record))


def _print_causes(advice: Advice) -> None:
    causes = sorted(advice.causes, key=lambda cause: -advice.causes[cause].value)

    def share(cause: str) -> str:
        of_loss = advice.causes[cause]
        if advice.cause_shows(cause):
            return f"{percent(of_loss.value)} %"
        return _NONE

    def interval(cause: str) -> str:
        of_loss = advice.causes[cause]
        if advice.cause_shows(cause):
            return of_loss.in_percent()
        if of_loss.high > 0.0005:
            return f"at most {percent(of_loss.high)}"
        return ""

    columns: list[Shown] = [
        (Column("why", no_wrap=True), advice.cause_in_words),
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
    saved = next(column for column in ADVICE if column.name == "saved")
    interval: Shown = (
        "95 %",
        lambda row: row.saved.in_percent() if row.saved.is_known else "",
    )
    by_model: Shown = "by model", lambda row: " to ".join(map(percent, row.range))
    columns = table_of(
        ADVICE,
        advice.rows,
        *("remedy", "saved", "range", "stored_subsets"),
        saved=[("saved", saved.cell), interval],
        range=[by_model] if advice.several_models else [],
        needs=[(Column("needs"), _needs)],
    )
    # Where nobody is left out or replaced, nothing is done.
    rows = [row for row in advice.rows if any(row.choice) or not row.choice]
    print_lines("")
    print_rows(rows, columns)


def _needs(row: Remedy) -> str:
    if row.remedy == Limit.name:
        return "no exact scheme saves more"
    if not row.lost:
        return row.needs
    if row.longer is None:
        return f"{row.needs}; all are lost"
    times = f"{row.longer:.2g}"
    as_long = "as long as others"
    if times != "1":
        as_long = f"{times} times {as_long}"
    return f"{row.needs}; lost chunks are {as_long}"


def _sentences(advice: Advice, record: str) -> list[str]:
    said = [
        "Each remedy is planned on one half of the steps and replayed in the other "
        "one. Saved is of the time for a sample that is used."
    ]
    if advice.num_judged < advice.num_steps:
        said.append(
            f"The log is long: each remedy is replayed in {advice.num_judged:,} of the "
            f"{advice.num_steps:,} steps, drawn at random."
        )
    if any(row.saved.value > advice.loss for row in advice.rows if not row.lost):
        said[0] += (
            " It can be more than is lost: who is fast does more than an equal share."
        )
    if advice.too_wide:
        said.append(_too_wide_in_words(advice))
    if advice.lengths is not None:
        said.append(
            f"Lengths are predicted from {advice.lengths}, as if that is known before "
            "the step."
        )
    elif advice.lock_step:
        said.append(
            "With the lengths of chunks in a column `load`, more could be replayed."
        )
    if any(row.scheme.asks for row in advice.rows):
        said.append(_costs(advice))
        if hosts := advice.steps.trace.hosts:
            said.append(
                f"The log names {len({*hosts})} hosts: a chunk is stored on different "
                "ones."
            )
    if not advice.recorded:
        said.append(
            f"The log has no chunks. {advice.num_chunks} equal ones are supposed in a "
            "worker's step, and that workers are slow. The column `by model` goes down "
            f"to long or single slow chunks. {record}"
        )
    elif advice.several_models:
        said.append(
            "The table takes long chunks for data. The column `by model` is also for "
            "chunks of more than three times their worker's median that have paused."
        )
    if advice.changing:
        said.append(
            "Speeds have changed in the last quarter: shares by speed are not advised."
        )
    return [*said, "", _verdict(advice)]


def _too_wide_in_words(advice: Advice) -> str:
    """Name remedies with useless intervals, and say how many steps are enough."""
    rows = advice.too_wide
    names = _joined([row.remedy for row in rows])
    enough = float(f"{max(row.enough_steps for row in rows):.2g}")
    savings = counted(len(rows), "saving").partition(" ")[2]
    are = "is" if len(rows) == 1 else "are"
    return (
        f"The {savings} by {names} {are} hardly known, because "
        f"{counted(advice.num_judged, 'step')} are too few. About {enough:,.0f} steps "
        "are enough for an interval of ± 10 points."
    )


def _costs(advice: Advice) -> str:
    """Say what work sharing is taken to cost beside the passes."""
    asking = advice.costs.asking
    said = f"A question is taken to cost {1e3 * asking.delay:.3g} ms"
    if asking.service:
        said += (
            f", and {1e3 * asking.service:.3g} ms of the coordinator, one after another"
        )
        said += " (--round-trip)"
    if advice.costs.of_chunk:
        said += f"; a chunk {1e3 * advice.costs.of_chunk:.3g} ms whatever its size"
    return f"{said}."


def _verdict(advice: Advice) -> str:
    if not advice.enough:
        steps = counted(advice.num_steps, "step")
        return (
            f"This is too little for advice: {steps}. Record {FEWEST_STEPS} steps or "
            "more."
        )
    if advice.look_at:
        return f"{_look_first(advice)} {_pays(advice, 'Until then', 'Nothing else')}"
    return _pays(advice, "Do this", "Nothing")


def _look_first(advice: Advice) -> str:
    """Name the workers that stay slow, and say what to replace them saves."""
    workers = advice.look_at
    saved = advice.row(Replaced.name).saved
    saves = f"saves {percent(saved.value)} % ({saved.in_percent()} %)"
    look = f"First look at {_named(workers)}."
    if len(workers) == 1:
        return f"{look} {workers[0].in_words('It')} To replace it {saves}."
    when = " ".join(map(str, workers[:MOST_TOLD]))
    return f"{look} {when} To replace them {saves}."


def _still_slow(advice: Advice) -> str:
    """Name the workers that are slow when the log ends: nobody knows for how long."""
    last = advice.steps.trace.step_names[-1]
    slow = [worker for worker in advice.slow_workers if worker.last_step == last]
    if not slow or advice.look_at:
        return ""
    verb = "is"
    if len(slow) > 1:
        verb = "are"
    return (
        f" The log ends while {_named(slow)} {verb} slow, and does not say for how "
        "long: look there first. If that stays, work sharing may pay."
    )


def _named(workers: Sequence[SlowWorker]) -> str:
    names = _joined([worker.worker for worker in workers])
    if len(workers) == 1:
        return f"worker {names}"
    return f"workers {names}"


def _joined(names: list[str]) -> str:
    """Some names, and how many more there are.

    >>> _joined(["3"]), _joined(["3", "1"]), _joined(["3", "1", "4", "0", "5"])
    ('3', '3 and 1', '3, 1, 4 and 2 more')
    """
    words = names[:MOST_TOLD]
    if len(names) > MOST_TOLD:
        words.append(f"{len(names) - MOST_TOLD} more")
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _pays(advice: Advice, begin: str, nothing: str) -> str:
    if advice.advised is None:
        return f"{nothing} {_why_nothing(advice)}{_still_slow(advice)}"
    said = [
        f"{begin}: {advice.row(advice.advised).scheme.advice}. "
        f"{_saves(advice, advice.advised)}"
    ]
    if advice.as_good:
        said.append(f"Within the error as good: {'; '.join(advice.as_good)}.")
    remedies = {
        "If workers cannot send lengths": advice.without_lengths,
        "If workers cannot ask within a step": advice.beforehand,
    }
    for condition, remedy in remedies.items():
        if remedy not in (None, advice.advised):
            said.append(
                f"{condition}: {advice.row(remedy).scheme.advice}. "
                f"{_saves(advice, remedy)}"
            )
    return " ".join(said)


def _why_nothing(advice: Advice) -> str:
    """Say whether nothing pays, or the log is too short to say that it does."""
    row = next((row for row in advice.rows if advice.may_advise(row)), None)
    if row is None or row.saved.value < WORTH or not row.saved.is_known:
        return "here pays more than 2 %."
    record = "more steps"
    if not advice.recorded:
        record = "chunks, and more steps"
    return (
        f"is advised: {row.remedy} saves {percent(row.saved.value)} %, but perhaps "
        f"nothing ({row.saved.in_percent()} %). Record {record}."
    )


def _saves(advice: Advice, remedy: str) -> str:
    row = advice.row(remedy)
    between = ""
    if advice.several_models and percent(row.range[0]) != percent(row.saved.value):
        what = "chunks are slow, not workers"
        if advice.recorded:
            what = "long chunks have paused"
        between = f", or {percent(row.range[0])} % if {what}"
    return (
        f"It saves {percent(row.saved.value)} % ({row.saved.in_percent()} %){between}."
    )
