"""Schemes through faults, on worker processes: exactness, stalls, memory, and what is
left behind.

Four workers (two cores carry no more) train a linear regression by each scheme for 600
iterations. At sixty random moments, drawn from the seed, a worker is killed, or stopped
for good, or for a while, or the master is killed; its successor goes on from the
checkpoint. After each iteration the parameters are compared with those of plain
gradient descent: an iteration left out or done twice is 2e-3 of them. Half an hour,
mostly new processes.
"""

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.cluster import Cluster, Run, Step, Told, train_on_cluster
from experiments.report import print_table, run_command, save, with_progress

METHODS = ("uncoded", "optimal", "nested", "sharing:2:4")
KINDS = ("kill", "stop", "kill", "thaw", "kill", "master")
_WORKERS = 4
_SIZE = 20_000
_SAMPLES = 64
_RATE = 1e-6  # at which the end is still on its way: each iteration counts
_PATIENCE = 2.0  # seconds
# seconds that what is left behind has to go: Ray's agents look for their server for a
# minute
_ENDING = 90.0


def squares(params: Any, batch: Any) -> Any:
    """Linear regression, mean over the samples."""
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)


def run(
    out: Path, seed: int = 0, *, faults: int = 60, methods: Sequence[str] = METHODS
) -> None:
    """Ten iterations for each fault."""
    rows = []
    for method in with_progress(methods, "training"):
        with tempfile.TemporaryDirectory(
            prefix="e", dir="/tmp", ignore_cleanup_errors=True
        ) as place:
            rows.append(_endured(Path(place), seed, method, faults))
    print_table(
        f"{10 * faults} iterations, {_WORKERS} workers, patience {_PATIENCE:g} s; "
        "left: files and processes",
        [
            "scheme",
            *dict.fromkeys(KINDS),
            "deviation",
            "stall, s",
            "back, s",
            "worker, MB",
            "master, MB",
            "left",
        ],
        [list(row.values()) for row in rows],
    )
    save(out, {"endurance": rows})


