"""`bcgc fit`: from a log of measured times to a law, and to the plans that this and other laws lead to."""

import contextlib
import csv
import json
import sys
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bcgc_jax.cli.arguments import SEED, Number, finite, format_option, trace_options
from bcgc_jax.cli.compilation import padded_workers
from bcgc_jax.cli.output import progress
from bcgc_jax.laws import Empirical, Law
from bcgc_jax.measured.description import Description, describe
from bcgc_jax.measured.fits import MAX_TIMES, Fit, fit_laws
from bcgc_jax.measured.likelihood import FAMILIES
from bcgc_jax.measured.smooth import smooth_empirical, smooth_law_and_tail
from bcgc_jax.measured.traces import Trace, load_trace
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import block_runtime, expected_runtime
from bcgc_jax.solvers.solve import FEW_UNITS, solve

# The optimum for K atoms takes K N³ operations a step: at most this many, which is some ten seconds.
_ATOMS, _FEWEST_ATOMS = 2e7, 100
_SHOWN = 3  # laws in the picture, beside the smooth one


@click.command(
    name="fit",
    short_help="Which law describes a trace, and what plan follows.",
    epilog="""\b
Examples:
  bcgc fit steps.csv
  bcgc fit steps.csv --figure fit.png --law gamma --law lognormal
  bcgc fit log.parquet --worker-column rank --seconds-column time_s --coordinates 1e6 --format json
  bcgc fit cut.csv --censored-column cut""",
)
@click.argument("file", type=click.Path())
@trace_options
@click.option("--law", "laws", multiple=True, help="Law to fit; repeat it; all by default.")
@click.option(
    "--workers", type=Number(1, include=True, whole=True), help="N of the plans; those of the trace."
)
@click.option(
    "--coordinates",
    type=Number(1, include=True, whole=True),
    default=1_000_000,
    show_default=True,
    help="L of the plans.",
)
@click.option("--samples", type=Number(), default=1, show_default=True, help="M, samples over all workers.")
@click.option(
    "--cycles", type=Number(), default=1, show_default=True, help="b, CPU cycles per coordinate and sample."
)
@click.option(
    "--replicates",
    type=Number(20, include=True, whole=True),
    default=200,
    show_default=True,
    help="Samples behind each standard error and p-value.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of these samples.")
@click.option("--figure", type=click.Path(), help="Also draw quantiles and survival: .png, .svg or .pdf.")
@format_option
def fit_command(
    file: str,
    columns: dict[str, Any],
    laws: tuple[str, ...],
    workers: int | None,
    coordinates: int,
    samples: float,
    cycles: float,
    replicates: int,
    seed: int,
    figure: str | None,
    output: str,
) -> None:
    """Which law describes the cycle times in FILE, how sure is that, and how much does the plan depend on it?

    FILE is CSV or Parquet: a row for each step and worker, or a row for each step and a column for each
    worker. Times, and the parameters that are times, carry the unit of the file.
    """
    if figure is not None:
        _check_figure(figure)
    with jax.enable_x64(True), _progress() as bar:
        try:
            task = bar.add_task("reading", total=1.0)
            trace = load_trace(file, **columns, progress=lambda share: bar.update(task, completed=share))
            bar.update(task, description="describing", completed=0)
            description = describe(trace)
            names = list(laws) or None
            bar.update(task, total=len(laws) or len(FAMILIES))

            def advance(name: str) -> None:
                bar.update(task, description=f"fitting {name}")
                bar.advance(task)

            fits = fit_laws(
                jax.random.key(seed),
                trace.seconds,
                trace.censored,
                laws=names,
                num_replicates=replicates,
                progress=advance,
            )
            number = workers or trace.num_workers
            if number < 2:
                raise ValueError(
                    f"{file} has one worker only: say with --workers how many such workers the plan is for"
                )
            known = _laws(trace, fits, number)
            bar.update(task, total=len(known), completed=0)
            plans, table = [], trace.table()
            steps = table[np.isfinite(table).all(axis=1)]
            for name, law in known.items():
                bar.update(task, description=f"planning for {name}")
                plans.append(_plan(name, law, steps, known, (number, coordinates, samples, cycles)))
                bar.advance(task)
            if figure is not None:
                _draw(figure, trace, fits, known)
        except OSError as error:
            raise click.UsageError(f"cannot read {file}: {error.strerror or error}") from None
        except (ValueError, ImportError) as error:
            raise click.UsageError(str(error)) from None
    if output == "json":
        answer = {
            "trace": _description_row(description),
            "remarks": description.remarks(),
            "fits": [_fit_row(fit) for fit in fits],
            "plans": plans,
        }
        click.echo(json.dumps(answer, indent=2))
    elif output == "csv":
        rows = [_fit_row(fit) for fit in fits]
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            flat = {
                k: " ".join(f"{a}={b:.6g}" for a, b in v.items())
                for k, v in row.items()
                if isinstance(v, dict)
            }
            writer.writerow(row | flat)
    else:
        _print(file, description, fits, plans, trace)
        if figure is not None:
            click.echo(f"\nFigure: {figure}")


