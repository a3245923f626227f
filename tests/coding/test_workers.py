"""Coded gradients on processes of Ray, some of them killed, stopped or slow."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding import (
    coding_plan,
    schedule_plan,
    split_batch,
    training_scheme,
)
from bcgc_jax.coding.delays import InjectedDelay
from bcgc_jax.coding.worker import BlockWorker
from bcgc_jax.coding.workers import CodedWorkers, Decoder, Messages, WorkersLost
from bcgc_jax.plans.plan import cyclic_plan
from tests.problems import not_none

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((48, 5)).astype(np.float32)
TARGETS = RNG.standard_normal(48).astype(np.float32)
PARAMS = {
    "first": jnp.asarray(RNG.standard_normal((5, 4)), jnp.float32),
    "last": jnp.asarray(RNG.standard_normal(4), jnp.float32),
}
KEY = jax.random.key(0)


def mean_loss(params, batch):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["first"]) @ params["last"]
    return jnp.mean((outputs - targets) ** 2)


def sum_loss(params, batch):
    return mean_loss(params, batch) * len(batch[1])


def assert_exact(value, gradient, expected_value, expected):
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for leaf, expected_leaf in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True
    ):
        assert leaf.dtype == expected_leaf.dtype
        # Of 1e-5 that are allowed, 4e-7 were measured.
        np.testing.assert_allclose(leaf, expected_leaf, atol=1e-5 * size)


def decoded(plan, loss, subsets, workers, params):
    """What messages of `workers` give, without processes."""
    decoder = Decoder(plan)
    sizes = np.array([len(part[1]) for part in subsets], float)
    weights = sizes * len(sizes) / sizes.sum() if plan.mean else np.ones(len(sizes))
    sent: list[dict[int, np.ndarray]] = [{} for _ in plan.blocks]
    for index in workers:
        held = {j: subsets[j] for j in plan.held(index)}
        worker = BlockWorker(loss, plan, index, held, weights)
        for block, values in worker.messages(params):
            if decoder.weights(block, sent[block]) is None:
                sent[block][index] = values
    messages = [
        Messages(of_block, not_none(decoder.weights(block, of_block)))
        for block, of_block in enumerate(sent)
    ]
    return decoder.value_and_grad(messages, params)


@pytest.mark.parametrize("is_mean", [True, False])
@pytest.mark.parametrize(
    ("partition", "workers"),
    [([24, 0, 0], (0, 1, 2)), ([0, 24, 0], (2, 0)), ([8, 9, 7], (1, 2, 0))],
)
def test_messages_give_the_loss_and_the_gradient_of_all_samples(
    partition, workers, is_mean
):
    loss = mean_loss if is_mean else sum_loss
    plan = coding_plan(KEY, PARAMS, partition, mean=is_mean)
    # The subsets have different sizes.
    cuts = np.split(np.arange(48), [10, 30])
    subsets = [(INPUTS[rows], TARGETS[rows]) for rows in cuts]
    value, gradient = decoded(plan, loss, subsets, workers, PARAMS)
    expected = jax.value_and_grad(loss)(PARAMS, (INPUTS, TARGETS))
    assert_exact(value, gradient, *expected)


@pytest.mark.parametrize("method", ["tandon_partial", "nested:2", "optimal"])
def test_plans_of_other_schemes_give_the_same_gradient(method):
    """A share of the samples without a code, and copies in groups of workers."""
    law = bcgc.ShiftedExponential(1.0, 0.2)
    problem = bcgc.Problem(law, 4, 24, 48)
    scheme = training_scheme(KEY, problem, bcgc.solve(problem, method), PARAMS)
    whole = split_batch((INPUTS, TARGETS), 4)
    subsets = [jax.tree.map(lambda x, j=j: x[j], whole) for j in range(4)]
    value, gradient = decoded(scheme.plan, mean_loss, subsets, range(4), PARAMS)
    expected = jax.value_and_grad(mean_loss)(PARAMS, (INPUTS, TARGETS))
    assert_exact(value, gradient, *expected)


def ray_processes(*names):
    """The processes whose command has one of the names; by default all of Ray."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and any(
            name in command for name in names or ("ray::", "/ray/")
        ):
            pids.append(int(entry.name))
    return pids


@pytest.mark.slow
def test_three_workers_and_no_process_afterwards():
    before = set(ray_processes())
    plan = coding_plan(KEY, PARAMS, [8, 9, 7])
    subsets = split_batch((INPUTS, TARGETS), 3)
    expected = jax.value_and_grad(mean_loss)(PARAMS, (INPUTS, TARGETS))
    with CodedWorkers(mean_loss, plan, subsets, timeout=60.0) as workers:
        for _ in range(10):
            value, gradient = workers.value_and_grad(PARAMS)
            assert_exact(value, gradient, *expected)
        steps = {arrival.step for arrival in workers.arrivals}
        assert steps == set(range(10))
        trace = workers.trace()
        assert trace.num_workers == 3
        assert np.all(trace.seconds > 0)
    assert_all_end(before)


