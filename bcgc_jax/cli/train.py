"""`bcgc train`: schemes side by side on the handwritten digits, on a simulated or a real clock."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jax
import numpy as np

from bcgc_jax.cli.arguments import refuse_without_effect
from bcgc_jax.cli.deliveries import Delivery
from bcgc_jax.cli.destinations import check_file
from bcgc_jax.cli.ending import interruptible
from bcgc_jax.cli.estimates import Cost, announce, cost_of_all
from bcgc_jax.cli.law_output import describe_delivery, describe_law
from bcgc_jax.cli.names import ENGINES
from bcgc_jax.cli.output import (
    beside_the_answer,
    console,
    finite,
    names,
    one_line_errors,
    print_table,
    row_label,
    table,
    write_json,
    write_rows,
)
from bcgc_jax.cli.traces import TraceFile, need_one_law
from bcgc_jax.cli.waiting import progress
from bcgc_jax.coding.digits import DigitsRun, digits_problem, train_on_digits
from bcgc_jax.laws import JointLaw, Law
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.baselines import straggler_ratio
from bcgc_jax.solvers.method import check_finite_mean
from bcgc_jax.solvers.methods import Method, method_of
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import solve

if TYPE_CHECKING:
    from bcgc_jax.cluster import Step

METHODS = ("uncoded", "single_block", "tandon_partial", "time", "frequency", "optimal")

Row = dict[str, Any]

_A_STEP = 1e-6  # seconds of a step on the simulated clock, for each N^2.5


@dataclasses.dataclass(frozen=True)
class Question:
    """What `bcgc train` was asked: its options."""

    workers: int | None
    cycle_time: Law | None
    trace: TraceFile | None
    model: str
    methods: tuple[str, ...]
    units: str
    cycles: float
    setup_cycles: float | None
    delivery: Delivery
    steps: int
    seeds: int | None
    learning_rate: float
    batch_size: int | None
    target: float
    seed: int
    engine: str
    pace: float
    address: str | None
    checkpoints: str | None
    resume: bool
    curves: str | None
    schemes: list[Scheme]
    output: str

    def __post_init__(self) -> None:
        need_one_law(self.cycle_time is not None, self.trace)
        self.delivery.refuse_unlike([], self.trace is not None and self.trace.keep_workers)
        if self.simulated:
            refuse_without_effect("without --engine ray", "pace", "address", "checkpoints", "resume")
        self._check_checkpoints()
        if self.methods and not {scheme.name for scheme in self.schemes} & {*self.methods}:
            refuse_without_effect("unless a --method is one of these", "schemes")
        if self.target > 1:
            raise click.UsageError("--target is an accuracy, from 0 to 1")
        if self.curves is not None:
            check_file("--curves", self.curves)

    def _check_checkpoints(self) -> None:
        if self.checkpoints is None:
            if self.resume:
                raise click.UsageError("--resume goes on with what --checkpoints DIR holds: give that too")
            return
        folder = Path(self.checkpoints)
        if folder.exists() and not folder.is_dir():
            raise click.UsageError(f"--checkpoints: {folder} is no folder")
        filled = folder.is_dir() and any(folder.iterdir())
        if filled and not self.resume:
            raise click.UsageError(
                f"--checkpoints: {folder} holds a training already: go on with it (--resume), or take "
                "another folder"
            )
        if self.resume and not filled:
            raise click.UsageError(f"--resume: {folder} holds no training to go on with")

    @property
    def simulated(self) -> bool:
        return self.engine == ENGINES[0]

    @property
    def num_seeds(self) -> int:
        return self.seeds or (8 if self.simulated else 1)

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.seed)

    @property
    def shown_methods(self) -> list[Method | Scheme]:
        names = self.methods or (*METHODS, *(scheme.name for scheme in self.schemes))
        for name in ("deadline", "limit"):
            if name in names:
                raise click.UsageError(f'"{name}" is no scheme to train with')
        return [method_of(name, self.schemes) for name in dict.fromkeys(names)]

    @property
    def training(self) -> dict[str, Any]:
        """Keywords of a training on either clock."""
        return {
            "units": self.units,
            "num_steps": self.steps,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
        }


@one_line_errors
def answer(**options: Any) -> None:
    """Of the options of the command."""
    question = Question(**options)
    with jax.enable_x64(True):
        problem, steps = _problem(question)
        described = _described(question, problem)
    for method in question.shown_methods if question.methods else []:
        method.check(problem)
    _announce(question, problem)
    if question.simulated:
        runs = _train_all(question, problem, steps)
    else:
        with _worker_errors(question):
            runs = _train_all_on_cluster(question, problem, steps)
    rows = [_summary(run, problem, question.target) for run in runs]
    if question.output == "json":
        write_json({"problem": described, "runs": rows})
    elif question.output == "csv":
        write_rows(rows)
    else:
        _print_table(rows, question)
    if question.curves is not None:
        with beside_the_answer(question.curves):
            _write_curves(question.curves, runs)


def _problem(question: Question) -> tuple[Problem, np.ndarray | None]:
    """What is planned for, and the steps of a trace, to be replayed."""
    workers, steps = question.workers, None
    law: Law | JointLaw | None = question.cycle_time
    if question.trace is not None:
        trace = question.trace.read()
        workers = question.trace.num_workers(trace, workers, replayed=True)
        law, steps = question.trace.law(trace, workers), trace.rows()
    if workers is None:
        raise click.UsageError("give the number of workers with --workers")
    assert law is not None
    problem = digits_problem(
        law,
        workers,
        question.model,
        units=question.units,
        batch_size=question.batch_size,
        cycles=question.cycles,
        setup_cycles=question.setup_cycles,
        **question.delivery.keywords(),
    )
    check_finite_mean(problem)
    return problem, steps


def _announce(question: Question, problem: Problem) -> None:
    """That it takes long, where it does; what real processes take was asked for, by their pace."""
    methods = question.shown_methods
    with jax.enable_x64(True):
        cost, _ = cost_of_all(problem, methods)
    if question.simulated:
        steps = len(methods) * question.num_seeds * question.steps
        cost = cost.after(Cost(steps * _A_STEP * _workers(problem) ** 2.5))
    announce(cost, "quicker: fewer --steps, --seeds or --workers")


def _workers(problem: Problem) -> int:
    return int(np.asarray(problem.num_workers))


def _described(question: Question, problem: Problem) -> dict[str, Any]:
    """The problem in JSON's own values."""
    return {
        "model": question.model,
        "num_workers": _workers(problem),
        "cycle_time": describe_law(problem.cycle_time),
        "num_coordinates": int(np.asarray(problem.num_coordinates)),
        "num_samples": int(np.asarray(problem.num_samples)),
        **describe_delivery(question.delivery),
        "target": question.target,
    }


