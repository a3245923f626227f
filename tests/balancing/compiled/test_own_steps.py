"""Own steps of a compiled program: whole chunks, and the exact gradient."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from bcgc_jax.balancing.compiled import SharedWork

SAMPLES = 128
inputs = np.random.default_rng(0).standard_normal((SAMPLES, 4)).astype(np.float32)
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
shared = SharedWork(mesh, chunks=4)
loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
gradient = jax.jit(shared.value_and_grad(loss, check=False))
stored = shared.place(inputs)
questions = []
answer = shared._questions.answer

def counted(*arguments):
    questions.append(arguments)
    return answer(*arguments)

shared._questions.answer = counted
weights = jnp.arange(1.0, 5.0) / 4
exact = jax.grad(loss)(weights, inputs)
found = []
for step in range(6):
    before = shared.shares[0].shares
    loops = shared.coordinator._steps
    loops._judge.mode = loops._judge.mode._replace(is_shared=step % 2 == 0)
    loops._judge.add = lambda step: None
    value, slope, ok = gradient(weights, stored, step)
    error = float(jnp.abs(slope - exact).max() / jnp.abs(exact).max())
    chunks = sum(shared.count.values())
    found.append([before, bool(ok), error, chunks, len(questions)])
    questions.clear()
print("found", json.dumps(found))
"""


@pytest.mark.slow
def test_gradients_are_exact_in_either_mode_of_one_program():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    steps = json.loads(process.stdout.rpartition("found ")[2])
    assert [is_shared for is_shared, *_ in steps] == [False, True] * 3
    assert [ok for _, ok, *_ in steps] == [True] * 6
    assert [chunks for *_, chunks, _ in steps] == [2 * 4, 2 * 6] * 3
    # A worker asks before its own chunks and behind them, or around each shared one.
    assert [count for *_, count in steps] == [2 * 2, 2 * 6 + 2] * 3
    assert max(error for _, _, error, *_ in steps) < 1e-6  # 2.7e-7 was measured


RAISING = """
import json, time
import jax, jax.numpy as jnp, numpy as np
from bcgc_jax.balancing.compiled import SharedWork

mesh = jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
inputs = np.ones((96, 4), np.float32)
found = []
for adapt in (True, False):
    calls = []

    def read(x):
        calls.append(x)
        if len(calls) == 5:
            raise OSError("the disk is gone")
        return np.float32(0)

    def loss(w, rows):
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        return jnp.mean(rows @ w) + jax.pure_callback(read, scalar, rows[0, 0])

    shared = SharedWork(mesh, chunks=4, adapt=adapt)
    gradient = jax.jit(shared.value_and_grad(loss, check=False))
    stored = shared.place(inputs)
    began = time.monotonic()
    try:
        jax.block_until_ready(gradient(jnp.ones(4), stored, 0))
        raised = ""
    except jax.errors.JaxRuntimeError as error:
        raised = str(error)
    seconds = time.monotonic() - began
    shared.reset()
    plain = jax.jit(shared.value_and_grad(lambda w, rows: jnp.mean(rows @ w)))
    after = bool(plain(jnp.ones(4), stored, 0)[2])
    found.append([seconds, "the disk is gone" in raised, after])
print("found", json.dumps(found), flush=True)
"""


@pytest.mark.slow
def test_a_callback_that_raises_ends_the_step_for_all_workers():
    """A plain `psum` waits for 40 s here, and then ends the process."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, "-c", RAISING],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )
    line = next(row for row in process.stdout.splitlines() if row.startswith("found "))
    for seconds, is_named, is_ok_after_reset in json.loads(line[len("found ") :]):
        assert seconds < 5.0  # 0.8 was measured, compiling included
        assert is_named
        assert is_ok_after_reset