def play(seed, num_workers, steps, timeout):
    """Random faults; how many steps were exact, and how many ended with WorkersLost."""
    rng = random.Random(seed)
    counts = np.bincount(
        [rng.randrange(num_workers // 2) for _ in range(24)], minlength=num_workers
    )
    plan = coding_plan(KEY, PARAMS, counts)
    rows = RNG.exponential(0.01, (steps, num_workers))
    scheme = bcgc.coding.TrainingScheme(
        plan,
        jnp.linspace(0.2, 1.0, len(plan.blocks)),
        jnp.zeros(len(plan.blocks)),
    )
    delay = InjectedDelay(scheme, rows)
    expected = jax.value_and_grad(mean_loss)(PARAMS, (INPUTS, TARGETS))
    exact = lost = 0
    named: set[int] = set()
    stopped: list[int] = []
    subsets = split_batch((INPUTS, TARGETS), num_workers)
    with CodedWorkers(mean_loss, plan, subsets, timeout=60.0, delay=delay) as workers:
        assert_exact(*workers.value_and_grad(PARAMS), *expected)
        workers.timeout = timeout
        try:
            for _ in range(steps):
                if rng.random() < 0.15:
                    strike(rng, signal.SIGKILL)
                if rng.random() < 0.2:
                    stopped += strike(rng, signal.SIGSTOP)
                if stopped and rng.random() < 0.5:
                    go_on(stopped)
                begun = time.monotonic()
                try:
                    assert_exact(*workers.value_and_grad(PARAMS), *expected)
                    exact += 1
                except WorkersLost as error:
                    named |= set(error.workers)
                    lost += 1
                    go_on(stopped)
                assert time.monotonic() - begun < 2 * timeout + 5.0
        finally:
            go_on(stopped)
    assert bool(named) == bool(lost)
    return exact, lost


def strike(rng, number):
    """Send a signal to a random worker; its process, or nothing if it has ended."""
    pids = ray_processes("ray::_Actor")
    if not pids:
        return []
    pid = rng.choice(sorted(pids))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return [pid]
    return []


def go_on(stopped):
    """Let all processes that were stopped go on."""
    while stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped.pop(), signal.SIGCONT)


@pytest.mark.slow
def test_a_gradient_is_exact_or_the_lost_workers_are_named():
    """Eight workers that are killed, stopped and slow at random."""
    before = set(ray_processes())
    exact, lost = play(0, num_workers=8, steps=40, timeout=4.0)
    assert exact + lost == 40
    assert exact > 20
    assert_all_end(before)


def assert_all_end(before):
    deadline = time.monotonic() + 10.0
    while set(ray_processes()) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert set(ray_processes()) <= before


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (schedule_plan(cyclic_plan(24.0, 2), PARAMS, 3), "a schedule without a code"),
        ("sharing:2", "use `bcgc_jax.balancing.dispatch`"),
    ],
)
def test_what_has_no_code_is_refused(plan, words):
    with pytest.raises(ValueError, match=words):
        CodedWorkers(mean_loss, plan, split_batch((INPUTS, TARGETS), 3))


def test_other_numbers_of_subsets_are_refused():
    plan = coding_plan(KEY, PARAMS, [8, 9, 7])
    with pytest.raises(ValueError, match="the plan has 3 workers"):
        CodedWorkers(mean_loss, plan, split_batch((INPUTS, TARGETS), 4))


@pytest.mark.slow
@pytest.mark.parametrize("is_joined", [False, True])
def test_an_error_in_the_loop_ends_also_a_stopped_worker(is_joined):
    """By Ctrl-C, with Ray of its own, or with Ray that the caller has started."""
    before = set(ray_processes("ray::_Actor"))
    plan = coding_plan(KEY, PARAMS, [0, 12, 12])
    subsets = split_batch((INPUTS, TARGETS), 3)
    if is_joined:
        ray = pytest.importorskip("ray")
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)

    def loop():
        with CodedWorkers(mean_loss, plan, subsets) as workers:
            workers.value_and_grad(PARAMS)
            os.kill(workers.pids[1], signal.SIGSTOP)
            # Two of three suffice, and the stopped one has few unfinished calls.
            for _ in range(5):
                workers.value_and_grad(PARAMS)
            calls = [worker for worker, _ in workers.streams.values()]
            assert calls.count(1) <= 2
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            loop()
        deadline = time.monotonic() + 10.0
        while set(ray_processes("ray::_Actor")) - before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        if is_joined:
            ray.shutdown()


@pytest.mark.slow
def test_the_example_goes_on_from_its_checkpoint(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    script = Path(__file__).parents[2] / "docs" / "examples" / "coded_workers.py"
    printed = []
    for _ in range(2):
        command = [sys.executable, str(script), str(tmp_path / "state")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout.splitlines())
    assert [line.partition(":")[0] for line in printed[0]] == [
        f"step {step}" for step in (10, 20, 30, 40)
    ]
    assert printed[1] == []
