"""Loops that share their work: four processes find the parameters of one."""

import importlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bcgc_jax.balancing.dispatch import join, serve

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
WORKERS = 4
SAMPLES = 128
STEPS = 8  # in the first ones each worker does its own chunks
SLOW = 1
GROUPS = 2  # of two processes each, where a worker is a group
# One of them is slow, so that others do its chunks. It tells the parameters, and what
# it has computed.
PROCESS = """
import importlib, pickle, sys, time
from bcgc_jax.balancing.dispatch import Share
name, rank, slow, *rest = pickle.loads(bytes.fromhex(sys.argv[1]))
done, original = [], Share.step

def step(self, *asked):
    for chunk in original(self, *asked):
        time.sleep(0.1 * (rank == slow))
        done.append(chunk)
        yield chunk

Share.step = step
params = importlib.import_module(name).main(rank, *rest)
jax = sys.modules.get("jax")
leaves = jax.device_get(jax.tree.leaves(params)) if jax else [params]
print("ends", pickle.dumps((leaves, done, bool(jax))).hex())
"""


class AllChunks:
    """In place of a share: all chunks of a step, of all workers."""

    num_workers = WORKERS

    def __init__(self, equal_chunks=False):
        with serve(WORKERS, key="any", equal_chunks=equal_chunks) as coordinator:
            shares = [
                join(coordinator.address, rank, key="any") for rank in range(WORKERS)
            ]
            self.chunks = sorted({chunk for share in shares for chunk in share.held})

    def step(self, step):
        return (chunk._replace(step=step) for chunk in self.chunks)


def _samples(done, workers=WORKERS):
    """Samples of chunks, (step, number). SAMPLES is enough for all sizes of chunks."""
    return [(chunk.step, row) for chunk in done for row in chunk.rows(SAMPLES, workers)]


def _all_samples(first):
    return itertools.product(range(first, STEPS), range(SAMPLES))


def _in_processes(name, *paths, slow=SLOW):
    with (
        socket.create_server(("127.0.0.1", 0)) as first_socket,
        socket.create_server(("127.0.0.1", 0)) as second_socket,
    ):
        ports = first_socket.getsockname()[1], second_socket.getsockname()[1]
    environment = os.environ | {
        "BCGC_HANDOUT_KEY": os.urandom(16).hex(),
        "XLA_FLAGS": "",
    }
    environment["OMP_NUM_THREADS"] = (
        "1"  # threads of four processes would wait for each other
    )
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROCESS,
                pickle.dumps((name, rank, slow, STEPS, ports, *paths)).hex(),
            ],
            env=environment | {"PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORKERS
    return [
        pickle.loads(bytes.fromhex(text.rpartition("ends ")[2])) for text in outputs
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plain_jax", "with_equinox", "with_flax", "with_numpy"]
)
def test_four_processes_find_the_parameters_of_one(name, tmp_path, monkeypatch):
    """With Flax one process has made the first two steps, and four go on.

    There chunks are equal: what dropout and BatchNorm do depends on how data are cut.
    """
    monkeypatch.syspath_prepend(EXAMPLES)
    example, alone = importlib.import_module(name), AllChunks(name == "with_flax")
    first = 0
    whole: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    if name == "with_flax":
        first = 2
        whole = (tmp_path / "whole",)
        kept = (tmp_path / "kept",)
        example.train(alone, lambda total: total, first, *kept)
    expected = example.train(alone, lambda total: total, STEPS, *whole)
    results = _in_processes(name, *kept)
    for leaves, _, _ in results:
        for leaf_of_one, leaf_of_four in zip(
            jax.tree.leaves(expected), leaves, strict=True
        ):
            np.testing.assert_allclose(leaf_of_one, leaf_of_four, rtol=0, atol=1e-6)
    samples = [_samples(done) for _, done, _ in results]
    assert sorted(itertools.chain(*samples)) == [*_all_samples(first)]
    assert len(samples[SLOW]) < SAMPLES * (STEPS - first) / WORKERS
    assert {has_jax for _, _, has_jax in results} == {name != "with_numpy"}
    if name == "with_flax":
        params_kept = example.train(alone, None, STEPS, *kept)  # by the four
        assert jax.tree.all(
            jax.tree.map(
                lambda a, b: np.allclose(a, b, atol=1e-6), params_kept, expected
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers", "slow"),
    [("with_torch", WORKERS, SLOW), ("groups_with_torch", GROUPS, 2)],
)
def test_a_loop_of_torch_finds_the_parameters_of_one_that_shares_nothing(
    monkeypatch, name, workers, slow
):
    """No process has JAX. In the second group the first process is slow.

    PyTorch averages tokens over the whole step at once there.
    """
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("with_torch")
    model = example.make_model()
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for step in range(STEPS):
        rows = torch.arange(step * example.SAMPLES, (step + 1) * example.SAMPLES)
        scores = model(example.TOKENS[rows]).flatten(0, 1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            scores, example.TARGETS[rows].flatten()
        ).backward()
        optimizer.step()
    expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    moved = np.abs(expected - start).max()
    results = _in_processes(name, slow=slow)
    for (params,), _, has_jax in results:
        assert not has_jax
        error = np.abs(params - expected).max() / moved
        assert error < 1e-6  # four steps of float32; the worst of five runs is 1.6e-7
    samples = [_samples(done, workers) for _, done, _ in results]
    assert sorted(itertools.chain(*samples)) == [*_all_samples(0)]
    assert len(samples[slow]) < SAMPLES * STEPS / workers


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem
)
def test_a_loop_gains_few_lines(path):
    assert path.read_text().count("# +\n") <= 10
