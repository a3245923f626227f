"""The programs of the docs have the loss of training without sharing."""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
STEPS = 20
_PROCESS = """
import sys
import compiled_processes
print("loss", compiled_processes.main(*map(eval, sys.argv[1:]))[1])
"""
_SAME_CHUNKS = """
import compiled_nnx, jax, numpy as np
from bcgc_jax.balancing.compiled import SharedWork
mesh = compiled_nnx.mesh_of_workers()
trained = []
for stored in (1, 2):
    shared = SharedWork(mesh, max_subsets=stored, equal_chunks=True)
    trained.append(compiled_nnx.train(mesh, shared, 5)[0])
leaves = zip(*map(jax.tree.leaves, trained))
print("loss", max(float(np.abs(a - b).max()) for a, b in leaves))
"""


@pytest.fixture(scope="module")
def loss_without_sharing():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(EXAMPLES)
        example = importlib.import_module("compiled")
    params = example.parameters(jax.random.key(0))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    slope = jax.jit(jax.value_and_grad(example.loss))
    for step in range(STEPS):
        first = step * example.SAMPLES
        rows = np.arange(first, first + example.SAMPLES) % len(example.TEXT)
        value, gradient = slope(params, example.TEXT[rows])
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
    return float(value)


def started(*arguments, **variables):
    """A Python process with the examples, and with these variables."""
    environment = {
        name: text for name, text in os.environ.items() if name != "XLA_FLAGS"
    }
    environment |= {"BCGC_HANDOUT_KEY": "key", "JAX_PLATFORMS": "cpu"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), *sys.path])
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def said(*processes):
    try:
        texts = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes)
    return texts


def number(text):
    return float(text.rpartition("loss ")[2])


def test_a_program_with_load_balancing_differs_in_four_lines():
    text = (EXAMPLES / "compiled.py").read_text("utf-8")
    assert text.count("  # +") == 4


@pytest.mark.slow
def test_one_process_finds_the_loss_of_training_without_sharing(loss_without_sharing):
    (text,) = said(started(EXAMPLES / "compiled.py"))
    # Sums are in another order: 2e-6 was measured.
    assert number(text) == pytest.approx(loss_without_sharing, rel=1e-4)


@pytest.mark.slow
def test_two_processes_find_the_loss_of_training_without_sharing(loss_without_sharing):
    with (
        socket.create_server(("127.0.0.1", 0)) as first_socket,
        socket.create_server(("127.0.0.1", 0)) as second_socket,
    ):
        ports = first_socket.getsockname()[1], second_socket.getsockname()[1]
    texts = said(
        *(
            started("-c", _PROCESS, str(rank), str(STEPS), repr(ports))
            for rank in (0, 1)
        )
    )
    for text in texts:
        assert number(text) == pytest.approx(loss_without_sharing, rel=1e-4)


@pytest.mark.slow
def test_flax_finds_the_parameters_of_the_same_chunks_without_sharing():
    pytest.importorskip("flax")
    alike, started_by_a_user = said(
        started("-c", _SAME_CHUNKS), started(EXAMPLES / "compiled_nnx.py")
    )
    assert number(alike) < 1e-5
    assert 0 < number(started_by_a_user) < np.log(3)  # below that of guessing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "layouts"),
    [(1, ["1 × 1"]), (2, ["2 × 1", "1 × 2"]), (4, ["4 × 1", "2 × 2"])],
)
def test_the_check_for_other_machines_says_that_it_is_exact_here(devices, layouts):
    script = EXAMPLES / "compiled_check.py"
    (text,) = said(started(script, JAX_NUM_CPU_DEVICES=str(devices)))
    first_line, *lines = text.splitlines()
    assert f"{devices} × cpu" in first_line
    for layout, line in zip(layouts, lines, strict=False):
        assert line.startswith(f"{layout} devices: exact, largest error")
        assert "ms per turn" in line
    # A worker that shares with nobody shows nothing.
    alone = ["One worker cannot share work. Use two devices or more."]
    assert lines[len(layouts) :] == alone * (devices <= 2)
