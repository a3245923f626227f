"""Checkpoints that are damaged, of another training, or cannot be written."""

import json
import os
import resource
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bcgc_jax.cluster import Checkpoints, Run, Step, json_lines
from bcgc_jax.cluster.checkpoints import made_with
from bcgc_jax.cluster.training import evaluated
from tests.cluster.training import case, loss
from tests.problems import not_none


def states(count, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [
        {"a": rng.normal(size=(30, 40)).astype(dtype), "b": np.full(3, k, dtype)}
        for k in range(count)
    ]


def assert_last(checkpoints, want, number):
    steps, state = checkpoints.last(want[0]) or (0, None)
    assert steps == number
    jax.tree.map(np.testing.assert_array_equal, state, want[number])


def written(folder, count=4):
    with Checkpoints(folder) as checkpoints:
        for k, state in enumerate(states(count)):
            checkpoints.save(k, state, wait=True)
    return states(count)


@pytest.mark.parametrize("size", [0, 40, 400, 4000])
def test_the_intact_one_before_a_damaged_checkpoint_is_taken(tmp_path, size):
    want = written(tmp_path)
    os.truncate(tmp_path / "steps-3.npz", size)
    with Checkpoints(tmp_path) as checkpoints:
        words = r"iteration 3 in .* is damaged \(.*\): that of iteration 2 is taken"
        with pytest.warns(UserWarning, match=words):
            assert_last(checkpoints, want, 2)
        assert not (tmp_path / "steps-3.npz").exists()
        checkpoints.save(3, want[3], wait=True)  # in its place
    with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_last(checkpoints, want, 3)


def test_where_all_are_damaged_and_where_there_is_a_file_it_is_said(tmp_path):
    want = written(tmp_path)
    for path in tmp_path.iterdir():
        raw = bytearray(path.read_bytes())
        raw[2000] ^= 1  # one bit
        path.write_bytes(raw)
    words = r"no checkpoint in .* can be read, they are damaged"
    with pytest.raises(ValueError, match=words), Checkpoints(tmp_path) as checkpoints:
        checkpoints.last(want[0])
    with pytest.raises(FileExistsError, match=r"steps-3\.npz"):
        Checkpoints(tmp_path / "steps-3.npz")


def test_the_last_two_are_kept_and_what_is_half_written_is_removed(tmp_path):
    written(tmp_path)
    (tmp_path / "steps-4.part").touch()
    (tmp_path / "the user's.part").touch()
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.last(states(1)[0]) or [0])[0] == 3
    assert sorted(os.listdir(tmp_path)) == [
        "steps-2.npz",
        "steps-3.npz",
        "the user's.part",
    ]


def test_numbers_of_all_kinds_and_random_keys_come_back(tmp_path):
    state: Any = (
        jnp.array([0.1, 2], jnp.bfloat16),
        {"count": np.int32(7), "key": jax.random.key(3)},
        None,
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, wait=True)
        steps, (small, counter, nothing) = checkpoints.last(state) or (0, state)
    assert (steps, small.dtype, small.tolist(), nothing) == (
        1,
        state[0].dtype,
        state[0].tolist(),
        None,
    )
    assert (counter["count"], counter["count"].dtype) == (7, np.int32)
    assert jax.random.bits(counter["key"]) == jax.random.bits(jax.random.key(3))


def test_another_training_is_refused_by_what_differs(tmp_path):
    params, data = case()
    training: dict[str, Any] = {
        "key": jax.random.key(0),
        "loss": loss,
        "data": data,
        "params": params,
    }
    training |= {"optimizer": optax.adam(1e-2), "scheme": "optimal"}
    state = states(1)[0]

    def last(like=state, **changed):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoint = checkpoints.last(like, made_with(**training | changed))
            if checkpoint is None:
                checkpoints.save(1, state)
        return checkpoint

    assert last() is None
    assert last()[0] == 1
    # The parameters that it begins with count for nothing, but for their shapes: the
    # checkpoint has others.
    assert last(params=jax.tree.map(np.zeros_like, params))[0] == 1
    changed_data = {"x": data["x"].copy(), "y": data["y"]}
    changed_data["x"][7, 2] += 1e-3
    for name, changed in (
        ("key", {"key": jax.random.key(1)}),
        (r"loss \(by its name\)", {"loss": lambda p, x: jnp.sum(p["a"])}),
        ("data", {"data": changed_data}),
        ("learning rate or optimiser", {"optimizer": optax.adam(1.01e-2)}),
        ("learning rate or optimiser", {"optimizer": optax.sgd(1e-2)}),
        (
            "learning rate or optimiser",
            {"optimizer": optax.adam(optax.linear_schedule(1e-2, 0.0, 10))},
        ),
        ("key, scheme", {"key": jax.random.key(1), "scheme": "time"}),
        ("model or optimiser", {"like": states(1, np.float16)[0]}),
        ("model or optimiser", {"like": {"a": np.zeros((30, 40), np.float32)}}),
    ):
        refused = f"made with another {name}. Take an empty folder, or what it"
        with pytest.raises(ValueError, match=refused):
            last(**changed)


def test_after_a_write_that_failed_it_goes_on_tries_again_and_ends(tmp_path, recwarn):
    limit, folders = resource.getrlimit(resource.RLIMIT_FSIZE), []
    with Checkpoints(tmp_path) as checkpoints:
        for k, state in enumerate(states(7)):
            room = 100 if k in (2, 3, 6) else limit[0]  # no room for a checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
            try:
                checkpoints.save(k, state)
                not_none(checkpoints._writing).result()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            folders.append(sorted(os.listdir(tmp_path)))
    kept = ["0", "01", "01", "01", "14", "45", "45"]
    assert folders == [[f"steps-{k}.npz" for k in steps] for steps in kept]
    first, second = (str(warning.message) for warning in recwarn)
    assert first.startswith("the checkpoint of iteration 2 could not be written to")
    assert second.startswith("the checkpoint of iteration 6 could not be written to")
    assert "([Errno 27] File too large): the training goes on" in first


def _step(k):
    return Step(k, 0.5 + k, "cyclic:2", 3, None)


def test_iterations_are_told_in_order_and_in_the_callers_precision(x64):
    steps: list[Step] = []
    threads: set[int] = set()

    def evaluate(params):
        threads.add(threading.get_ident())
        return {"loss": params * jnp.float64(1.0)}

    run: Any = Run(None, after_step=steps.append)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as beside:
        futures = [
            beside.submit(evaluated, evaluate, run, True, _step(k), jnp.float64(k))
            for k in range(7)
        ]
    assert [future.result() for future in futures] == steps
    assert [step.step for step in steps] == list(range(7))
    assert [int(step.metrics["loss"]) for step in steps] == list(range(7))
    assert {step.metrics["loss"].dtype for step in steps} == {jnp.dtype("float64")}
    assert threading.get_ident() not in threads


def test_a_line_an_iteration(tmp_path):
    log = json_lines(tmp_path / "new" / "log.jsonl")
    for k in range(2):
        log(
            _step(k)._replace(
                metrics=(jnp.float32(0.25), {"accuracy": 0.5 + k, "rows": jnp.zeros(3)})
            )
        )
    lines = [
        json.loads(line)
        for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()
    ]
    measured = {"0": 0.25, "1/accuracy": 1.5, "seconds": 1.5}
    assert lines[1] == measured | {"step": 1, "scheme": "cyclic:2", "num_workers": 3}
    assert len(lines) == 2
