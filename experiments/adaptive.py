"""Compare adaptive scheduling with uncoded steps and with work sharing in every step.

The study replays measured traces, and synthetic times that drift, jump or are
correlated. In the adaptive loop, a `Judge` decides for each step whether it is shared.
The total time of this loop is compared with the two fixed choices. Workers store two
subsets, and complete the chunks that they have begun. A request takes 1 % of the time
of a mean chunk.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.chunk_lengths import TICKS_OF_UNIT
from bcgc_jax.balancing.dispatch.judge import DoneStep, Judge
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.lockstep import Chunks, handed_out
from bcgc_jax.balancing.placement import Placement, chunk_tables
from experiments.event_loop import driven
from experiments.report import print_table, readable, run_command, save, with_progress
from experiments.traces import files_of

# Iterations of a training, and workers of the drifts.
STEPS = 500
WORKERS = 10
CHUNKS = 8
# The way of a question and back, and the coordinator's time for it, in mean chunks.
ASKING = Asking(delay=0.01 * 5 / 7, service=0.01 * 2 / 7)
# Steps of a short training.
SHORT = 60
# How what a row has saved is drawn.
_MARK: Any = {"linestyle": "", "markersize": 7, "color": "black"}
MARKS: dict[str, Any] = {
    "loop": {"height": 0.6, "color": "0.75", "label": "a loop that advises itself"},
    "sharing_2": _MARK
    | {
        "marker": "|",
        "markeredgewidth": 2.2,
        "markersize": 13,
        "label": "sharing:2 in every step",
    },
    "sharing_3": _MARK
    | {"marker": "o", "color": "#4477AA", "label": "sharing:3 in every step"},
    "hindsight": _MARK
    | {
        "marker": "D",
        "fillstyle": "none",
        "label": "the better of uncoded and sharing:2",
    },
}
# Workers of this drift need as long again to begin.
_LATE = "random start-ups"


def recorded(traces: Path) -> dict[str, np.ndarray]:
    """Whole steps of files, `[K, N]`, once if another has the chunks of the same."""
    logs: dict[str, np.ndarray] = {}
    for file in files_of(traces):
        table = bcgc.traces.load_trace(file).table()
        steps = table[np.isfinite(table).all(axis=1)]
        alike = [log for log in logs.values() if log.shape == steps.shape]
        if not any(np.allclose(log, steps, rtol=1e-5, atol=0) for log in alike):
            logs[file.name.split(".")[0]] = steps
    return logs


def drifts(rng: np.random.Generator, steps: int, workers: int) -> dict[str, np.ndarray]:
    """Cycle times, `[K, N]`, by what becomes of them."""
    shape = (steps, workers)
    half = steps // 2
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
            rng.uniform(1, 1.2, (half, workers)),
            rng.pareto(2, (steps - half, workers)) + 1,
        ],
        "speeds wander": np.exp(np.cumsum(rng.normal(0, 0.05, shape), axis=0))
        * steady(),
        "one slow worker, another every 50 steps": turns * steady(),
        # All workers of an iteration are slow together; hardly one is slower than the
        # others.
        "all slow in the same steps": rng.lognormal(0, 1, (steps, 1))
        * rng.uniform(1, 1.1, shape),
        "all times equal to 2 %": rng.uniform(1, 1.02, shape),  # nothing to be gained
        _LATE: rng.uniform(0.2, 0.24, shape),
    }


class Row(NamedTuple):
    """Seconds of all uncoded steps; saved against these, in percent.

    `loop_first`, `sharing_first`: in the first `SHORT` steps. `hindsight`: by the
    better of uncoded and work sharing in each step. `regret`: what the loop saves less
    than the better of both in all steps. `shared`: so many of the loop's steps, in
    percent.
    """

    times: str
    workers: int
    steps: int
    uncoded: float
    loop: float
    sharing_2: float
    sharing_3: float
    hindsight: float
    regret: float
    loop_first: float
    sharing_first: float
    shared: float
    changes: int


def always_shared(starts: np.ndarray, times: np.ndarray, stored: int) -> np.ndarray:
    """Steps that are all shared take so long, `[K]`, for times `[K, N]`."""
    steps, workers = times.shape
    place = Placement(workers, stored, CHUNKS)
    lengths = np.tile(np.array(place.shares) / CHUNKS, (steps, workers))
    chunks = Chunks(times, lengths, np.zeros((steps, workers, 0)), None, starts)
    asking = asking_of(starts, times)
    return handed_out(chunk_tables(place.storage, place.sizes), chunks, asking)


def asking_of(starts: np.ndarray, times: np.ndarray) -> Asking:
    chunk = float(times.mean()) / CHUNKS
    return Asking(chunk * ASKING.delay, chunk * ASKING.service)


def own_step(starts: np.ndarray, times: np.ndarray) -> DoneStep:
    who = np.repeat(np.arange(len(times)), CHUNKS)
    return DoneStep(False, who, np.repeat(times / CHUNKS, CHUNKS), starts)


def shared_step(
    place: Placement, asking: Asking, starts: np.ndarray, times: np.ndarray
) -> DoneStep:
    """A step as `serve` would hand it out: who has done what."""
    sizes = [place.sizes] * place.num_workers
    ledger = Ledger(place.storage, sizes, ticks_of_unit=TICKS_OF_UNIT)
    lengths = np.tile(np.array(place.shares) / CHUNKS, place.num_workers)
    seconds = np.outer(times, lengths)
    end, _, who = driven(ledger, seconds, starts, asking=asking)
    took = seconds[who, np.arange(who.size)]
    return DoneStep(
        True, who, took, starts, took=end, questions=[asking.alone] * who.size
    )


def train(starts: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What steps of a loop that advises itself take, `[K]`, and which it shares."""
    place = Placement(times.shape[1], 2, CHUNKS)
    asking = asking_of(starts, times)
    judge = Judge(place, asking, run=lambda work: work())
    seconds = np.zeros(len(times))
    shared = np.zeros(len(times), bool)
    for k, row in enumerate(zip(starts, times, strict=True)):
        shared[k] = judge.mode.is_shared
        if shared[k]:
            step = shared_step(place, asking, *row)
        else:
            step = own_step(*row)
        if shared[k]:
            seconds[k] = step.took
        else:
            seconds[k] = (step.starts + step.busy).max() + asking.alone
        judge.add(step)
    return seconds, shared


