"""Uncoded or work sharing, whichever is faster by the clock: the worth of a closed loop.

On traces and where times drift, jump or are tied together: all the time taken by `ClosedLoop`, by
uncoded steps, and by work sharing in every step. Workers store two subsets, the step ends with the
last chunk, nobody is interrupted, and whoever is busy when a step ends joins the next one late.
Each chunk takes a hand-out more, and each change of the scheme a part of a step.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cluster.trials import Trials
from bcgc_jax.plans.passes import unless_starting
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.worker import Load
from experiments.report import each, print_table, readable, run_command, save
from experiments.traces import files_of

# Iterations of a training, and workers of the drifts.
STEPS, WORKERS = 500, 10
CHUNKS = 8
# Of a mean uncoded step: a hand-out, and a change of the scheme.
HAND_OUT, CHANGE = 0.0025, 0.1
# How what a row has saved is drawn.
_MARK: Any = {"linestyle": "", "markersize": 7, "color": "black"}
MARKS: dict[str, Any] = {
    "loop": {"height": 0.6, "color": "0.75", "label": "closed loop, told nothing"},
    "sharing_2": _MARK
    | {"marker": "|", "markeredgewidth": 2.2, "markersize": 13, "label": "sharing:2 in every step"},
    "sharing_3": _MARK | {"marker": "o", "color": "#4477AA", "label": "sharing:3 in every step"},
    "hindsight": _MARK
    | {"marker": "D", "fillstyle": "none", "label": "the better of uncoded and sharing:2"},
}
# Workers of this drift need as long again to begin.
_LATE = "random start-ups"


def recorded(traces: Path) -> dict[str, np.ndarray]:
    """The whole steps of each file, `[K, N]`; once, if another file has the chunks of the same."""
    found: dict[str, np.ndarray] = {}
    for file in files_of(traces):
        table = bcgc.measured.load_trace(file).table()
        steps = table[np.isfinite(table).all(axis=1)]
        others = [one for one in found.values() if one.shape == steps.shape]
        if not any(np.allclose(one, steps, rtol=1e-5, atol=0) for one in others):
            found[file.name.split(".")[0]] = steps
    return found


def drifts(rng: np.random.Generator, steps: int, workers: int) -> dict[str, np.ndarray]:
    """Cycle times, `[K, N]`, by what becomes of them."""
    shape, half = (steps, workers), steps // 2
    jump, turns = np.ones((2, steps, workers))
    jump[half:, :3] = 3  # in the middle three workers become slower
    # every 50 iterations another one is slow
    turns[np.arange(steps), np.arange(steps) // 50 % workers] = 4

    def steady() -> np.ndarray:
        return 0.5 + rng.exponential(0.5, shape)

    return {
        "three workers become slower": jump * steady(),
        # In the middle times that hardly differ become those of a heavy tail.
        "equal times become heavy-tailed": np.r_[
            rng.uniform(1, 1.2, (half, workers)), rng.pareto(2, (steps - half, workers)) + 1
        ],
        "speeds wander": np.exp(np.cumsum(rng.normal(0, 0.05, shape), axis=0)) * steady(),
        "one slow worker, another every 50 steps": turns * steady(),
        # All workers of an iteration are slow together; hardly one is slower than the others.
        "all slow in the same steps": rng.lognormal(0, 1, (steps, 1)) * rng.uniform(1, 1.1, shape),
        "all times equal to 2 %": rng.uniform(1, 1.02, shape),  # nothing to be gained
        _LATE: rng.uniform(0.2, 0.24, shape),
    }


# Of a step: how late each worker is for it, its start-ups and cycle times, `[N]`, to its time and
# how late each is for the next one.
Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, np.ndarray]]


class Row(NamedTuple):
    """Means of all iterations: seconds of the uncoded scheme; saved against it, in percent.

    `hindsight`: by the better of uncoded and work sharing in every step. `shared`: so many of the
    loop's steps, in percent.
    """

    times: str
    workers: int
    steps: int
    uncoded: float
    loop: float
    sharing_2: float
    sharing_3: float
    hindsight: float
    shared: float
    changes: int


@functools.cache
def sharing_step(workers: int, stored: int) -> Step:
    """Return a step of work sharing with the hand-outs of a mean uncoded step of 1."""
    rule = WorkSharing(workers, stored, CHUNKS, ends="sums", round_trip=HAND_OUT)

    @jax.jit
    def step(late: Any, starts: Any, times: Any) -> tuple[Any, Any]:
        end, busy = rule.step(Load(jnp.ones(1), None), False, late + starts, times)
        return end, unless_starting(busy, late, starts, end)

    def found(late: np.ndarray, starts: np.ndarray, times: np.ndarray) -> tuple[float, np.ndarray]:
        end, busy = step(late, starts, times)
        return float(end), np.asarray(busy)

    return found


def uncoded_step(
    late: np.ndarray, starts: np.ndarray, times: np.ndarray
) -> tuple[float, np.ndarray]:
    return float(np.max(late + starts + times)), np.zeros_like(late)


def in_a_row(step: Step, starts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """What steps take one after the other, `[K]`, with start-ups and cycle times `[K, N]`."""
    late, taken = np.zeros(times.shape[1]), np.zeros(len(times))
    for k, row in enumerate(zip(starts, times, strict=True)):
        taken[k], late = step(late, *row)
    return taken


def train(starts: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what steps of a closed loop take, changes too, `[K]`, and which are by sharing."""
    trials, steps = Trials(len(times)), (uncoded_step, sharing_step(times.shape[1], 2))
    late, taken, shared = np.zeros(times.shape[1]), np.zeros(len(times)), np.zeros(len(times), bool)
    for k, row in enumerate(zip(starts, times, strict=True)):
        shared[k] = trials.sharing
        taken[k], late = steps[trials.sharing](late, *row)
        if k and shared[k] != shared[k - 1]:
            taken[k] += CHANGE
        trials.observe(taken[k], trials.sharing)
    return taken, shared


