"""The recorder writes what a loop took, and `load_trace` reads it."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from bcgc_jax.traces.recorder import Recorder
from bcgc_jax.traces.trace import load_trace


def test_chunks_take_what_their_computation_takes(tmp_path):
    gradient = jax.jit(jax.grad(lambda w, x: ((x @ w) ** 2).mean()))
    w, x = jnp.ones(8), jnp.ones((16, 8))

    def slow(value):
        time.sleep(0.01 * value)
        return value

    for worker in range(2):
        record = Recorder(tmp_path / "log", worker)
        for step in range(3):
            assert (
                record.chunk(step, 0, slow, 1 + worker, load=16 * (1 + worker))
                == 1 + worker
            )
            slope = record.chunk(step, 1, gradient, w, x, load=16)
            assert slope.tolist() == pytest.approx([16.0] * 8)
        record.close()
    trace = load_trace(sorted((tmp_path / "log").iterdir()))
    assert trace.microbatches is not None
    assert trace.microbatches.load is not None
    assert trace.microbatches.load[0].tolist() == [[16, 16], [32, 16]]
    assert (trace.microbatches.seconds[:, :, 0] >= [0.01, 0.02]).all()


def test_steps_and_waits_around_a_collective(tmp_path):
    """Two threads that meet: the second one is slow, so the first one waits."""
    barrier = threading.Barrier(2)

    def reduce(value):
        barrier.wait(timeout=20)
        return value

    def loop(worker):
        record = Recorder(tmp_path / "log", worker)
        for step in range(6):
            time.sleep(0.02 * worker)
            assert record.collective(step, reduce, step) == step
        record.close()

    threads = [threading.Thread(target=loop, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace = load_trace(sorted((tmp_path / "log").iterdir()))
    assert trace.step_names.tolist() == ["1", "2", "3", "4", "5"]
    seconds = trace.rows()
    # A sleep is at least as long as was asked for; a thread that sleeps not goes on at
    # once.
    assert (seconds[:, 1] >= 0.02).all()
    assert (seconds[:, 0] < seconds[:, 1]).all()


def test_chunks_and_whole_steps_are_two_logs(tmp_path):
    record = Recorder(tmp_path, 0)
    record.chunk(0, 0, int)
    record.collective(0, int)
    with pytest.raises(
        ValueError,
        match=r"worker-0\.csv can have rows of chunks or of complete steps, not both",
    ):
        record.collective(1, int)
    record.close()
