"""Fit cost models to the time of each block of a gradient, and test their predictions.

Worker 0 of 4 computes the blocks of a perceptron with 8 layers and of a small
transformer, on one core, for several partitions of their layers. Level 0 has the layers
next to the output, which the backward pass reaches first.

The costs are fitted by least squares to the blocks of some partitions, and compared
with the blocks of the others. The models have up to three costs: b per coordinate
(paper), f of a forward pass, and h for propagating the cotangent past a coordinate. The
study also makes plans with these costs, and evaluates how much time they save.

Operations are counted by the compiler. Times are CPU seconds, which other programs
disturb least. The study takes two minutes.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments import looks
from experiments.block_costs import (
    MODELS,
    Costs,
    all_partitions,
    expected_runtimes,
    fit,
    kept_operations,
    predict,
)
from experiments.block_times import Measured, measure_alone
from experiments.models import Model, perceptron, transformer
from experiments.report import (
    grouped,
    number,
    print_table,
    run_command,
    save,
    with_progress,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Study(NamedTuple):
    """A model, made where it is measured, and partitions to calibrate and predict."""

    make: Callable[..., Model]
    calibrated: Sequence[Sequence[int]]
    held_out: Sequence[Sequence[int]]


WORKERS = 4
_EIGHT = (
    [(8, 0, 0, 0), (0, 0, 0, 8), (4, 0, 0, 4), (5, 1, 1, 1), (0, 4, 4, 0)],
    [(2, 2, 2, 2), (1, 3, 0, 4), (3, 3, 2, 0)],
)
_SIX = (
    [(6, 0, 0, 0), (0, 0, 0, 6), (3, 0, 0, 3), (3, 1, 1, 1), (0, 3, 3, 0)],
    [(2, 2, 1, 1), (1, 2, 0, 3), (2, 2, 2, 0)],
)
_SMALL: Mapping[str, Any] = {"width": 128, "heads": 4, "length": 32, "vocabulary": 256}
# With 128 samples a subset products of matrices are nearly all of the work; with 32 the
# messages count too.
STUDIES = (
    Study(functools.partial(perceptron, (512,) * 9, WORKERS * 128), *_EIGHT),
    Study(functools.partial(perceptron, (512,) * 9, WORKERS * 32), *_EIGHT),
    Study(functools.partial(transformer, 2, WORKERS * 16, **_SMALL), *_SIX),
)
LAWS: Mapping[str, bcgc.distributions.Distribution] = {
    "shift 50, rate 0.001": bcgc.ShiftedExponential(1e-3, 50.0),
    "shift 300, rate 0.001": bcgc.ShiftedExponential(1e-3, 300.0),
    "Pareto, shape 1.5": bcgc.Pareto(1.0, 1.5),
}
# What the worker pays for: costs of plans are from here, and plans are judged with it.
TRUE = "f, h"


class Block(NamedTuple):
    """Costs in subset gradients; `kept`: fewest operations; `low`, `high` quartiles."""

    model: str
    partition: tuple[int, ...]
    held_out: bool
    level: int
    operations: float
    kept: float
    cpu: float
    low: float
    high: float
    predicted: dict[str, float]


class Calibrated(NamedTuple):
    """Costs by a model, in subset gradients, and its errors where it was not fitted."""

    name: str
    costs: Costs
    block_error: float
    worst_error: float
    end_error: float
    operations_error: float


class Plan(NamedTuple):
    """The best partition by a model of costs, and its share of uncoded's E τ̂."""

    model: str
    law: str
    workers: int
    costs: str
    partition: tuple[int, ...]
    share: float


def run(
    out: Path,
    seed: int = 0,
    *,
    studies: Sequence[Study] = STUDIES,
    repeats: int = 7,
    laws: Mapping[str, bcgc.distributions.Distribution] = LAWS,
    workers: Sequence[int] = (4, 8),
) -> None:
    """Measure each block `repeats` times, print the tables, save blocks and plans."""
    blocks: list[Block] = []
    plans: list[Plan] = []
    for study in with_progress(studies, "models"):
        make = functools.partial(study.make, seed=seed)
        measured = measure_alone(make, [*study.calibrated, *study.held_out], repeats)
        costs, blocks_of_model = calibrate(measured, len(study.calibrated))
        best = plan(
            measured,
            next(row.costs for row in costs if row.name == TRUE),
            laws,
            workers,
        )
        _print(measured, blocks_of_model, costs, best)
        blocks += blocks_of_model
        plans += best
    of_plans = [row._asdict() | {"partition": _spaced(row.partition)} for row in plans]
    tables = {"backprop": [_row(block) for block in blocks], "backprop_plans": of_plans}
    save(out, tables, {"backprop": draw(blocks)})


def _title(measured: Measured) -> str:
    return f"{measured.title}, {measured.samples} samples"