def course(name: str, times: np.ndarray, starts: np.ndarray | None = None) -> Row:
    """A row of the table."""
    starts = np.zeros_like(times) if starts is None else starts
    unit = float(np.max(starts + times, axis=1).mean())
    starts, times = starts / unit, times / unit
    uncoded = in_a_row(uncoded_step, starts, times)
    shared = {
        stored: in_a_row(sharing_step(times.shape[1], stored), starts, times) for stored in (2, 3)
    }
    taken, by_sharing = train(starts, times)

    def saved(seconds: np.ndarray) -> float:
        return 100 * float(1 - seconds.sum() / uncoded.sum())

    return Row(
        times=name,
        workers=times.shape[1],
        steps=len(times),
        uncoded=unit * float(uncoded.sum()),
        loop=saved(taken),
        sharing_2=saved(shared[2]),
        sharing_3=saved(shared[3]),
        hindsight=saved(np.minimum(uncoded, shared[2])),
        shared=100 * float(by_sharing.mean()),
        changes=int(np.count_nonzero(np.diff(by_sharing.astype(int)))),
    )


def show(rows: Sequence[Row]) -> None:
    print_table(
        "All steps: time saved against uncoded, %; a change of the scheme takes a tenth of a step",
        [
            "times",
            "workers",
            "steps",
            "closed loop",
            "sharing:2",
            "sharing:3",
            "hindsight",
            "shared",
            "changes",
        ],
        [
            [
                *(row.times, row.workers, row.steps),
                *(f"{x:.1f}" for x in (row.loop, row.sharing_2, row.sharing_3, row.hindsight)),
                *(f"{row.shared:.0f} %", row.changes),
            ]
            for row in rows
        ],
    )
    print(
        "\n"
        "hindsight: the better of uncoded and sharing:2 in every step; shared: steps of the "
        "closed loop."
    )


def draw(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Draw what is saved in all steps, of adaptive.csv: a mark a scheme, a line a setting."""
    rows = list(rows)
    figure, (axes,) = plotting.new_figure(size=(6.8, 1.8 + 0.34 * len(rows)))
    places = np.arange(len(rows))
    found = {name: np.array([float(row[name]) for row in rows]) for name in MARKS}
    axes.barh(places, found.pop("loop"), **MARKS["loop"])
    for name, percent in found.items():
        axes.plot(percent, places, **MARKS[name])
    names = [readable(str(row["times"])).replace("\n", ", ") for row in rows]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0, color="black", linewidth=0.8)
    plotting.label_axes(axes, "time saved against uncoded (%)", "")
    handles, _ = axes.get_legend_handles_labels()
    title = "Simulated: all passes, hand-outs and changes of the scheme count"
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


def run(out: Path, *, seed: int = 0, traces: Path) -> None:
    """Print the table; write adaptive.csv and the figure to `out`."""
    measured = recorded(traces)
    rng = np.random.default_rng(seed)
    given = list({**measured, **drifts(rng, STEPS, WORKERS)}.items())
    starts = {_LATE: rng.exponential(1.0, (STEPS, WORKERS))}
    rows = [course(name, times, starts.get(name)) for name, times in each(given, "trainings")]
    show(rows)
    save(out, {"adaptive": rows}, {"adaptive": draw(row._asdict() for row in rows)})


if __name__ == "__main__":
    sys.exit(run_command(run))
