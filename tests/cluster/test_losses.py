"""Losses that draw and make a new state on workers, by the documented keys."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax import coding
from bcgc_jax.cluster.engine import Bench, Made
from bcgc_jax.cluster.training import ClusterTraining
from bcgc_jax.cluster.worker import Duty, WorkerProcess
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import CodingPlan, split_unevenly
from bcgc_jax.plans.sharing import WorkSharing
from tests.cluster.training import decoded
from tests.cluster.world import World, chunk_worker
from tests.coding.stateful import PARAMS, SGD, STATE, key_of, loss
from tests.scripts import ROOT, python

OWN, _ = coding.stateful(loss, SGD)
GIVEN, SEED = coding.Stateful(PARAMS, STATE), 11
DATA = np.random.default_rng(6).normal(size=(16, 3)).astype(np.float32)

plain = jax.jit(jax.grad(loss, has_aux=True))


def assert_sum(vector, step, chunks):
    """The sum over chunks of weight, samples, subset and number; measured 2e-7."""
    key, total = jax.random.key(SEED), np.zeros(len(vector))
    for weight, samples, *numbers in chunks:
        slope_and_state = plain(PARAMS, STATE, samples, key_of(key, step, *numbers))
        total += weight * np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(slope_and_state)]
        )
    np.testing.assert_allclose(vector, total, rtol=1e-6, atol=1e-6)


def test_all_who_code_a_subset_draw_alike():
    """Two blocks on shares of the samples, two chunks, two of three subsets stored."""
    whole = coding.coding_plan(jax.random.key(0), GIVEN, [0, 6, 0])
    shares = tuple(
        whole.blocks[0]._replace(share=share) for share in ((0.0, 0.5), (0.5, 1.0))
    )
    plan = jax.tree.map(np.asarray, CodingPlan(whole.codes * 2, shares, True, chunks=2))
    parts = split_unevenly(DATA, 3)  # of 6, 5 and 5 samples
    duty = Duty(OWN, plan, GIVEN, np.array([18, 15, 15]) / 16, None, SEED, False)
    group = [
        WorkerProcess(duty, w, {j: parts[j] for j in plan.held(w)}) for w in range(3)
    ]
    messages = [list(worker.compute(1, 5, jax.tree.leaves(GIVEN))) for worker in group]
    chunks = []
    for j, ends in enumerate([(0, 2, 3, 5, 6), (0, 1, 2, 4, 5), (0, 1, 2, 4, 5)]):
        chunks += [
            ((end - begin) / 16, parts[j][begin:end], j, begin)
            for begin, end in pairwise(ends)
        ]
    assert_sum(decoded(plan, messages, GIVEN), 5, chunks)


def test_all_who_store_a_chunk_draw_alike():
    plan = SharedPlan(WorkSharing(4, 2, 2))
    cut, weights = plan.cut(split_unevenly(DATA, 4))
    duty = Duty(OWN, plan, GIVEN, weights, None, SEED, False)
    group = [chunk_worker(duty, worker, cut) for worker in range(4)]
    # Worker 3 is slow, and others do what it stores.
    world = World(group, lambda worker, chunk: 9.0 if worker == 3 else 1.0, plan)
    gradient, _ = world.step(GIVEN, iteration=5)
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    assert_sum(
        vector,
        5,
        [(weights[chunk], cut[chunk], *chunk) for chunk in cut if len(cut[chunk])],
    )


def test_a_worker_that_makes_its_data_refuses_what_the_master_could_not_see():
    plan = jax.tree.map(
        np.asarray, coding.coding_plan(jax.random.key(0), PARAMS, [4, 0])
    )
    held = {0: Made(lambda number, count: DATA, 0, 0, 2)}

    def summed(params, batch):
        return jnp.sum((batch @ params["w"] - params["b"]) ** 2)

    refused = (
        (lambda p, batch: (p["w"].sum(), p["b"]), "stateful"),
        (summed, "it is a sum over the samples"),
    )
    bench = Bench(fetched=str)
    for number, (refused_loss, words) in enumerate(refused):
        duty = Duty(refused_loss, plan, PARAMS, np.ones(2), None, SEED, False)
        with pytest.raises(ValueError, match=words):
            bench.worker(number, duty, 0, held, (), "")


_SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, optax
import bcgc_jax as bcgc
from bcgc_jax import coding
from bcgc_jax.cluster import Cluster, Told, train_on_cluster
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import split_unevenly
from bcgc_jax.plans.sharing import WorkSharing
from tests.coding.stateful import key_of

@jax.custom_vjp
def twice(x):
    return 2 * x
twice.defvjp(lambda x: (twice(x), None), lambda _, slope: (3 * slope,))

@jax.custom_jvp
def cube(x):
    return x**3
cube.defjvp(lambda x, t: (cube(*x), 5 * x[0] ** 2 * t[0]))

def loss(params, state, batch, key):
    kept = jnp.where(jax.random.bernoulli(key, 0.5, batch.shape), 2 * batch, 0)
    return jnp.mean(cube(twice(kept @ params))), batch.mean()

data = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
problem = bcgc.Problem(bcgc.ShiftedExponential(1.0, 1.0), 2, 4, 10)
key = jax.random.key(0)
own, optimizer = coding.stateful(loss, optax.sgd(0.1))
params = coding.Stateful(jnp.array([0.5, -1.0, 0.25]), jnp.float32(0.0))
with Cluster(2) as cluster:
    plan = SharedPlan(WorkSharing(2, 2, 4))
    cut, weights = plan.cut(parts := split_unevenly(data, 2))
    cluster.assign(own, plan, params, parts, seed=11)
    found = cluster.gradient(params, iteration=3).gradient
    told = Told(problem, "uncoded")
    trained = train_on_cluster(key, own, told, cluster, params, data, optimizer, 1)
slope = jax.grad(lambda p, *given: loss(p, 0.0, *given)[0])
keys = {c: key_of(jax.random.key(11), 3, *c) for c in cut}
filled = [c for c in cut if len(cut[c])]
want = sum(weights[c] * slope(params.params, cut[c], keys[c]) for c in filled)
mean = data.mean()
state = trained.params.state
for one, other in ((found.params, want), (found.state, mean), (state, mean)):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(want).max())
"""


@pytest.mark.slow
def test_a_script_whose_loss_draws_makes_a_state_and_has_derivatives_of_its_own():
    """They are of slopes that are none, which no other way to them would find."""
    done = python(_SCRIPT, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_training_on_processes_says_where_its_loss_is():
    """It was None, and `training.loss[-1]` a TypeError."""
    nothing = np.zeros(0)
    training = ClusterTraining(
        params=PARAMS,
        opt_state=None,
        clock=nothing,
        fresh=None,
        stepped=nothing,
        metrics=None,
        first_step=0,
        paced=nothing,
        num_workers=nothing,
        faults=(),
        work=(),
        decisions=(),
    )
    with pytest.raises(
        AttributeError, match=r"no loss: pass evaluate, .* read what it says from m"
    ):
        training.loss[-1]
    assert "loss" not in repr(training)
