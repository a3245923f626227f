"""`bcgc train`: schemes side by side on the handwritten digits, on a simulated or a real clock."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import jax
import numpy as np

from bcgc_jax.cli import figures, output
from bcgc_jax.cli.answers import describe_delivery, describe_law, num_workers
from bcgc_jax.cli.commands import TrainOptions
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.limits import check_size
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.traces import law_for, read, workers_of
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

T = TypeVar("T")
_CURVES = {"time": "clock", "loss": "loss", "accuracy": "accuracy"}
METHODS = ("uncoded", "single_block", "tandon_partial", "time", "frequency", "optimal")


def answer(question: TrainOptions) -> None:
    with jax.enable_x64(True):  # for plans and clocks; the model is float32
        trace = read(question.trace)
        problem, steps = _problem(question, trace)
        names = question.methods or (*METHODS, *(scheme.name for scheme in question.schemes))
        schemes = list(question.asked(*names).values())
        for method in schemes if question.methods else []:
            method.check(problem)
        check_size(problem)
        train = _train_all if question.simulated else _train_all_on_cluster
        runs = train(question, problem, steps, schemes)
        runs.sort(key=lambda run: run.expected_runtime)
        rows = [_summary(run, problem, question.target) for run in runs]
        described = {
            "model": question.model,
            "num_workers": num_workers(problem),
            "cycle_time": describe_law(problem.cycle_time),
            "num_coordinates": int(np.asarray(problem.num_coordinates)),
            "num_samples": int(np.asarray(problem.num_samples)),
            **describe_delivery(question.delivery),
            "target": question.target,
        }
        document = {"problem": described, "runs": rows}
        output.print_answer(question.output, rows, document, lambda: _print_table(rows, question, trace))
        if question.curves is not None:
            with (
                output.beside_the_answer(question.curves),
                open(question.curves, "w", newline="", encoding="utf-8") as file,
            ):
                output.write_rows(_iterations(runs), file=file)
        if question.figure is not None:
            clock = "simulated time (cycles × unit of cycle time)" if question.simulated else "wall clock (s)"
            draw = functools.partial(figures.training, _iterations(runs), clock=clock)
            output.write_figure(draw, question.figure, told=question.output == "table")


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


def _each_possible(question: TrainOptions, schemes: list[Method], work: Callable[[Method], T]) -> list[T]:
    """What `work` makes of each scheme. Those that nobody asked for may be impossible."""
    found, refused = [], ValueError("no scheme was asked for")
    for method in schemes:
        try:
            found.append(work(method))
        except ValueError as error:
            if question.methods:
                raise
            refused = error
    if not found:
        raise refused
    return found


def _training(question: TrainOptions) -> dict[str, Any]:
    names = ("units", "learning_rate", "batch_size")
    return {"num_steps": question.steps} | {name: getattr(question, name) for name in names}


def _train_all(
    question: TrainOptions, problem: Problem, steps: np.ndarray | None, schemes: list[Method]
) -> list[DigitsRun]:
    key = jax.random.key(question.seed)
    with Progress(total=len(schemes)) as bar:

        def train(method: Method) -> DigitsRun:
            bar.what = f"training with {method.name}"
            more = {"cycle_times": steps, "num_seeds": question.num_seeds, **_training(question)}
            run = interruptible(lambda: train_on_digits(key, problem, question.model, method, **more))
            bar.done += 1
            return run

        return _each_possible(question, schemes, train)


def _train_all_on_cluster(
    question: TrainOptions, problem: Problem, steps: np.ndarray | None, schemes: list[Method]
) -> list[DigitsRun]:
    """As `_train_all`, on processes: all schemes use the same ones, in turn."""
    from bcgc_jax.cluster import Cluster, InjectedDelay, Run, Step
    from bcgc_jax.cluster.digits import train_digits_on_cluster

    key, workers = jax.random.key(question.seed), num_workers(problem)

    def expected(method: Method) -> tuple[Method, float]:
        solution = solve(problem, method, key=key)
        if solution.status == Status.INFEASIBLE or solution.plan is None or not solution.plan.trainable:
            raise ValueError(f'"{method.name}" is no scheme that {question.model} can be trained with here')
        return method, float(solution.rounded_runtime)

    possible = _each_possible(question, schemes, expected)
    times = problem.cycle_time if steps is None else steps
    seconds = question.pace / min(runtime for _, runtime in possible)
    pace, runs = InjectedDelay(times, seconds) if question.pace else None, []
    bar = Progress(f"starting {workers} processes", len(possible) * question.num_seeds * question.steps)
    # What Ray prints goes to the screen, not into a table or a file.
    quiet = contextlib.redirect_stdout(sys.stderr)
    with _worker_errors(question), quiet, bar, Cluster(workers, address=question.address) as cluster:
        for method, _ in possible:
            found = []

            def told(step: Step, name: str = method.name) -> None:
                bar.what = _course(step, name, workers)
                bar.done += 1

            for number, own in enumerate(jax.random.split(key, question.num_seeds)):
                named = f"{method.name.replace(':', '-')}-{number}"
                folder = None if question.checkpoints is None else Path(question.checkpoints) / named
                given = own, Run(cluster, pace, folder, after_step=told), problem, question.model, method
                bar.what = f"training with {method.name}"
                found.append(train_digits_on_cluster(*given, **_training(question))[0])
            rows = (np.concatenate([getattr(f, n) for f in found]) for n in ("clock", "loss", "accuracy"))
            runs.append(DigitsRun(method.name, found[0].expected_runtime, *rows))
    return runs


@contextlib.contextmanager
def _worker_errors(question: TrainOptions) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if question.address is not None and isinstance(error, ConnectionError):
            raise click.UsageError(f"--address: {error}") from None
        raise click.ClickException(f"the worker processes failed: {' '.join(str(error).split())}") from None


def _course(step: "Step", method: str, workers: int) -> str:
    """What a bar says of an iteration: the scheme of now too, if it is another, and how many are left."""
    scheme = method if step.scheme == method else f"{method}, now {step.scheme}"
    left = "" if step.num_workers == workers else f", {step.num_workers} of {workers} workers"
    return f"{scheme}{left}: loss {float(step.metrics['loss']):.3f}, {step.seconds:.2g} s an iteration"


def _summary(run: DigitsRun, problem: Problem, target: float) -> output.Row:
    steps, time = run.clock.shape[1], run.time_to(target)
    row: output.Row = {"method": run.method}
    if run.method == "tandon_partial":
        row["alpha"] = output.finite(straggler_ratio(iteration_of(problem).pooled()))
    return row | {
        "expected_runtime": run.expected_runtime,
        "mean_runtime": run.clock[:, -1].mean() / steps,
        "time_to_target": np.median(time),
        "time_to_target_low": time.min(),
        "time_to_target_high": time.max(),
        "loss": run.loss[:, -1].mean(),
        "accuracy": run.accuracy[:, -1].mean(),
    }


def _iterations(runs: Sequence[DigitsRun]) -> list[output.Row]:
    """Every iteration of every seed."""
    return [
        {"method": run.method, "seed": seed, "iteration": step + 1}
        | {name: float(f"{getattr(run, of)[seed, step]:.8g}") for name, of in _CURVES.items()}
        for run in runs
        for seed, step in np.ndindex(run.clock.shape)
    ]


def _print_table(rows: Sequence[output.Row], question: TrainOptions, trace: Trace | None) -> None:
    real = not question.simulated
    unit, clock = ("(s)", "measured") if real else ("runtime", "simulated")

    def number(head: str, name: str, form: str = ".4g") -> output.Shown:
        return head, output.figure(name, form, "never")

    columns = [
        output.scheme_column(),
        # Of workers as they are, nothing is expected.
        (f"expected\n{unit}", output.figure("expected_runtime")),
        number(f"{clock}\n{unit}", "mean_runtime"),
        number(f"time to {100 * question.target:g} %\naccuracy", "time_to_target"),
        number("earliest\nseed", "time_to_target_low"),
        number("latest\nseed", "time_to_target_high"),
        number("loss at\nthe end", "loss", ".4f"),
        number("accuracy at\nthe end", "accuracy", ".4f"),
    ]
    output.print_rows(rows, columns)
    of = f"the median of {question.num_seeds} seeds" if question.num_seeds > 1 else "of one run"
    unit = "seconds" if real else "the cycle time's unit" if trace is None else "seconds times cycles"
    screen = output.console()
    screen.print(f"\nTimes in {unit}; to the target {of}. All steps are alike, only the clocks differ.")
    if real:
        screen.print("Measured: mean seconds of an iteration, the messages and the computation included.")
    times = {row["method"]: row["time_to_target"] for row in rows}
    fastest = min(times, key=lambda method: times[method])
    if fastest != "uncoded" and np.isfinite(times.get("uncoded", np.inf)):
        saved = 100 * (1 - times[fastest] / times["uncoded"])
        screen.print(f"{fastest} takes {saved:.1f} % less time to the target than the uncoded scheme.")
