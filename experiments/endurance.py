"""Two thousand iterations through faults, on worker processes: memory, and the parameters at the end.

Four workers (two cores carry no more) train a linear regression under the optimal plan. Every fifty
iterations one of them is killed, once the processes of half of them are stopped for a second, and the master
is killed three times and goes on from its checkpoints. Plain gradient descent in one process tells what the
parameters are to be: an iteration left out or done twice is 5e-4 of them. Ten minutes, mostly new processes.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.cluster import Cluster, Run, Told, train_on_cluster
from experiments.report import print_table, run_command, save

_WORKERS, _SIZE, _SAMPLES = 4, 20_000, 64
# Iterations between two killed workers; from where on memory is to be flat, in each life of the master.
_KILLED, _WARM = 50, 200
# At which the end is still on its way: each iteration counts.
_RATE = 1e-6
_PAUSE = 1.0  # seconds for which workers are stopped


def squares(params: Any, batch: Any) -> Any:
    """Linear regression, mean over the samples."""
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)


def run(out: Path, seed: int = 0, *, steps: int = 2000, lives: int = 4) -> None:
    """`lives` of the master, of as many iterations each."""
    ends = [steps * (k + 1) // lives for k in range(lives)]
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        os.environ["RAY_TMPDIR"] = place  # what a killed master leaves of Ray goes with it
        begin = time.perf_counter()
        for life, end in enumerate(ends):
            _watch(folder, seed, steps, life, end)
        seconds = time.perf_counter() - begin
        params = np.load(folder / "params.npy")
        rows = [_row(folder, life) for life in range(lives)]
    want = _descended(seed, steps)
    error = float(np.abs(params - want).max() / np.abs(want).max())
    print_table(
        f"{steps} iterations, {_WORKERS} workers, {lives - 1} ends of the master: {seconds:.0f} s",
        ["from", "to", "ms an iteration", "lost", "master, MB", "its end", "store, MB", "its end"],
        [list(row.values()) for row in rows],
    )
    print(f"\nThe parameters are those of plain gradient descent to {error:.1e} of the largest.")
    save(out, {"endurance": rows})


def _watch(folder: Path, seed: int, steps: int, life: int, end: int) -> None:
    """A master until it is done, or until `end`, where it is killed."""
    program = f"from experiments import endurance; endurance.lead(*{(str(folder), seed, steps, life)!r})"
    with subprocess.Popen([sys.executable, "-c", program]) as master:
        while master.poll() is None:
            lines = _lines(folder, life)
            if end < steps and lines and lines[-1]["step"] >= end:
                master.kill()
            time.sleep(0.05)
    if master.returncode != (0 if end == steps else -signal.SIGKILL):
        raise RuntimeError(f"a master ended by itself, with status {master.returncode}")


def lead(place: str, seed: int, steps: int, life: int) -> None:
    """The training, from its last checkpoint on, and a line of memory for each twentieth iteration."""
    folder, (params, data) = Path(place), _start(seed)
    law = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
    problem = bcgc.Problem(law, _WORKERS, _SIZE, _SAMPLES)

    def before(step: int, cluster: Cluster) -> None:
        if step % _KILLED == _KILLED // 2:
            signal_workers(cluster, [step // _KILLED % _WORKERS], signal.SIGKILL)
        if step == steps // 3:
            half = range(_WORKERS // 2)
            stopped = signal_workers(cluster, half, signal.SIGSTOP)
            threading.Timer(_PAUSE, _signal_all, [stopped, signal.SIGCONT]).start()
        if step % 20 == 0:
            line = {
                "step": step,
                "time": time.time(),
                "lost": sum(f.what != "replaced" for f in cluster.faults),
            }
            line |= {"master": _resident(os.getpid()), "store": _store()}
            with _log(folder, life).open("a") as file:
                file.write(json.dumps(line) + "\n")

    with Cluster(_WORKERS, patience=3 * _PAUSE) as cluster:
        run = Run(cluster, checkpoints=folder / "state", before_step=before)
        given = params, data, optax.sgd(_RATE), steps
        found = train_on_cluster(jax.random.key(seed), squares, Told(problem), run, *given)
    np.save(folder / "params.npy", np.asarray(found.params))


def _start(seed: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(_SAMPLES, _SIZE)).astype(np.float32)
    y = (x @ rng.normal(size=_SIZE) / np.sqrt(_SIZE)).astype(np.float32)
    return np.zeros(_SIZE, np.float32), (x, y)


def _descended(seed: int, steps: int) -> np.ndarray:
    """By plain gradient descent, in float32."""
    params, data = _start(seed)
    optimizer = optax.sgd(_RATE)

    @jax.jit
    def advance(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(squares)(params, data), state, params)
        return optax.apply_updates(params, updates), state

    with jax.enable_x64(False):
        state: Any = optimizer.init(params)
        for _ in range(steps):
            params, state = advance(params, state)
        return np.asarray(params)


def _row(folder: Path, life: int) -> dict[str, Any]:
    lines = _lines(folder, life)
    first, last = lines[0], lines[-1]
    warm = next((line for line in lines if line["step"] >= first["step"] + _WARM), last)
    seconds = np.diff([line["time"] for line in lines]) / np.diff([line["step"] for line in lines])
    return {
        "first_step": first["step"],
        "last_step": last["step"],
        "milliseconds": 1e3 * float(np.median(seconds)) if seconds.size else np.nan,
        "lost": last["lost"],
        "master_mb": warm["master"],
        "master_mb_at_end": last["master"],
        "store_mb": warm["store"],
        "store_mb_at_end": last["store"],
    }


def _log(folder: Path, life: int) -> Path:
    return folder / f"life-{life}.jsonl"


def _lines(folder: Path, life: int) -> list[dict[str, Any]]:
    path = _log(folder, life)
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(text) for text in whole.splitlines()]


def signal_workers(cluster: Cluster, workers: Sequence[int], number: signal.Signals) -> list[int]:
    """To the processes of these workers, modulo N, as far as they are there."""
    pids = [pid for w in workers if (pid := cluster.pids[w % cluster.num_workers]) is not None]
    _signal_all(pids, number)
    return pids


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _resident(pid: int) -> float:
    """Memory of a process, in MB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _store() -> float:
    """Memory of Ray's store and the process that has it, a child of this one."""
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
            return _resident(int(pid))
    return np.nan


if __name__ == "__main__":
    sys.exit(run_command(run))