def calibrate(
    measured: Measured, calibrated: int
) -> tuple[list[Calibrated], list[Block]]:
    """Fit each model of costs to the first `calibrated` partitions; predict all."""
    gradient = float(np.median(measured.cpu))
    partitions = [blocks.partition for blocks in measured.blocks]
    cpu = _by_level(
        partitions,
        [np.median(blocks.cpu, axis=0) / gradient for blocks in measured.blocks],
    )
    counted = [
        blocks.operations / measured.operations.gradient for blocks in measured.blocks
    ]
    operations = _by_level(partitions, counted)
    shares = measured.sizes / measured.sizes.sum()
    costs = []
    predicted = {}
    for name in MODELS:
        fitted = fit(name, partitions[:calibrated], shares, cpu[:calibrated])
        predicted[name] = predict(name, fitted, partitions, shares)
        by_count = fit(name, partitions[:calibrated], shares, operations[:calibrated])
        block, worst = _errors(predicted[name][calibrated:], cpu[calibrated:])
        end, _ = _errors(
            predicted[name][calibrated:].sum(axis=1), cpu[calibrated:].sum(axis=1)
        )
        count, _ = _errors(
            predict(name, by_count, partitions, shares)[calibrated:],
            operations[calibrated:],
        )
        costs.append(Calibrated(name, fitted, block, worst, end, count))
    return costs, _blocks(measured, calibrated, gradient, predicted)


def _by_level(
    partitions: Sequence[Sequence[int]], values: Sequence[np.ndarray]
) -> np.ndarray:
    """Values of blocks as those of levels, `[K, N]`."""
    by_level = np.zeros(np.shape(partitions))
    by_level[np.asarray(partitions) > 0] = np.concatenate(values)
    return by_level