def _progress() -> Progress:
    return progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())


def _check_figure(path: str) -> None:
    from bcgc_jax.plotting import require_matplotlib

    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--figure must end in .png, .svg or .pdf, got {path!r}")
    if not Path(path).absolute().parent.is_dir():
        raise click.UsageError(f"--figure: there is no folder {Path(path).absolute().parent}")
    try:
        require_matplotlib()
    except ImportError as error:
        raise click.UsageError(str(error)) from None


def _laws(trace: Trace, fits: list[Fit], workers: int) -> dict[str, Law]:
    """What to plan for: the best fit, the measured times themselves, smooth versions of them."""
    known: dict[str, Law] = {fits[0].name: fits[0].law}
    # Too few times, or too few different ones: the atoms are all there is.
    with contextlib.suppress(ValueError):
        heavy, tail = smooth_law_and_tail(trace.seconds, trace.censored, pareto_tail=True)
        if tail.tail_index > 0:
            known["smooth"] = smooth_empirical(trace.seconds, trace.censored)
            known["smooth, Pareto tail"] = heavy
        else:  # the tail is exponential either way
            known["smooth"] = heavy
    if not trace.censored.any():
        most = int(_ATOMS / workers**3)  # for many workers too few to say much
        times = np.sort(trace.seconds)
        if times.size > most >= _FEWEST_ATOMS:
            # Neighbours become one atom, their mean: equal shares of the integral of the quantile function.
            integral = np.interp(
                np.linspace(0, 1, most + 1), np.linspace(0, 1, times.size + 1), np.cumsum(np.r_[0, times])
            )
            times = np.diff(integral) * most / times.size
        if times.size <= most:
            known["measured times"] = Empirical(times)
    # No plan has a finite runtime under a law without a mean; the others have theirs.
    finite_mean = {name: law for name, law in known.items() if np.isfinite(float(law.mean()))}
    if not finite_mean:
        raise ValueError("the mean of the best law is infinite, and so is every plan's expected runtime")
    return finite_mean


def _plan(
    name: str, law: Law, steps: np.ndarray, known: dict[str, Law], question: tuple[int, int, float, float]
) -> dict[str, Any]:
    """The optimum under `law`, and how long it takes under every law, and in the whole `steps` of a trace."""
    workers, coordinates, samples, cycles = question

    def problem(law: Law) -> Problem:
        # A search over whole units takes N² trials: padding would be felt.
        size = workers if coordinates <= FEW_UNITS else padded_workers(workers, law)
        return Problem(law, workers, coordinates, samples, cycles, max_workers=size)

    def runtime(problem: Problem) -> float | None:
        padded = np.zeros(problem.max_workers, counts.dtype)
        padded[:workers] = counts
        return finite(expected_runtime(problem, padded))

    solution = solve(problem(law))
    counts = np.asarray(solution.rounded)[:workers]
    runtimes = {other: runtime(problem(law)) for other, law in known.items()}
    row: dict[str, Any] = {
        "law": name,
        "expected_runtime": finite(solution.expected_runtime),
        "relative_gap": finite(solution.relative_gap),
        "status": Status(int(solution.status)).name.lower(),
        "partition": counts.tolist(),
        "runtime_under": runtimes,
        "replayed_runtime": None,
        "replayed_error": None,
    }
    if workers == steps.shape[1] and len(steps) > 1:
        replayed = np.asarray(block_runtime(counts, steps, num_samples=samples, cycles=cycles))
        row["replayed_runtime"] = float(replayed.mean())
        row["replayed_error"] = float(replayed.std(ddof=1) / np.sqrt(len(replayed)))
    return row


def _draw(path: str, trace: Trace, fits: list[Fit], known: dict[str, Law]) -> None:
    from bcgc_jax.cli.fit_figure import draw_fit

    laws = {fit.name: fit.law for fit in fits[:_SHOWN]}
    laws |= {name: law for name, law in known.items() if name.startswith("smooth")}
    try:
        draw_fit(trace.seconds, laws, trace.censored).savefig(path, dpi=200)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None


