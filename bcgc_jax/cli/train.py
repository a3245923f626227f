"""`bcgc train`: schemes side by side on the handwritten digits, on a simulated or a real clock."""

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jax
import numpy as np

from bcgc_jax.cli.answers import describe_delivery, describe_law, num_workers
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.limits import check_size
from bcgc_jax.cli.output import (
    Row,
    beside_the_answer,
    console,
    figure,
    finite,
    one_line_errors,
    print_answer,
    print_rows,
    scheme_column,
    write_rows,
)
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.traces import law_for, read, unit_of, workers_of
from bcgc_jax.cli.train_command import TrainOptions
from bcgc_jax.coding.digits import DigitsRun, digits_problem, train_on_digits
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.measured.traces import Trace
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.baselines import straggler_ratio
from bcgc_jax.solvers.methods import Method
from bcgc_jax.solvers.solve import solve

if TYPE_CHECKING:
    from bcgc_jax.cluster import Step

METHODS = ("uncoded", "single_block", "tandon_partial", "time", "frequency", "optimal")


def _key(question: TrainOptions) -> jax.Array:
    return jax.random.key(question.seed)


def _schemes(question: TrainOptions) -> list[Method]:
    names = question.methods or (*METHODS, *(scheme.name for scheme in question.schemes))
    return list(question.asked(*names).values())


def _training(question: TrainOptions) -> dict[str, Any]:
    """Keywords of a training on either clock."""
    return {
        "units": question.units,
        "num_steps": question.steps,
        "learning_rate": question.learning_rate,
        "batch_size": question.batch_size,
    }


@one_line_errors
def answer(question: TrainOptions) -> None:
    """Of the command."""
    with jax.enable_x64(True):  # for plans and clocks; the model is float32
        trace = read(question.trace)
        problem, steps = _problem(question, trace)
        described = _described(question, problem)
        for method in _schemes(question) if question.methods else []:
            method.check(problem)
        check_size(problem)
        if question.simulated:
            runs = _train_all(question, problem, steps)
        else:
            with _worker_errors(question):
                runs = _train_all_on_cluster(question, problem, steps)
        runs.sort(key=lambda run: run.expected_runtime)
        rows = [_summary(run, problem, question.target) for run in runs]
        document = {"problem": described, "runs": rows}
        print_answer(question.output, rows, document, lambda: _print_table(rows, question, trace))
        if question.curves is not None:
            with beside_the_answer(question.curves):
                _write_curves(question.curves, runs)


def _problem(question: TrainOptions, trace: Trace | None) -> tuple[Problem, np.ndarray | None]:
    """What is planned for, and the steps of a trace, to be replayed."""
    workers, steps = question.workers, None
    law: Distribution | JointDistribution | None = question.cycle_time
    if trace is not None:
        workers = workers_of(question.trace, trace, workers, replayed=True)
        law, steps = law_for(question.trace, trace, workers), trace.rows()
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
    iteration_of(problem).check_finite_means()
    return problem, steps


def _described(question: TrainOptions, problem: Problem) -> dict[str, Any]:
    """The problem in JSON's own values."""
    return {
        "model": question.model,
        "num_workers": num_workers(problem),
        "cycle_time": describe_law(problem.cycle_time),
        "num_coordinates": int(np.asarray(problem.num_coordinates)),
        "num_samples": int(np.asarray(problem.num_samples)),
        **describe_delivery(question.delivery),
        "target": question.target,
    }


