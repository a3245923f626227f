"""What every study does: its command line, a batch of problems per method, a table, a CSV file."""

import argparse
import csv
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc

# Problems of N workers are solved together with those of up to this many: padding costs N².
_GROUPS = (10, 20, 50, 100, 200, 500, 1000)


def output_folder(module: str, doc: str | None) -> Path:
    """The folder of `--out`; one line and exit status 2 where there can be none."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=(doc or "").partition("\n")[0],
        epilog=f"example: python -m {module} --out figures",
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to write to (%(default)s)")
    folder = parser.parse_args().out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{parser.prog}: --out {folder}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    return folder


def expected_runtimes(
    laws: Sequence[bcgc.Law],
    workers: Sequence[int],
    method: str,
    *,
    coordinates: int = 20_000,
    **options: Any,
) -> np.ndarray:
    """Expected runtime of `method` for each pair of a law and a number of workers (M = 50, b = 1).

    The laws are of one class. Problems of similar size share one compiled `vmap`.
    """
    result = np.empty(len(workers))
    sizes = np.asarray(workers)
    low = 0
    for high in _GROUPS:
        here = np.flatnonzero((low < sizes) & (sizes <= high))
        low = high
        if not here.size:
            continue
        batch = jax.tree.map(
            lambda *leaves: jnp.stack([jnp.asarray(v, float) for v in leaves]), *[laws[i] for i in here]
        )

        def solve(law: bcgc.Law, n: jax.Array, size: int = int(sizes[here].max())) -> jax.Array:
            problem = bcgc.Problem(law, n, coordinates, 50, max_workers=size)
            return bcgc.solve(problem, method, key=jax.random.key(0), **options).expected_runtime

        result[here] = jax.jit(jax.vmap(solve))(batch, jnp.asarray(sizes[here]))
    return result


class Progress:
    """A line on standard error that says what is being computed, and since when; gone at the end."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.perf_counter()

    def step(self, what: str) -> None:
        """Say that `what` starts now."""
        if sys.stderr.isatty():
            bar = "█" * round(20 * self._done / self._total)
            seconds = time.perf_counter() - self._start
            print(
                f"\r\033[K{bar:░<20} {self._done}/{self._total} {seconds:.0f} s  {what}",
                end="",
                file=sys.stderr,
            )
        self._done += 1

    def close(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Numbers with ten digits; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow("" if v is None else f"{v:.10g}" if isinstance(v, float) else v for v in row)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns under their names; the first to the left, the others to the right."""
    cells = [list(header)] + [["" if v is None else _cell(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        first = row[0].ljust(widths[0])
        print("  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