def _fit_row(fit: Fit) -> dict[str, Any]:
    return {
        "law": fit.name,
        "parameters": fit.parameters,
        "standard_errors": fit.standard_errors,
        "log_likelihood": finite(fit.log_likelihood),
        "aic": finite(fit.aic),
        "kolmogorov_smirnov": finite(fit.kolmogorov_smirnov),
        "kolmogorov_smirnov_pvalue": finite(fit.kolmogorov_smirnov_pvalue),
        "anderson_darling": finite(fit.anderson_darling),
        "anderson_darling_pvalue": finite(fit.anderson_darling_pvalue),
        "num_times": fit.num_times,
    }


def _description_row(description: Description) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return [finite(v) for v in value] if isinstance(value, tuple) else finite(value)

    return {
        name: value if isinstance(value, int) else plain(value)
        for name, value in description._asdict().items()
    }


def _print(
    file: str, description: Description, fits: list[Fit], plans: list[dict[str, Any]], trace: Trace
) -> None:
    console = Console(width=100, highlight=False, file=sys.stdout)
    d = description
    console.print(
        f"{Path(file).name}: {d.num_times} times of {d.num_workers} workers over {d.num_steps} steps"
        + (f", {d.num_missing} cells missing" if d.num_missing else "")
        + (f", {d.num_censored} cut off" if d.num_censored else ""),
        markup=False,
    )
    console.print(
        f"mean {d.mean:.4g}, standard deviation {d.deviation:.3g}, median {d.median:.4g}, "
        f"99 % {d.high:.4g}, largest {d.largest:.4g}"
    )
    console.print(
        f"variance between workers {d.between_workers}, common to a step {d.between_steps}\n"
        f"correlation from step to step {d.autocorrelation}, tail index {d.tail_index}\n"
        "(with 95 % intervals)\n"
    )
    for remark in d.remarks():
        console.print(remark)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("law", no_wrap=True)
    table.add_column("parameters ± standard error")
    table.add_column("AIC above\nbest", justify="right")
    for name in ("Kolmogorov–\nSmirnov", "p", "Anderson–\nDarling", "p"):
        table.add_column(name, justify="right")
    for fit in fits:
        values = [
            f"{name} {value:.4g} ± {fit.standard_errors[name]:.2g}" for name, value in fit.parameters.items()
        ]
        table.add_row(
            fit.name,
            ", ".join(values),
            f"{fit.aic - fits[0].aic:.1f}",
            f"{fit.kolmogorov_smirnov:.4f}",
            _pvalue(fit.kolmogorov_smirnov_pvalue),
            f"{fit.anderson_darling:.3g}",
            _pvalue(fit.anderson_darling_pvalue),
        )
    console.print(table)
    console.print(_verdict(fits))
    if trace.seconds.size > MAX_TIMES:
        console.print(f"Fitted to {MAX_TIMES} of the {trace.seconds.size} times, drawn at random.")
    _print_plans(console, plans)


def _pvalue(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def _verdict(fits: list[Fit]) -> str:
    best = fits[0]
    alike = [fit.name for fit in fits[1:] if fit.aic - best.aic < 2]
    text = f"\nBest: {best.name}"
    if alike:
        text += f"; {' and '.join(alike)} cannot be told from it"
    if min(best.anderson_darling_pvalue, best.kolmogorov_smirnov_pvalue) < 0.05:
        text += ". Even it does not describe the times (p < 0.05): plan for the measured ones."
    else:
        text += ", and the times may well come from it."
    return text


def _print_plans(console: Console, plans: list[dict[str, Any]]) -> None:
    laws = list(plans[0]["runtime_under"])
    console.print()
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title="Expected runtime of each plan",
        title_justify="left",
    )
    table.add_column("plan for", no_wrap=True)
    for law in laws:
        table.add_column(f"under\n{law}", justify="right")
    replayed = plans[0]["replayed_runtime"] is not None
    if replayed:
        table.add_column("in the steps of\nthe trace", justify="right")
    for plan in plans:
        cells = [_runtime(plan["runtime_under"][law]) for law in laws]
        if replayed:
            cells.append(f"{plan['replayed_runtime']:.5g} ± {plan['replayed_error']:.2g}")
        table.add_row(plan["law"], *cells)
    console.print(table)
    worst = 0.0
    for law in [law for law in laws if law == "measured times"] or laws:
        values = [plan["runtime_under"][law] for plan in plans]
        if all(v is not None for v in values):
            worst = max(worst, max(values) / min(values) - 1)
    console.print(f"\nThe choice of the law to plan for changes the runtime by at most {100 * worst:.2g} %.")


def _runtime(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.5g}"
