"""`bcgc fit`: from a log of measured times to distributions, and plans for them."""

from pathlib import Path
from typing import Any

import jax

from bcgc_jax.cli import figures, output
from bcgc_jax.cli.columns import FITS, PLANS, flat, values
from bcgc_jax.cli.commands import FitOptions
from bcgc_jax.cli.compilation import save_plan
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.fit_answer import FitAnswer, found_in
from bcgc_jax.cli.fit_table import print_answer
from bcgc_jax.cli.logs import log_name
from bcgc_jax.cli.progress import Progress


def answer(question: FitOptions) -> None:
    with jax.enable_x64(True):
        with Progress("reading") as bar:
            fit_answer = interruptible(lambda: found_in(question, bar))
        file = Path(log_name(question.trace)).name
        rows = [flat(FITS, fit) for fit in fit_answer.fits]
        laws = [(fit.name, fit.distribution) for fit in fit_answer.fits]

        def draw() -> Any:
            return figures.fits(
                fit_answer.times.seconds, fit_answer.times.censored, laws
            )

        def write(path: str) -> None:
            save_plan(fit_answer.best, fit_answer.best.problem, path)

        output.print_answer(
            question,
            rows,
            lambda: _json(fit_answer),
            lambda: print_answer(file, fit_answer),
        )
        output.write_figure(question, draw)
        planned = f"The plan for {fit_answer.plans[0].distribution}"
        output.write_beside(question, question.out, planned, write)


def _json(answer: FitAnswer) -> output.Row:
    trace = answer.description._asdict()
    lost = trace.pop("slowness")
    for name in ("step", "balanced", "causes", "together"):
        if lost is None:
            trace[name] = None
        else:
            trace[name] = getattr(lost, name)
    if lost is None:
        trace["slow_workers"] = []
    else:
        trace["slow_workers"] = [worker._asdict() for worker in lost.slow_workers]
    fits = [values(FITS, row) for row in answer.fits]
    plans = [values(PLANS, plan) for plan in answer.plans]
    return {
        "trace": trace,
        "remarks": answer.remarks,
        "fits": fits,
        "plans": plans,
    }