def course(name: str, times: np.ndarray, starts: np.ndarray | None = None) -> Row:
    """A row of the table."""
    if starts is None:
        starts = np.zeros_like(times)
    uncoded = np.max(starts + times, axis=1)
    shared = {stored: always_shared(starts, times, stored) for stored in (2, 3)}
    loop_seconds, by_sharing = train(starts, times)

    def saved(seconds: np.ndarray, steps: int | None = None) -> float:
        return 100 * float(1 - seconds[:steps].sum() / uncoded[:steps].sum())

    return Row(
        times=name,
        workers=times.shape[1],
        steps=len(times),
        uncoded=float(uncoded.sum()),
        loop=saved(loop_seconds),
        sharing_2=saved(shared[2]),
        sharing_3=saved(shared[3]),
        hindsight=saved(np.minimum(uncoded, shared[2])),
        regret=max(0.0, saved(shared[2])) - saved(loop_seconds),
        loop_first=saved(loop_seconds, SHORT),
        sharing_first=saved(shared[2], SHORT),
        shared=100 * float(by_sharing.mean()),
        changes=int(np.count_nonzero(np.diff(by_sharing.astype(int)))),
    )


def show(rows: Sequence[Row]) -> None:
    print_table(
        (
            "Time saved against uncoded, %, in all steps; regret in points; then in "
            f"the first {SHORT}"
        ),
        [
            "times",
            "workers",
            "steps",
            "closed loop",
            "sharing:2",
            "sharing:3",
            "hindsight",
            "regret",
            f"loop, {SHORT}",
            f"sharing:2, {SHORT}",
            "shared",
            "changes",
        ],
        [
            [
                *(row.times, row.workers, row.steps),
                *(
                    f"{x:.1f}"
                    for x in (row.loop, row.sharing_2, row.sharing_3, row.hindsight)
                ),
                *(f"{x:.2f}" for x in (row.regret, row.loop_first, row.sharing_first)),
                *(f"{row.shared:.0f} %", row.changes),
            ]
            for row in rows
        ],
    )
    print(
        "\nhindsight: the better of uncoded and sharing:2 in each step; regret: "
        "against the better of both in all steps; shared: steps of the closed loop."
    )


def draw(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Draw what is saved in all steps: a mark a scheme, a line a setting."""
    rows = list(rows)
    figure, (axes,) = plotting.new_figure(size=(6.8, 1.8 + 0.34 * len(rows)))
    places = np.arange(len(rows))
    percents = {name: np.array([float(row[name]) for row in rows]) for name in MARKS}
    axes.barh(places, percents.pop("loop"), **MARKS["loop"])
    for name, percent in percents.items():
        axes.plot(percent, places, **MARKS[name])
    names = [readable(str(row["times"])).replace("\n", ", ") for row in rows]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.axvline(0, color="black", linewidth=0.8)
    plotting.label_axes(axes, "time saved against uncoded (%)", "")
    handles, _ = axes.get_legend_handles_labels()
    title = "Simulated: all passes and questions count"
    plotting.legend_outside(figure, handles, place="lower", columns=2, title=title)
    return figure


def run(out: Path, *, seed: int = 0, traces: Path) -> None:
    """Print the table; write adaptive.csv and the figure to `out`."""
    measured = recorded(traces)
    rng = np.random.default_rng(seed)
    trainings = list({**measured, **drifts(rng, STEPS, WORKERS)}.items())
    starts = {_LATE: rng.exponential(1.0, (STEPS, WORKERS))}
    rows = [
        course(name, times, starts.get(name))
        for name, times in with_progress(trainings, "trainings")
    ]
    show(rows)
    save(out, {"adaptive": rows}, {"adaptive": draw(row._asdict() for row in rows)})


if __name__ == "__main__":
    sys.exit(run_command(run))