@contextlib.contextmanager
def _worker_errors(question: Question) -> Iterator[None]:
    """Ray could not be started, or no worker is left."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if question.address is not None and isinstance(error, ConnectionError):
            raise click.UsageError(f"--address: {error}") from None
        raise click.ClickException(f"the worker processes failed: {' '.join(str(error).split())}") from None


def _expected_runtimes(question: Question, problem: Problem) -> dict[Method | Scheme, float]:
    """Of the schemes that the model can be trained with; those that nobody asked for may be none."""
    found = {}
    for method in question.shown_methods:
        try:
            solution = solve(problem, method, key=question.key)
            nothing = solution.plan is None or not solution.plan.trainable
            if solution.status == Status.INFEASIBLE or nothing:
                raise ValueError(
                    f'"{method.name}" is no scheme that {question.model} can be trained with here'
                )
        except ValueError:
            if question.methods:
                raise
            continue
        found[method] = float(solution.rounded_runtime)
    if not found:
        raise ValueError("no scheme is possible for this problem")
    return found


def _train_all_on_cluster(question: Question, problem: Problem, steps: np.ndarray | None) -> list[DigitsRun]:
    """As `_train_all`, on processes: all schemes use the same ones, in turn."""
    from bcgc_jax.cluster import Cluster, Pace, Step
    from bcgc_jax.cluster.digits import train_digits_on_cluster

    with jax.enable_x64(True):
        expected = _expected_runtimes(question, problem)
    times = problem.cycle_time if steps is None else steps
    slowness = Pace(times, question.pace / min(expected.values())) if question.pace else None
    workers, seeds = _workers(problem), question.num_seeds
    runs = []
    # What Ray prints goes to the screen, not into a table or a file.
    with (
        contextlib.redirect_stdout(sys.stderr),
        progress() as bar,
        jax.enable_x64(True),  # for the plan; the model is float32
    ):
        task = bar.add_task(f"starting {workers} processes", total=len(expected) * seeds * question.steps)
        with Cluster(workers, address=question.address) as cluster:
            for method in expected:
                found = []
                for number, key in enumerate(jax.random.split(question.key, seeds)):
                    named = f"{method.name.replace(':', '-')}-{number}"
                    keep = None if question.checkpoints is None else Path(question.checkpoints) / named
                    given = key, cluster, problem, question.model, method
                    more = {**question.training, "pace": slowness, "folder": keep}
                    bar.update(task, description=f"training with {method.name}")

                    def told(step: Step, name: str = method.name) -> None:
                        bar.update(task, description=_course(step, name, workers))
                        bar.advance(task)

                    found.append(train_digits_on_cluster(*given, **more, after_step=told).run)
                rows = (np.concatenate([getattr(f, n) for f in found]) for n in ("clock", "loss", "accuracy"))
                runs.append(DigitsRun(method.name, found[0].expected_runtime, *rows))
    return sorted(runs, key=lambda run: run.expected_runtime)


def _course(step: "Step", method: str, workers: int) -> str:
    """What a bar says of an iteration: the scheme of now too, if it is another, and how many are left."""
    scheme = method if step.scheme == method else f"{method}, now {step.scheme}"
    left = "" if step.num_workers == workers else f", {step.num_workers} of {workers} workers"
    return f"{scheme}{left}: loss {float(step.metrics['loss']):.3f}, {step.seconds:.2g} s an iteration"


def _train_all(question: Question, problem: Problem, steps: np.ndarray | None) -> list[DigitsRun]:
    """One run for each method, shortest iteration first. Methods nobody asked for may be impossible."""
    runs, refused = [], ValueError("no scheme was asked for")
    options = {"cycle_times": steps, "num_seeds": question.num_seeds, **question.training}
    with progress() as bar:
        task = bar.add_task("training", total=len(question.shown_methods))
        for method in question.shown_methods:
            bar.update(task, description=f"training with {method.name}")
            try:
                with jax.enable_x64(True):  # for the plan and the clock; the model is float32
                    train = functools.partial(train_on_digits, question.key, problem, question.model, method)
                    runs.append(interruptible(functools.partial(train, **options)))
            except ValueError as error:
                if question.methods:
                    raise
                refused = error
            bar.advance(task)
    if not runs:
        raise refused
    return sorted(runs, key=lambda run: run.expected_runtime)


def _summary(run: DigitsRun, problem: Problem, target: float) -> Row:
    steps = run.clock.shape[1]
    time = run.time_to(target)
    row: Row = {"method": run.method}
    if run.method == "tandon_partial":
        with jax.enable_x64(True):
            row["alpha"] = finite(straggler_ratio(problem.iteration.pooled()))
    return row | {
        "expected_runtime": finite(run.expected_runtime),
        "mean_runtime": finite(run.clock[:, -1].mean() / steps),
        "time_to_target": finite(np.median(time)),
        "time_to_target_low": finite(time.min()),
        "time_to_target_high": finite(time.max()),
        "loss": finite(run.loss[:, -1].mean()),
        "accuracy": finite(run.accuracy[:, -1].mean()),
    }


def _write_curves(path: str, runs: Sequence[DigitsRun]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        columns = ("method", "seed", "iteration", "time", "loss", "accuracy")
        write_rows(_iterations(runs), columns, file=file)


def _iterations(runs: Sequence[DigitsRun]) -> Iterator[Row]:
    for run in runs:
        for seed in range(len(run.clock)):
            course = zip(run.clock[seed], run.loss[seed], run.accuracy[seed], strict=True)
            for step, (time, loss, accuracy) in enumerate(course, 1):
                known = {"time": time, "loss": loss, "accuracy": accuracy}
                texts = {name: f"{value:.8g}" for name, value in known.items()}
                yield {"method": run.method, "seed": seed, "iteration": step, **texts}


def _print_table(rows: Sequence[Row], question: Question) -> None:
    seeds, target, real = question.num_seeds, question.target, not question.simulated

    def number(name: str, value: float | None) -> str:
        if value is not None:
            return f"{value:.4g}"
        # Of workers as they are, nothing is expected.
        return "–" if name == "expected_runtime" else "never"

    unit, clock = ("(s)", "measured") if real else ("runtime", "simulated")
    compared = table(
        names("scheme"),
        f"expected\n{unit}",
        f"{clock}\n{unit}",
        f"time to {100 * target:g} %\naccuracy",
        "earliest\nseed",
        "latest\nseed",
        "loss at\nthe end",
        "accuracy at\nthe end",
    )
    shown = (
        "expected_runtime",
        "mean_runtime",
        "time_to_target",
        "time_to_target_low",
        "time_to_target_high",
    )
    for row in rows:
        ends = ["–" if row[k] is None else f"{row[k]:.4f}" for k in ("loss", "accuracy")]
        compared.add_row(row_label(row), *(number(k, row[k]) for k in shown), *ends)
    screen = console()
    print_table(compared)
    of = f"the median of {seeds} seeds" if seeds > 1 else "of one run"
    unit = "seconds" if real or question.trace is not None else "the cycle time's unit"
    screen.print(f"\nTimes in {unit}; to the target {of}. All steps are alike, only the clocks differ.")
    if real:
        screen.print("Measured: mean seconds of an iteration, the messages and the computation included.")
    times = {row["method"]: row["time_to_target"] for row in rows}
    fastest = min(times, key=lambda m: times[m] or np.inf)
    if times.get("uncoded") and fastest != "uncoded":
        saved = 100 * (1 - times[fastest] / times["uncoded"])
        screen.print(f"{fastest} takes {saved:.1f} % less time to the target than the uncoded scheme.")
