"""Data that is made on the workers: once, only what a plan needs, and never by the master."""

import os

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cluster import Cluster, train_on_cluster
from bcgc_jax.cluster.sources import Made, Shelf
from tests.cluster.test_cluster import ADAM, COUNT, LAW, SGD, N, assert_descended, case, exact, loss


def test_a_worker_makes_each_subset_once_and_forgets_what_no_plan_needs():
    asked = []

    def source(number, count):
        asked.append((number, count))
        return {"x": np.full(3, number)}

    shelf = Shelf()
    subsets, again = ([Made(source, 0, j, 4) for j in range(4)] for _ in range(2))
    found = shelf.take({1: subsets[1], 2: subsets[2]}, fetched=lambda _: None)
    assert [found[j]["x"].tolist() for j in (1, 2)] == [[1, 1, 1], [2, 2, 2]]
    shelf.take({2: again[2], 3: again[3]}, fetched=lambda _: None)
    assert asked == [(1, 4), (2, 4), (3, 4)]
    shelf.take({1: again[1]}, fetched=lambda _: None)
    assert asked[3:] == [(1, 4)]
    other = Made(lambda number, count: {"x": np.zeros(1)}, 1, 1, 4)
    assert shelf.take({1: other}, fetched=lambda _: None)[1]["x"].tolist() == [0]
    assert shelf.take({0: "a reference"}, fetched=str.upper) == {0: "A REFERENCE"}


@pytest.mark.slow
def test_data_is_made_where_it_is_and_gradients_are_those_of_all_of_it(tmp_path, monkeypatch):
    params, data = case(40)
    np.savez(tmp_path / "data.npz", **data)
    place = str(tmp_path)

    def source(number, count):
        with open(os.path.join(place, f"{os.getpid()}-{number}-{count}"), "a") as file:
            file.write("made\n")
        whole = np.load(os.path.join(place, "data.npz"))
        return {name: np.array_split(whole[name], count)[number] for name in whole.files}

    with Cluster(N) as cluster:
        given = jax.random.key(5), cluster, loss, params
        problem = bcgc.Problem(LAW, N, COUNT, 40)
        found = train_on_cluster(*given, source, ADAM, 8, problem=problem, method="tandon:1")
        assert_descended(found.params, params, data, ADAM, 8)
        made = [name.split("-") for name in os.listdir(tmp_path) if "-" in name]
        held, pids = {(int(pid), int(number)) for pid, number, _ in made}, cluster.pids
        assert held == {(pids[w], j) for w in range(N) for j in (w, (w + 1) % N)}
        assert str(os.getpid()) not in {pid for pid, *_ in made}
        # A plan of fewer subsets makes nothing anew.
        cluster.assign(loss, cluster.plan, params, source)
        assert all((tmp_path / name).read_text() == "made\n" for name in os.listdir(tmp_path) if "-" in name)
        exact(cluster, params, data)
        odd = case(41)[1]
        uneven = lambda j, n: {k: np.array_split(x, n)[j] for k, x in odd.items()}  # noqa: E731
        with pytest.raises(ValueError, match=r"one size; there are some of 10 and 11 samples"):
            cluster.assign(loss, cluster.plan, params, uneven)
        with pytest.raises(ValueError, match=r"of 11 samples at least; there are some of 10"):
            cluster.assign(loss, cluster.plan, params, source, batch_size=11)
        told = train_on_cluster(*given, source, SGD, 8)  # without a problem too
        assert_descended(told.params, params, data, SGD, 8)
