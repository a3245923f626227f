"""Chunks handed out to loops of one's own: sums are whole, whoever comes late, dies or is silent."""

import csv
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from bcgc_jax.handout import StepFailed, join, serve
from bcgc_jax.handout.line import Line

KEY = "secret"
WORKERS, SAMPLES = 3, 96
DATA = np.random.default_rng(0).integers(0, 2**40, SAMPLES)


class Loops:
    """Each rank in a thread; sums of whole numbers meet at a barrier, as an all-reduce would."""

    def __init__(self, coordinator, seconds=lambda rank: 0.0):
        self.coordinator, self.seconds = coordinator, seconds
        self.sums, self.failed, self.errors = {}, [], []

    def run(self, ranks, step):
        threads = [threading.Thread(target=self.take_part, args=(rank, step)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
            assert not thread.is_alive()
        assert not self.errors
        return sum(self.sums.pop(rank, 0) for rank in ranks)

    def take_part(self, rank, step):
        try:
            with join(self.coordinator.address, rank, key=KEY) as share:
                self.sums[rank] = self.one_step(share, rank, step)
        except StepFailed as error:
            self.failed.append((rank, str(error)))
        except Exception as error:
            self.errors.append(error)

    def one_step(self, share, rank, step):
        total = 0
        for chunk in share.step(step):
            time.sleep(self.seconds(rank))
            found = int(DATA[list(chunk.rows(SAMPLES, WORKERS))].sum()) * (step + 1)
            if share.counts(chunk):
                total += found
        return total


def _whole(step):
    return int(DATA.sum()) * (step + 1)


@pytest.fixture
def coordinator():
    with serve(WORKERS, 2, 3, key=KEY, patience=1.0) as coordinator:
        yield coordinator


def test_every_sample_is_in_one_sum_and_the_fast_ones_help_the_slow_one(coordinator):
    done = []

    def seconds(rank):
        done.append(rank)
        return 0.05 * (rank == 1)

    loops = Loops(coordinator, seconds)
    assert [loops.run(range(WORKERS), step) for step in (0, 1, 7)] == [_whole(step) for step in (0, 1, 7)]
    assert done.count(1) < 3 * 5  # its own five chunks each time


def test_what_each_may_be_given_is_told_before_and_has_the_samples_of_its_subsets(coordinator):
    held = []
    for rank in range(WORKERS):
        with join(coordinator.address, rank, key=KEY) as share:
            assert [chunk.subset for chunk in share.held][:5] == [rank] * 5
            held += [row for chunk in share.held for row in chunk.rows(SAMPLES, WORKERS)]
    assert np.all(np.bincount(held, minlength=SAMPLES) >= 1)
    assert abs(len(held) - 2 * SAMPLES) <= 8  # as much as two subsets: the last chunks are not alike


def test_nobody_is_told_that_a_step_is_complete_before_all_are_there(coordinator):
    """With all data on all workers one could do everything, and its sum could meet one of another attempt."""
    with serve(2, 2, 1, key=KEY, whole=True) as both:
        loops, told = Loops(both), []
        first = threading.Thread(target=lambda: told.append(loops.run([0], 0)))
        first.start()
        time.sleep(0.3)
        assert not told
        second = loops.one_step(join(both.address, 1, key=KEY), 1, 0)
        first.join(10.0)
        assert sum(told) + second == _whole_of_two()


def _whole_of_two():
    return sum(
        int(DATA[list(range(round(k * SAMPLES / 3), round((k + 1) * SAMPLES / 3)))].sum()) for k in (0, 1)
    )


def test_a_worker_that_goes_makes_the_step_fail_for_all_and_its_successor_does_it_anew(coordinator):
    """Also if it has done chunks: these are gone with it."""
    loops = Loops(coordinator, lambda rank: 0.02)
    lost = join(coordinator.address, 0, key=KEY)
    chunks = lost.step(4)
    assert lost.counts(next(chunks))
    others = threading.Thread(target=loops.run, args=([1, 2], 4))
    others.start()
    time.sleep(0.1)
    lost.close()
    others.join(10.0)
    assert sorted(rank for rank, _ in loops.failed) == [1, 2]
    assert all("worker 0 is gone: step 4 is to be begun anew" in why for _, why in loops.failed)
    assert loops.run(range(WORKERS), 4) == _whole(4)


def test_a_silent_worker_makes_the_step_fail_after_the_patience(coordinator):
    loops = Loops(coordinator)
    silent = join(coordinator.address, 0, key=KEY)
    chunks = silent.step(2)
    first = next(chunks)
    began = time.monotonic()
    loops.run([1, 2], 2)
    assert 0.9 < time.monotonic() - began < 3.0
    assert all("silent for 1 s" in why for _, why in loops.failed)
    with pytest.raises(StepFailed, match="silent"):  # it was, and comes back
        silent.counts(first)
    results = []
    again = threading.Thread(target=lambda: results.append(loops.run([1, 2], 2)))
    again.start()
    results.append(loops.one_step(silent, 0, 2))
    again.join(10.0)
    assert sum(results) == _whole(2)


def test_a_step_that_is_begun_anew_by_one_fails_for_the_others(coordinator):
    loops = Loops(coordinator, lambda rank: 0.05)
    share = join(coordinator.address, 0, key=KEY)
    next(share.step(0))
    others = threading.Thread(target=loops.run, args=([1, 2], 0))
    others.start()
    time.sleep(0.1)
    begun = threading.Thread(target=lambda: loops.sums.update({0: loops.one_step(share, 0, 0)}))
    begun.start()
    others.join(10.0)
    assert len(loops.failed) == 2
    rest = loops.run([1, 2], 0)
    begun.join(10.0)
    assert rest + loops.sums.pop(0) == _whole(0)


def test_who_asks_for_another_step_than_the_others_is_refused(coordinator):
    one, two = (join(coordinator.address, rank, key=KEY) for rank in (0, 1))
    next(one.step(5))
    with pytest.raises(ValueError, match="asks for step 4, the others are at 5"):
        next(two.step(4))
    with pytest.raises(ValueError, match="once for each chunk"):
        one.counts(one.held[0])


def test_an_old_process_is_told_that_another_one_has_its_place(coordinator):
    old = join(coordinator.address, 0, key=KEY)
    join(coordinator.address, 0, key=KEY)
    with pytest.raises(ValueError, match="another process has taken the place of worker 0"):
        next(old.step(0))
    with pytest.raises(ValueError, match="from 0 to 2: got rank 3"):
        join(coordinator.address, 3, key=KEY)


@pytest.mark.parametrize(
    "message", [1, [], {}, {"join": "0"}, {"begin": 0}, {"rank": 0, "life": 0, "attempt": 1, "ticket": "x"}]
)
def test_nonsense_harms_nobody(coordinator, message):
    line = Line(coordinator.address, KEY.encode())
    with pytest.raises(ConnectionError):
        _ask_both(line, message)
    assert Loops(coordinator).run(range(WORKERS), 0) == _whole(0)


def _ask_both(line, message):
    """The first may be refused in words: then it may go on."""
    line.ask(message)
    line.ask(None)


def test_without_a_key_nobody_is_listened_to(coordinator, monkeypatch):
    monkeypatch.delenv("BCGC_HANDOUT_KEY", raising=False)
    with pytest.raises(ValueError, match="BCGC_HANDOUT_KEY"):
        join(coordinator.address, 0)
    with pytest.raises(ConnectionError):
        join(coordinator.address, 0, key="another")
    monkeypatch.setenv("BCGC_HANDOUT_KEY", KEY)
    join(coordinator.address, 0).close()


def test_the_record_has_each_chunk_of_complete_steps_once(tmp_path):
    path = tmp_path / "chunks.csv"
    with serve(WORKERS, 1, 2, key=KEY, equal_chunks=True, record=path) as coordinator:
        lost = join(coordinator.address, 0, key=KEY)
        next(lost.step(0))
        lost.close()
        loops = Loops(coordinator, lambda rank: 0.01 * (1 + rank))
        for step in (0, 1):
            assert loops.run(range(WORKERS), step) == _whole(step)
    rows = list(csv.DictReader(path.open()))
    assert [(row["step"], row["worker"]) for row in rows].count(("1", "2")) == 2
    assert len(rows) == 2 * WORKERS * 2
    assert all(0.01 * (1 + int(row["worker"])) <= float(row["seconds"]) < 1 for row in rows)
    assert {row["subset"] == row["worker"] for row in rows} == {True}


def test_joining_imports_neither_jax_nor_numpy():
    program = (
        "import sys; from bcgc_jax.handout import join; print({'jax', 'numpy', 'ray'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_plan_that_is_none_is_refused():
    for given in ((3, 4, 8), (3, 0, 8), (3, 2, 0)):
        with pytest.raises(ValueError, match="subsets each"):
            serve(*given, key=KEY)
