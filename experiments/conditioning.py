"""Measure the precision of each gradient code: largest error for N from 10 to 100.

For every construction, float32 gradients of the N subsets are decoded for 200 random
sets of stragglers, and for all contiguous sets. Errors are relative to the sum in
float64. The study also prints the largest amplification, and the error that messages in
float32 would have.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.coding.codes import CONSTRUCTIONS, GradientCode
from experiments.report import (
    grouped,
    number,
    print_table,
    run_command,
    save,
    with_progress,
)

SIZES = (10, 20, 50, 100)
SETS = 200
LENGTH = 32
_WORST = ("amplification", "error", "error_float32", "undecodable")

_weights = jax.jit(
    lambda encoding, masks: jax.lax.map(
        lambda mask: bcgc.coding.decoding_weights(encoding, mask), masks
    )
)


def levels_of(num_workers: int) -> list[int]:
    """All levels up to N = 20, else a few that cover them, both ends included."""
    if num_workers <= 20:
        return list(range(num_workers))
    return sorted(
        {
            0,
            1,
            2,
            3,
            4,
            *np.linspace(5, num_workers - 1, 12).astype(int).tolist(),
            num_workers - 2,
        }
    )


def run(out: Path, seed: int = 0, *, sizes: Sequence[int] = SIZES) -> None:
    tasks = [(n, s) for n in sizes for s in levels_of(n)]
    rows = list[dict[str, Any]]()
    make = functools.partial(bcgc.coding.gradient_code, jax.random.key(seed))
    for n, level in with_progress(tasks, "codes"):
        chosen = make(n, level, top_level=n - 1)
        for construction in CONSTRUCTIONS:
            try:
                code = make(n, level, construction)
            except ValueError:
                continue
            is_chosen = int(construction == chosen.construction)
            row = {
                "workers": n,
                "level": level,
                "construction": construction,
                "chosen": is_chosen,
            }
            rows.append(row | measure(code, seed))
    lines = []
    for n, rows_of_size in grouped(rows, lambda row: row["workers"]).items():
        lines.append(
            _summary(n, "chosen", [row for row in rows_of_size if row["chosen"]])
        )
        for name in CONSTRUCTIONS:
            lines.append(
                _summary(
                    n,
                    name,
                    [row for row in rows_of_size if row["construction"] == name],
                )
            )
    print_table(
        "worst over all levels: what the chooser takes, and each construction",
        [
            "workers",
            "code",
            "amplification",
            "error",
            "with float32 messages",
            "not decodable",
        ],
        lines,
    )
    save(out, {"conditioning": rows})


def measure(code: GradientCode, seed: int) -> dict[str, Any]:
    """Worst amplification and errors of `code`, and the share not decodable."""
    n = len(code.subsets)
    rng = np.random.default_rng(seed)
    random = np.argsort(rng.random((SETS, n)), axis=1)
    contiguous = (np.arange(n) - np.arange(n)[:, None]) % n
    masks = np.concatenate([random, contiguous]) >= code.level
    gradients = rng.standard_normal((n, LENGTH)).astype(np.float32)
    exact = gradients.astype(float).sum(axis=0)
    decoding = _weights(code.encoding, masks)
    weights = np.asarray(decoding.weights)
    decodable = np.asarray(decoding.decodable)
    messages = np.array([np.asarray(m) for m in bcgc.coding.encode(code, gradients)])
    share = np.abs(weights) @ np.abs(np.asarray(code.encoding))

    def error(sent: np.ndarray) -> float:
        # As `decode` does it: a float64 sum, rounded to float32.
        decoded = (
            (np.where(weights != 0, weights, 0) @ sent.astype(float))
            .astype(np.float32)
            .astype(float)
        )
        errors = np.linalg.norm(decoded - exact, axis=1) / np.linalg.norm(exact)
        if decodable.any():
            return float(errors[decodable].max())
        return float("nan")

    return {
        "amplification": float(share[decodable].max())
        if decodable.any()
        else float("nan"),
        "error": error(messages),
        "error_float32": error(messages.astype(np.float32)),
        "undecodable": float(1 - decodable.mean()),
        "bytes": 8 if code.wide else 4,
    }


def _summary(n: int, name: str, rows: Sequence[dict[str, Any]]) -> list[object]:
    worst = {
        k: max((row[k] for row in rows if row[k] == row[k]), default=float("nan"))
        for k in _WORST
    }
    *digits, share = (worst[k] for k in _WORST)
    return [n, name, *(number(x, 2) for x in digits), f"{100 * share:.0f} %"]


if __name__ == "__main__":
    sys.exit(run_command(run))
