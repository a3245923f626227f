"""`bcgc train`: schemes side by side on the handwritten digits, on a simulated or a real clock."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
import jax
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.cli import output, plot
from bcgc_jax.cli.answers import describe_problem, each_possible, num_workers
from bcgc_jax.cli.commands import TrainOptions
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.traces import check_size, planned_for
from bcgc_jax.coding.digits import DigitsRun, digits_problem, train_on_digits
from bcgc_jax.coding.training import what_is_trained
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.words import counted
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.baselines import straggler_ratio
from bcgc_jax.solvers.methods import Method
from bcgc_jax.solvers.solve import solve

if TYPE_CHECKING:
    from bcgc_jax.cluster import Cluster, InjectedDelay, Step

_CURVES = {"time": "clock", "loss": "loss", "accuracy": "accuracy"}
METHODS = ("uncoded", "single_block", "tandon_partial", "time", "frequency", "optimal", "sharing:2")


def answer(question: TrainOptions) -> None:
    with jax.enable_x64(True):  # for plans and clocks; the model is float32
        trace, law, workers = planned_for(
            question, question.cycle_time, question.workers, replayed=True
        )
        steps = None if trace is None else trace.rows()
        names = ("units", "batch_size", "cycles")
        given = {name: getattr(question, name) for name in names} | question.delivery()
        problem = digits_problem(law, workers, question.model, **given)
        problem = replace(problem, **question.passes(float(problem.total), question.cycles))
        iteration_of(problem).check_finite_means()
        schemes = question.asked(*(question.methods or METHODS))
        if question.methods:
            for method in schemes.values():
                method.check(problem)
        check_size(problem)
        train = _train_all if question.simulated else _train_all_on_cluster
        runs = train(question, problem, steps, schemes)
        runs.sort(key=lambda run: run.expected_runtime)
        rows = [_summary(run, problem, question.target) for run in runs]

        def document() -> output.Row:
            described = {"model": question.model, **describe_problem(problem)}
            described["target"] = question.target
            return {"problem": described, "runs": rows}

        def write_curves(path: str) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                output.write_rows(_steps(runs), file=file)

        output.print_answer(question, rows, document, lambda: _print_table(rows, question, trace))
        output.write_beside(question, question.curves, "Every step", write_curves)
        clock = "wall clock (s)"
        if question.simulated:
            clock = "simulated time (cycles × unit of cycle time)"
        output.write_figure(question, lambda: plot.training(_steps(runs), clock=clock))


def _training(question: TrainOptions) -> dict[str, Any]:
    names = ("units", "learning_rate", "batch_size")
    return {"num_steps": question.steps} | {name: getattr(question, name) for name in names}


def _train_all(
    question: TrainOptions, problem: Problem, steps: np.ndarray | None, schemes: dict[str, Method]
) -> list[DigitsRun]:
    more = {"cycle_times": steps, "num_seeds": question.num_seeds, **_training(question)}
    key = jax.random.key(question.seed)

    def train(_: str, method: Method) -> DigitsRun:
        return interruptible(lambda: train_on_digits(key, problem, question.model, method, **more))

    return each_possible(schemes, question.methods and schemes, "training with", train)


def _train_all_on_cluster(
    question: TrainOptions, problem: Problem, steps: np.ndarray | None, schemes: dict[str, Method]
) -> list[DigitsRun]:
    """Train as `_train_all` does, on processes: all schemes use the same ones, in turn."""
    from bcgc_jax.cluster import Cluster, InjectedDelay
    from bcgc_jax.cluster.planning import on_processes

    key = jax.random.key(question.seed)
    workers = num_workers(problem)

    def expected(_: str, method: Method) -> tuple[Method, float]:
        solution = solve(problem, on_processes(method), key=key)
        what_is_trained(solution)
        return method, float(solution.rounded_runtime)

    possible = each_possible(schemes, question.methods and schemes, "planning for", expected)
    pace = None
    if question.pace:
        seconds = question.pace / min(runtime for _, runtime in possible)
        pace = InjectedDelay(problem.cycle_time if steps is None else steps, seconds)
    num_steps = len(possible) * question.num_seeds * question.steps
    bar = Progress(f"starting {counted(workers, 'worker')}", num_steps)
    # What Ray prints goes to the screen, not into a table or a file.
    quiet = contextlib.redirect_stdout(sys.stderr)
    address = question.address
    with _worker_errors(question), quiet, bar, Cluster(workers, address=address) as cluster:
        return [_train_on(cluster, pace, question, problem, one, bar) for one, _ in possible]


def _train_on(
    cluster: "Cluster",
    pace: "InjectedDelay | None",
    question: TrainOptions,
    problem: Problem,
    method: Method,
    bar: Progress,
) -> DigitsRun:
    """Train with one scheme on processes, once for each seed."""
    from bcgc_jax.cluster import Run
    from bcgc_jax.cluster.digits import train_digits_on_cluster

    def told(step: "Step") -> None:
        bar.what = _course(step, method.name, num_workers(problem))
        bar.done += 1

    runs = []
    keys = jax.random.split(jax.random.key(question.seed), question.num_seeds)
    for number, key in enumerate(keys):
        folder = None
        if question.checkpoints is not None:
            folder = question.checkpoints / f"{method.name.replace(':', '-')}-{number}"
        run = Run(cluster, pace, folder, after_step=told)
        bar.what = f"training with {method.name}"
        given = (key, run, problem, question.model, method)
        runs.append(train_digits_on_cluster(*given, **_training(question))[0])
    curves = (np.concatenate([getattr(one, of) for one in runs]) for of in _CURVES.values())
    return DigitsRun(method.name, runs[0].expected_runtime, *curves)


@contextlib.contextmanager
def _worker_errors(question: TrainOptions) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if question.address is not None and isinstance(error, ConnectionError):
            raise click.UsageError(f"--address: {error}") from None
        text = " ".join(str(error).split())
        raise click.ClickException(f"the worker processes failed: {text}") from None


def _course(step: "Step", method: str, workers: int) -> str:
    """What a bar says of a step: the scheme of now too, if it is another, and how many are left."""
    scheme = method if step.scheme == method else f"{method}, now {step.scheme}"
    left = "" if step.num_workers == workers else f", {step.num_workers} of {workers} workers"
    return f"{scheme}{left}: loss {float(step.metrics['loss']):.3f}, {step.seconds:.2g} s a step"


def _summary(run: DigitsRun, problem: Problem, target: float) -> output.Row:
    steps = run.clock.shape[1]
    time = run.time_to(target)
    row: output.Row = {
        "method": run.method,
        "expected_runtime": run.expected_runtime,
        "mean_runtime": run.clock[:, -1].mean() / steps,
        "fresh_runtime": None if run.fresh is None else run.fresh.mean(),
        "time_to_target": np.median(time),
        "time_to_target_low": time.min(),
        "time_to_target_high": time.max(),
        "loss": run.loss[:, -1].mean(),
        "accuracy": run.accuracy[:, -1].mean(),
    }
    if run.method == "tandon_partial":
        row["alpha"] = output.finite(straggler_ratio(iteration_of(problem).pooled()))
    return row


def _steps(runs: Sequence[DigitsRun]) -> list[output.Row]:
    return [
        {"method": run.method, "seed": seed, "step": step + 1}
        | {name: float(f"{getattr(run, of)[seed, step]:.8g}") for name, of in _CURVES.items()}
        for run in runs
        for seed, step in np.ndindex(run.clock.shape)
    ]


def _print_table(rows: Sequence[output.Row], question: TrainOptions, trace: Trace | None) -> None:
    real = not question.simulated
    seeds = question.num_seeds
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
    of = f"the median of {seeds} seeds" if seeds > 1 else "of one run"
    if real:
        unit = "seconds"
    elif trace is None:
        unit = "the cycle time's unit"
    else:
        unit = "seconds times cycles"
    lines = [f"\nTimes in {unit}; to the target {of}. All steps are alike, only the clocks differ."]
    if real:
        lines.append("Measured: mean seconds of a step, the messages and the computation included.")
    else:
        simulated = "Simulated: each first ends the pass that it has begun."
        lines.append(f"Expected: all workers begin at once. {simulated}")
    times = {row["method"]: row["time_to_target"] for row in rows}
    fastest = min(times, key=lambda method: times[method])
    if fastest != "uncoded" and np.isfinite(times.get("uncoded", np.inf)):
        saved = f"{100 * (1 - times[fastest] / times['uncoded']):.1f} % less time to the target"
        lines.append(f"{fastest} takes {saved} than the uncoded scheme.")
    output.print_lines(*lines)