def _errors(predicted: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Root mean square and largest of the relative errors."""
    errors = predicted[actual > 0] / actual[actual > 0] - 1
    return float(np.sqrt(np.mean(errors**2))), float(np.abs(errors).max())


def _blocks(
    measured: Measured,
    calibrated: int,
    gradient: float,
    predicted: Mapping[str, np.ndarray],
) -> list[Block]:
    blocks = []
    for k, timed in enumerate(measured.blocks):
        kept = kept_operations(measured.operations, timed.partition)
        low, cpu, high = np.quantile(timed.cpu, (0.25, 0.5, 0.75), axis=0) / gradient
        for b, level in enumerate(np.flatnonzero(timed.partition).tolist()):
            operations, least = (
                np.array([timed.operations[b], kept[level]])
                / measured.operations.gradient
            )
            times = float(cpu[b]), float(low[b]), float(high[b])
            by_model = {
                name: float(values[k, level]) for name, values in predicted.items()
            }
            place = _title(measured), timed.partition, k >= calibrated, level
            blocks.append(
                Block(*place, float(operations), float(least), *times, by_model)
            )
    return blocks


def plan(
    measured: Measured,
    costs: Costs,
    laws: Mapping[str, bcgc.distributions.Distribution],
    workers: Sequence[int],
) -> list[Plan]:
    """The best of all partitions for each law, number of workers and model of costs."""
    shares = measured.sizes / measured.sizes.sum()
    plans = []
    for law, count in ((law, count) for law in laws for count in workers):
        partitions = all_partitions(len(shares), count)
        uncoded = int(np.argmax(partitions[:, 0]))
        runtimes = {
            name: expected_runtimes(laws[law], name, costs, partitions, shares)
            for name in MODELS
        }
        for name in MODELS:
            best = int(np.argmin(runtimes[name]))
            share = float(runtimes[TRUE][best] / runtimes[TRUE][uncoded])
            plans.append(
                Plan(
                    _title(measured),
                    law,
                    count,
                    name,
                    tuple(partitions[best].tolist()),
                    share,
                )
            )
    return plans


def _spaced(partition: Sequence[int]) -> str:
    return " ".join(map(str, partition))


def _print(
    measured: Measured,
    blocks: Sequence[Block],
    costs: Sequence[Calibrated],
    plans: Sequence[Plan],
) -> None:
    title = _title(measured)
    title = title[0].upper() + title[1:]
    print(
        f"\n{title}: {measured.sizes.sum():,} coordinates. Level 0 has the layers next "
        "to the output.\nThe unit is the gradient on the samples of a subset: "
        f"{1e3 * np.median(measured.cpu):.3g} ms and "
        f"{measured.operations.gradient:.3g} operations."
    )
    _print_totals(measured, blocks)
    _print_blocks(blocks)
    lines: list[list[Any]] = []
    for row in costs:
        fitted = [number(x, 3) if x else "–" for x in row.costs]
        lines.append([row.name, *fitted, *(f"{100 * x:.1f} %" for x in row[2:])])
    print_table(
        "Costs of all coordinates (b, h) and of a forward pass (f), and errors where "
        "they were not fitted",
        [
            "model",
            "b",
            "f",
            "h",
            "blocks",
            "worst block",
            "whole",
            "blocks, by operations",
        ],
        lines,
    )
    print(
        "\nErrors are relative, root mean squares; whole: of the end of the iteration."
    )
    lines = []
    for (law, count), plans_of_law in grouped(
        plans, lambda row: (row.law, row.workers)
    ).items():
        cells = [
            ("".join(map(str, row.partition)), f"{100 * (1 - row.share):.0f} %")
            for row in plans_of_law
        ]
        lines.append([law, count, *chain(*cells)])
    print_table(
        "Best plans (layers at levels 0, 1, …), and what they save against uncoded",
        ["cycle times", "N", *(cell for name in MODELS for cell in (name, "saves"))],
        lines,
    )


def _print_totals(measured: Measured, blocks: Sequence[Block]) -> None:
    rows = []
    shares = measured.sizes / measured.sizes.sum()
    for partition, blocks_of_partition in grouped(
        blocks, lambda block: block.partition
    ).items():
        totals = [
            sum(getattr(block, name) for block in blocks_of_partition)
            for name in ("kept", "operations", "cpu")
        ]
        own_work = predict("h = f = 0", Costs(1.0), partition, shares).sum()
        predicted = sum(block.predicted[TRUE] for block in blocks_of_partition)
        ratio = f"{totals[2] / predicted:.2f}"
        if not blocks_of_partition[0].held_out:
            ratio += "*"
        rows.append(
            [
                _spaced(partition),
                *(f"{x:.2f}" for x in (own_work, *totals, predicted)),
                ratio,
            ]
        )
    print_table(
        "All blocks of a worker: by the paper, by the fewest operations, as they are, "
        "and as f and h predict",
        [
            "layers at levels",
            "y / L",
            "fewest",
            "operations",
            "CPU time",
            TRUE,
            "CPU / that",
        ],
        rows,
    )
    print("\n* the costs were fitted to its blocks")


def _print_blocks(blocks: Sequence[Block]) -> None:
    rows = []
    held_out = [block for block in blocks if block.held_out]
    for partition, blocks_of_partition in grouped(
        held_out, lambda block: block.partition
    ).items():
        for block in blocks_of_partition:
            time = f"{block.cpu:.2f} ± {(block.high - block.low) / 2:.2f}"
            off = ((x, 100 * (x / block.cpu - 1)) for x in block.predicted.values())
            cells = [f"{x:.2f} {percent:+4.0f} %" for x, percent in off]
            rows.append(
                [
                    _spaced(partition),
                    block.level,
                    f"{block.operations:.2f}",
                    time,
                    *cells,
                ]
            )
    print_table(
        "Blocks that the costs were not fitted to: operations, CPU time, and what "
        "each model predicts",
        ["layers", "level", "operations", "CPU time", *MODELS],
        rows,
    )


def _row(block: Block) -> dict[str, Any]:
    row = block._asdict()
    predicted = {
        f"predicted, {name}": value for name, value in row.pop("predicted").items()
    }
    return (
        row
        | {"partition": _spaced(block.partition), "held_out": int(block.held_out)}
        | predicted
    )


# A model of costs in words, its marker and colour.
_LOOK = {
    "h = f = 0": ("the paper's count: coordinates only", "o", looks.COLORS[4]),
    "f": ("+ a forward pass for each block", "s", looks.COLORS[2]),
    "f, h": ("+ the way back to the block (the chain)", "^", looks.COLORS[1]),
}
_TICKS = (0.1, 0.2, 0.5, 1, 2)


def draw(blocks: Sequence[Block]) -> "Figure":
    """Draw predicted against measured time of unfitted blocks, a panel a model."""
    models = grouped(
        (block for block in blocks if block.held_out), lambda block: block.model
    )
    figure, panels = plotting.new_figure(
        1, len(models), size=(1.2 + 2.8 * len(models), 4.4), sharey=True
    )
    for axes, (title, blocks_of_model) in zip(panels, models.items(), strict=True):
        cpu = np.array([block.cpu for block in blocks_of_model])
        spread = [
            cpu - [block.low for block in blocks_of_model],
            [block.high for block in blocks_of_model] - cpu,
        ]
        ends = [0.8 * cpu.min(), 1.25 * cpu.max()]
        axes.plot(
            ends,
            ends,
            color="0.4",
            linewidth=0.8,
            zorder=0,
            label="predicted = measured",
        )
        for name, (label, marker, color) in _LOOK.items():
            predicted = [block.predicted[name] for block in blocks_of_model]
            look: Any = {
                "fmt": marker,
                "color": color,
                "markersize": 5,
                "markeredgecolor": "k",
            }
            axes.errorbar(
                cpu, predicted, xerr=spread, label=label, markeredgewidth=0.6, **look
            )
        y = ""
        if axes is panels[0]:
            y = "predicted for a block\n(gradients of a subset)"
        x = "CPU time of a block\n(gradients of a subset)"
        title = title.replace(", ", "\n")
        looks.label_axes(
            axes, x, y, title=title, log="xy", x_ticks=_TICKS[2:], y_ticks=_TICKS
        )
    handles, _ = panels[0].get_legend_handles_labels()
    plotting.legend_outside(
        figure,
        handles,
        place="lower",
        columns=2,
        title="bars: quartiles of the CPU time",
    )
    return figure


if __name__ == "__main__":
    sys.exit(run_command(run))
