"""How exactly each gradient code decodes: worst error over stragglers, N from 10 to 100.

Float32 gradients of the N subsets, 200 random sets of stragglers and all contiguous ones, every construction.
The error is relative to the float64 sum; beside it the worst amplification, and the error that float32
messages would have had.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.cli.waiting import each
from bcgc_jax.coding.codes import CONSTRUCTIONS, GradientCode
from experiments.report import number, print_table, run_command, write_csv

SIZES = (10, 20, 50, 100)
SETS, LENGTH = 200, 32
# Codes are no schemes: other colours than theirs, but for the uncoded one.
LOOKS = {
    "uncoded": (plotting.style("uncoded").color, "h"),
    "replication": ("#882255", "D"),
    "fractional_repetition": ("#44AA99", "^"),
    "cyclic_mds": ("#661100", "s"),
    "random_cyclic": ("#332288", "o"),
}

_weights = jax.jit(
    lambda encoding, masks: jax.lax.map(lambda mask: bcgc.coding.decoding_weights(encoding, mask), masks)
)


def levels_of(num_workers: int) -> list[int]:
    """All up to N = 20; beyond, a few that cover them, those next to both ends included."""
    if num_workers <= 20:
        return list(range(num_workers))
    return sorted({0, 1, 2, 3, 4, *np.linspace(5, num_workers - 1, 12).astype(int).tolist(), num_workers - 2})


def run(out: Path, seed: int = 0, *, sizes: Sequence[int] = SIZES) -> None:
    tasks = [(n, s) for n in sizes for s in levels_of(n)]
    rows = []
    for n, level in each(tasks, "codes"):
        chosen = bcgc.coding.gradient_code(jax.random.key(seed), n, level, top_level=n - 1)
        for construction in CONSTRUCTIONS:
            try:
                code = bcgc.coding.gradient_code(jax.random.key(seed), n, level, construction)
            except ValueError:
                continue
            row = {"workers": n, "level": level, "construction": construction}
            row["chosen"] = int(construction == chosen.construction)
            rows.append(row | measure(code, seed))
    best = [row for row in rows if row["chosen"]]
    print_table(
        "worst over all levels: what the chooser takes, and each construction",
        ["workers", "code", "amplification", "error", "with float32 messages", "not decodable"],
        [
            _summary(n, name, rows if name != "chosen" else best)
            for n in sizes
            for name in ("chosen", *CONSTRUCTIONS)
        ],
    )
    write_csv(out / "conditioning.csv", rows)
    paths = plotting.save_figure(_draw(rows), out, "conditioning")
    print(f"\nWritten to {out}: conditioning.csv, {paths[0].name}, {paths[1].name}")


def measure(code: GradientCode, seed: int) -> dict[str, Any]:
    """Worst amplification and errors of `code`, and the share of sets that it cannot decode in float64."""
    n = len(code.subsets)
    rng = np.random.default_rng(seed)
    random = np.argsort(rng.random((SETS, n)), axis=1)
    contiguous = (np.arange(n) - np.arange(n)[:, None]) % n
    masks = np.concatenate([random, contiguous]) >= code.level
    gradients = rng.standard_normal((n, LENGTH)).astype(np.float32)
    exact = gradients.astype(float).sum(axis=0)
    found = _weights(code.encoding, masks)
    weights, decodable = np.asarray(found.weights), np.asarray(found.decodable)
    messages = np.array([np.asarray(m) for m in bcgc.coding.encode(code, gradients)])
    share = np.abs(weights) @ np.abs(np.asarray(code.encoding))

    def error(sent: np.ndarray) -> float:
        # As `decode` does it: a float64 sum, rounded to float32.
        decoded = (np.where(weights != 0, weights, 0) @ sent.astype(float)).astype(np.float32).astype(float)
        each = np.linalg.norm(decoded - exact, axis=1) / np.linalg.norm(exact)
        return float(each[decodable].max()) if decodable.any() else float("nan")

    return {
        "amplification": float(share[decodable].max()) if decodable.any() else float("nan"),
        "error": error(messages),
        "error_float32": error(messages.astype(np.float32)),
        "undecodable": float(1 - decodable.mean()),
        "bytes": 8 if code.wide else 4,
    }


def _summary(n: int, name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    some = [r for r in rows if r["workers"] == n and name in ("chosen", r["construction"])]
    worst = {
        k: max((float(r[k]) for r in some if r[k] == r[k]), default=float("nan"))
        for k in ("amplification", "error", "error_float32", "undecodable")
    }
    return [
        str(n),
        name,
        *(number(worst[k], 2) for k in ("amplification", "error", "error_float32")),
        f"{100 * worst['undecodable']:.0f} %",
    ]


def _draw(rows: Sequence[dict[str, Any]]):
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, axes = plotting.new_figure(2, 2, size=(9.2, 6.6), sharey=True)
    for one, n in zip(axes, sorted({r["workers"] for r in rows}), strict=False):
        for name, (color, marker) in LOOKS.items():
            some = [r for r in rows if r["workers"] == n and r["construction"] == name]
            x = [r["level"] for r in some]
            shared: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5}
            rounded = [r["error_float32"] for r in some]
            one.plot(x, rounded, markerfacecolor="none", linestyle=":", linewidth=0.9, **shared)
            one.plot(x, [r["error"] for r in some], linestyle="-", linewidth=1.3, **shared)
        one.axhline(1e-6, color="0.3", linewidth=0.8)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        plotting.label_axes(
            one, "redundancy level", "worst relative error of the sum", title=f"N = {n}", log="y"
        )
    handles = [
        Line2D([], [], color=color, marker=marker, label=name.replace("_", " ").replace("mds", "MDS"))
        for name, (color, marker) in LOOKS.items()
    ]
    handles += [
        Line2D([], [], color="0.2", marker="o", label="messages as sent"),
        Line2D(
            [], [], color="0.2", marker="o", markerfacecolor="none", linestyle=":", label="all in float32"
        ),
        Line2D([], [], color="0.3", linewidth=0.8, label=r"$10^{-6}$"),
    ]
    plotting.legend_outside(figure, handles, place="lower", columns=4)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("conditioning", __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())
