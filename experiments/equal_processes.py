"""Measure what a coordinator costs three equal PyTorch processes with chunks of 8 ms.

Such steps lose no time, so a step with a coordinator should take as long as a step
without it. Blocks of steps without and with a coordinator alternate in the same
processes, and each block with a coordinator starts a new one. The study takes five
minutes, and needs PyTorch (`pip install torch`). Run nothing else at the same time.
"""

import json
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.processes import free_ports, printed_by
from experiments.report import print_table, run_command, save

WORKERS = 3


def run(
    out: Path,
    format: str = "table",
    *,
    pairs: int = 10,
    steps: int = 100,
    chunk: float = 0.008,
) -> None:
    rows = measured(pairs, steps, chunk)
    if format == "json":
        print(json.dumps(rows, indent=2))
        return
    print_table(
        f"Seconds of a step of {WORKERS} processes, mean of {steps} steps",
        ("pair", "without", "with", "overhead"),
        [
            (
                str(row["pair"]),
                f"{row['without']:.4g}",
                f"{row['with']:.4g}",
                f"{row['overhead']:.1%}",
            )
            for row in rows
        ],
    )
    overheads = np.array([row["overhead"] for row in rows])
    error = overheads.std(ddof=1) / len(overheads) ** 0.5
    print(
        f"\nThe coordinator costs {overheads.mean():.1%} ± {error:.1%} on average, and "
        f"{np.median(overheads):.1%} in the median pair."
    )
    save(out, {"equal_processes": rows}, {})


def measured(pairs: int, steps: int, chunk: float) -> list[dict[str, Any]]:
    """Measure pairs of blocks. The time of a block is that of its slowest process."""
    port, *ports = free_ports(1 + pairs)
    spec: dict[str, Any] = {"workers": WORKERS, "steps": steps, "chunk": chunk}
    spec |= {"port": port, "ports": ports}
    printed = printed_by(
        "experiments.equal_processes_worker",
        [{**spec, "rank": rank} for rank in range(WORKERS)],
        {"BCGC_HANDOUT_KEY": secrets.token_hex(16)},
    )
    seconds = [json.loads(text) for text in printed]
    blocks = {
        name: np.max([of_process[name] for of_process in seconds], axis=0)
        for name in ("without", "with")
    }
    return [
        {"pair": pair, "without": without, "with": shared}
        | {"overhead": shared / without - 1}
        for pair, (without, shared) in enumerate(
            zip(blocks["without"].tolist(), blocks["with"].tolist(), strict=True)
        )
    ]


if __name__ == "__main__":
    sys.exit(run_command(run))