def _endured(folder: Path, seed: int, method: str, faults: int) -> dict[str, Any]:
    """One scheme, through all lives of its master."""
    np.save(folder / "want.npy", _descended(seed, 10 * faults))
    program = (
        "from experiments import endurance; "
        f"endurance.lead(*{(str(folder), seed, method, faults)!r})"
    )
    ended: list[float] = []
    while True:
        # What a killed master leaves of Ray is there too.
        environment = os.environ | {"RAY_TMPDIR": str(folder)}
        status = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=False
        ).returncode
        ended.append(time.time())
        if status == 0:
            break
        if status != -signal.SIGKILL or len(ended) > len(
            _lines(folder / "faults.jsonl")
        ):
            raise RuntimeError(f"a master ended by itself, with status {status}")
    until = time.monotonic() + _ENDING
    while (processes := _naming(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    done = collections.Counter(line["kind"] for line in _lines(folder / "faults.jsonl"))
    lines = _lines(folder / "steps.jsonl")
    # From the end of a master until the first iteration of the next one.
    back = [
        min(line["time"] for line in lines if line["time"] > end) - end
        for end in ended[:-1]
    ]
    return {
        "scheme": method,
        **{kind: done[kind] for kind in dict.fromkeys(KINDS)},
        "deviation": max(line["deviation"] for line in lines),
        "longest_seconds": max(line["seconds"] for line in lines),
        "back_in_seconds": max(back, default=np.nan),
        "worker_mb": round(max(line["worker"] for line in lines)),
        "master_mb": round(max(line["master"] for line in lines)),
        "left": len(list(folder.glob("bcgc-*"))) + len(processes),
    }


def lead(place: str, seed: int, method: str, faults: int) -> None:
    """The training from its last checkpoint on, with the faults still to come."""
    folder = Path(place)
    (params, data) = _start(seed)
    steps = 10 * faults
    law = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
    problem = bcgc.Problem(law, _WORKERS, _SIZE, _SAMPLES)
    rng = np.random.default_rng(seed)
    descent = np.load(folder / "want.npy", mmap_mode="r")
    moments = np.sort(rng.choice(steps, faults, replace=False)).tolist()
    coming = dict(
        zip(moments, (KINDS[k % len(KINDS)] for k in range(faults)), strict=True)
    )
    begun: collections.deque[int] = collections.deque()
    rng = np.random.default_rng([seed, os.getpid()])

    def before(step: int, cluster: Cluster) -> None:
        begun.append(step)
        been = {line["step"] for line in _lines(folder / "faults.jsonl")}
        if step in coming and step not in been:
            _note(folder / "faults.jsonl", {"step": step, "kind": coming[step]})
            threading.Timer(
                rng.uniform(0, 0.05), strike, [cluster, coming[step], rng]
            ).start()

    def evaluate(reached: Any) -> float:
        want = descent[begun.popleft()]
        return float(np.abs(np.asarray(reached) - want).max() / np.abs(want).max())

    with Cluster(_WORKERS, patience=_PATIENCE) as cluster:

        def after(step: Step) -> None:
            memory = [_resident(pid) for pid in cluster.pids if pid is not None]
            line = {
                "step": step.step,
                "seconds": step.seconds,
                "deviation": step.metrics,
            }
            line |= {
                "time": time.time(),
                "worker": max(memory, default=0.0),
                "master": _resident(),
            }
            _note(folder / "steps.jsonl", line)

        run = Run(
            cluster, checkpoints=folder / "state", before_step=before, after_step=after
        )
        course = params, data, optax.sgd(_RATE), steps
        train_on_cluster(
            jax.random.key(seed),
            squares,
            Told(problem, method),
            run,
            *course,
            evaluate=evaluate,
        )


def strike(cluster: Cluster, kind: str, rng: np.random.Generator) -> None:
    """Kill the master, or kill, freeze or thaw a worker that is there.

    A frozen worker is thawed before or after it counts as hung.
    """
    living = [w for w, pid in enumerate(cluster.pids) if pid is not None]
    if kind == "master" or not living:
        os.kill(os.getpid(), signal.SIGKILL)
    number = signal.SIGSTOP
    if kind == "kill":
        number = signal.SIGKILL
    pids = signal_workers(cluster, [int(rng.choice(living))], number)
    if kind == "thaw":
        time.sleep(rng.uniform(0, 3 * _PATIENCE))
        _signal_all(pids, signal.SIGCONT)


def signal_workers(
    cluster: Cluster, workers: Sequence[int], number: signal.Signals
) -> list[int]:
    """Signal the processes of these workers, modulo N, as far as they are there."""
    pids = [
        pid
        for w in workers
        if (pid := cluster.pids[w % cluster.num_workers]) is not None
    ]
    _signal_all(pids, number)
    return pids


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _start(seed: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(_SAMPLES, _SIZE)).astype(np.float32)
    y = (x @ rng.normal(size=_SIZE) / np.sqrt(_SIZE)).astype(np.float32)
    return np.zeros(_SIZE, np.float32), (x, y)


def _descended(seed: int, steps: int) -> np.ndarray:
    """The parameters after each iteration of plain gradient descent, in float32."""
    params, data = _start(seed)
    advance: Callable[[Any], Any] = jax.jit(
        lambda params: params - _RATE * jax.grad(squares)(params, data)
    )
    descent = []
    with jax.enable_x64(False):
        for _ in range(steps):
            descent.append(params := np.asarray(advance(params)))
    return np.stack(descent)


def _note(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read whole lines alone: a master may be killed while it writes one."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def _resident(pid: int | str = "self") -> float:
    """Memory of a process, in MB; 0 of one that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def _naming(folder: Path) -> list[int]:
    """Processes that were started with this folder in their environment."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"RAY_TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                pids.append(int(entry.name))
    return pids


if __name__ == "__main__":
    sys.exit(run_command(run))