@contextlib.contextmanager
def _worker_errors(question: TrainOptions) -> Iterator[None]:
    """Ray could not be started, or no worker is left."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if question.address is not None and isinstance(error, ConnectionError):
            raise click.UsageError(f"--address: {error}") from None
        raise click.ClickException(f"the worker processes failed: {' '.join(str(error).split())}") from None


def _expected_runtimes(question: TrainOptions, problem: Problem) -> dict[Method, float]:
    """Of the schemes that the model can be trained with; those that nobody asked for may be none."""
    found = {}
    for method in _schemes(question):
        try:
            solution = solve(problem, method, key=_key(question))
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


def _train_all_on_cluster(
    question: TrainOptions, problem: Problem, steps: np.ndarray | None
) -> list[DigitsRun]:
    """As `_train_all`, on processes: all schemes use the same ones, in turn."""
    from bcgc_jax.cluster import Cluster, InjectedDelay, Run, Step
    from bcgc_jax.cluster.digits import train_digits_on_cluster

    expected = _expected_runtimes(question, problem)
    times = problem.cycle_time if steps is None else steps
    slowness = InjectedDelay(times, question.pace / min(expected.values())) if question.pace else None
    workers, seeds = num_workers(problem), question.num_seeds
    runs = []
    # What Ray prints goes to the screen, not into a table or a file.
    bar = Progress(f"starting {workers} processes", len(expected) * seeds * question.steps)
    quiet = contextlib.redirect_stdout(sys.stderr)
    with quiet, bar, Cluster(workers, address=question.address) as cluster:
        for method in expected:
            found = []

            def told(step: Step, name: str = method.name) -> None:
                bar.now(_course(step, name, workers))
                bar.advance()

            for number, key in enumerate(jax.random.split(_key(question), seeds)):
                named = f"{method.name.replace(':', '-')}-{number}"
                keep = None if question.checkpoints is None else Path(question.checkpoints) / named
                given = key, Run(cluster, slowness, keep, after_step=told), problem, question.model, method
                bar.now(f"training with {method.name}")
                found.append(train_digits_on_cluster(*given, **_training(question)).run)
            rows = (np.concatenate([getattr(f, n) for f in found]) for n in ("clock", "loss", "accuracy"))
            runs.append(DigitsRun(method.name, found[0].expected_runtime, *rows))
    return runs


def _course(step: "Step", method: str, workers: int) -> str:
    """What a bar says of an iteration: the scheme of now too, if it is another, and how many are left."""
    scheme = method if step.scheme == method else f"{method}, now {step.scheme}"
    left = "" if step.num_workers == workers else f", {step.num_workers} of {workers} workers"
    return f"{scheme}{left}: loss {float(step.metrics['loss']):.3f}, {step.seconds:.2g} s an iteration"


def _train_all(question: TrainOptions, problem: Problem, steps: np.ndarray | None) -> list[DigitsRun]:
    """One run for each method. Methods nobody asked for may be impossible."""
    runs, refused = [], ValueError("no scheme was asked for")
    given, schemes = (_key(question), problem, question.model), _schemes(question)
    options = {"cycle_times": steps, "num_seeds": question.num_seeds, **_training(question)}
    with Progress(total=len(schemes)) as bar:
        for method in schemes:
            bar.now(f"training with {method.name}")
            try:
                runs.append(interruptible(functools.partial(train_on_digits, *given, method, **options)))
            except ValueError as error:
                if question.methods:
                    raise
                refused = error
            bar.advance()
    if not runs:
        raise refused
    return runs


def _summary(run: DigitsRun, problem: Problem, target: float) -> Row:
    steps = run.clock.shape[1]
    time = run.time_to(target)
    row: Row = {"method": run.method}
    if run.method == "tandon_partial":
        row["alpha"] = finite(straggler_ratio(iteration_of(problem).pooled()))
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
        write_rows(
            (
                {
                    "method": run.method,
                    "seed": seed,
                    "iteration": step + 1,
                    "time": f"{run.clock[seed, step]:.8g}",
                    "loss": f"{run.loss[seed, step]:.8g}",
                    "accuracy": f"{run.accuracy[seed, step]:.8g}",
                }
                for run in runs
                for seed, step in np.ndindex(run.clock.shape)
            ),
            file=file,
        )


def _print_table(rows: Sequence[Row], question: TrainOptions, trace: Trace | None) -> None:
    real = not question.simulated
    unit, clock = ("(s)", "measured") if real else ("runtime", "simulated")
    columns = [
        scheme_column(),
        (f"expected\n{unit}", figure("expected_runtime")),  # of workers as they are, nothing is expected
        (f"{clock}\n{unit}", figure("mean_runtime", unknown="never")),
        (f"time to {100 * question.target:g} %\naccuracy", figure("time_to_target", unknown="never")),
        ("earliest\nseed", figure("time_to_target_low", unknown="never")),
        ("latest\nseed", figure("time_to_target_high", unknown="never")),
        ("loss at\nthe end", figure("loss", ".4f")),
        ("accuracy at\nthe end", figure("accuracy", ".4f")),
    ]
    print_rows(rows, columns)
    of = f"the median of {question.num_seeds} seeds" if question.num_seeds > 1 else "of one run"
    unit = "seconds" if real else unit_of(trace)
    screen = console()
    screen.print(f"\nTimes in {unit}; to the target {of}. All steps are alike, only the clocks differ.")
    if real:
        screen.print("Measured: mean seconds of an iteration, the messages and the computation included.")
    times = {row["method"]: row["time_to_target"] for row in rows}
    fastest = min(times, key=lambda method: times[method] or np.inf)
    if times.get("uncoded") and fastest != "uncoded":
        saved = 100 * (1 - times[fastest] / times["uncoded"])
        screen.print(f"{fastest} takes {saved:.1f} % less time to the target than the uncoded scheme.")
