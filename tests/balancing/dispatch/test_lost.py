"""Real processes that are killed or stopped: the others hear it within two seconds."""

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from bcgc_jax.balancing.dispatch import Memory, StepFailed, join, serve
from tests.balancing.dispatch.loops import DATA, SAMPLES, WORKERS, whole

KEY = "secret"
VICTIM = 2
# Seconds: until all know it, and after which a stopped worker counts as lost.
SOON, TIMEOUT = 2.0, 1.5
# It runs the steps that it is told to, and tells how each has ended.
PROCESS = f"""
import json, sys, time
from bcgc_jax.balancing.dispatch import StepFailed, join
rank, address = json.loads(sys.argv[1])
share = join(tuple(address), rank, key="{KEY}")
print(json.dumps("joined"), flush=True)
for line in sys.stdin:
    try:
        for chunk in share.step(int(line)):
            print(json.dumps("begun"), flush=True)
            time.sleep(0.05)
        said = "over"
    except (StepFailed, ConnectionError) as error:
        said = [type(error).__name__, str(error), sorted(getattr(error, "lost", []))]
    print(json.dumps(said), flush=True)
"""
COORDINATOR = f"""
import json, sys, time
from bcgc_jax.balancing.dispatch import serve
with serve({WORKERS}, 2, 4, key="{KEY}", adapt=json.loads(sys.argv[1])) as coordinator:
    print(json.dumps(coordinator.address), flush=True)
    time.sleep(600)
"""


class Process:
    def __init__(self, program: str, *arguments: Any) -> None:
        command = [sys.executable, "-c", program, *map(json.dumps, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self, step: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ended(self) -> Any:
        """How the step has ended."""
        while (said := self.hear()) == "begun":
            pass
        return said

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def started():
    processes: list[Process] = []

    def start(*arguments: Any) -> Process:
        processes.append(Process(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


def _workers(started, address):
    workers = [started(PROCESS, [rank, address]) for rank in range(WORKERS)]
    assert [worker.hear() for worker in workers] == ["joined"] * WORKERS
    for step in range(2):
        for worker in workers:
            worker.go(step)
        assert [worker.ended() for worker in workers] == ["over"] * WORKERS
    return workers


@pytest.mark.slow
@pytest.mark.parametrize("adapt", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("is_within", [False, True], ids=["between", "within"])
@pytest.mark.parametrize("signals", [signal.SIGKILL, signal.SIGSTOP])
def test_all_hear_who_was_killed_or_stopped(started, adapt, is_within, signals):
    with serve(WORKERS, 2, 4, key=KEY, adapt=adapt, timeout=TIMEOUT) as coordinator:
        *other_workers, victim = _workers(started, coordinator.address)
        if is_within:
            for worker in (victim, *other_workers):
                worker.go(2)
            assert [worker.hear() for worker in (victim, *other_workers)] == [
                "begun"
            ] * 3
        began = time.monotonic()
        victim.process.send_signal(signals)
        if not is_within:
            for worker in other_workers:
                worker.go(2)
        said = [worker.ended() for worker in other_workers]
        took = time.monotonic() - began
    why = "its connection was closed"
    limit = SOON
    if signals == signal.SIGSTOP:
        why = f"it was silent for {TIMEOUT:g} s"
        limit += TIMEOUT
    for kind, message, lost in said:
        assert kind == "StepFailed"
        assert message.startswith(f"worker {VICTIM} is lost, because {why}. Step 2")
        assert lost == [VICTIM]
    print(f"{signals.name}: all have known after {took:.2f} s")
    assert took < limit


@pytest.mark.slow
@pytest.mark.parametrize("adapt", [True, False], ids=["own", "shared"])
def test_all_hear_that_the_coordinator_was_killed(started, adapt):
    coordinator = started(COORDINATOR, adapt)
    workers = _workers(started, coordinator.hear())
    workers[0].go(2)  # it waits for the others
    assert workers[0].hear() == "begun"
    began = time.monotonic()
    coordinator.end()
    workers[1].go(2)
    said = [worker.ended() for worker in workers[:2]]
    errors = {"ConnectionError", "ConnectionResetError", "BrokenPipeError"}
    assert {kind for kind, *_ in said} <= errors
    assert time.monotonic() - began < SOON


# The others go on without it.


@pytest.mark.parametrize("adapt", [True, False], ids=["own", "shared"])
def test_the_others_compute_the_chunks_of_a_lost_worker_that_they_store(adapt):
    memory = Memory()
    begun = threading.Event()
    sums: dict[int, list[int]] = {}

    def loop(share, rank):
        present = frozenset(range(WORKERS))
        sums[rank] = []
        step = 0
        while step < 4:
            total = 0
            if step == 2 and rank != VICTIM:
                assert begun.wait(10.0)
            try:
                for chunk in share.step(step, present=present):
                    rows = list(chunk.rows(SAMPLES, WORKERS))
                    total += int(DATA[rows].sum()) * (step + 1)
                    if step == 2 and rank == VICTIM:
                        begun.set()
                        share.close()
                        return
            except StepFailed as error:
                present -= error.lost
                if not share.covers(present):
                    raise
                continue
            sums[rank].append(total)
            step += 1

    with serve(WORKERS, 2, 3, transport=memory, adapt=adapt) as coordinator:
        shares = [
            join(coordinator.address, rank, transport=memory) for rank in range(WORKERS)
        ]
        threads = [
            threading.Thread(target=loop, args=(share, rank))
            for rank, share in enumerate(shares)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10.0)
            assert not thread.is_alive()
    assert [len(sums[rank]) for rank in range(WORKERS)] == [4, 4, 2]
    for step in range(4):
        total = sum(of_rank[step] for of_rank in sums.values() if step < len(of_rank))
        assert total == whole(step)


def test_who_does_not_know_yet_who_was_lost_hears_it():
    """Two go on without it before the third has asked."""
    memory = Memory()
    with serve(4, 3, 3, transport=memory) as coordinator:
        shares = [
            join(coordinator.address, rank, transport=memory) for rank in range(4)
        ]
        late = shares[2].step(0)
        next(late)
        shares[3].close()
        outcomes: list[Any] = []

        def run(share):
            with pytest.raises(StepFailed) as raised:
                list(share.step(0))
            assert raised.value.lost == {3}
            outcomes.append(list(share.step(0, present=[0, 1, 2])))

        threads = [threading.Thread(target=run, args=(share,)) for share in shares[:2]]
        for thread in threads:
            thread.start()
        time.sleep(1.5)  # both have begun again
        with pytest.raises(StepFailed, match="worker 3 is lost") as raised:
            list(late)
        assert raised.value.lost == {3}
        outcomes.append(list(shares[2].step(0, present=[0, 1, 2])))
        for thread in threads:
            thread.join(10.0)
    chunks = [chunk[1:3] for of_rank in outcomes for chunk in of_rank]
    assert sorted(chunks) == [
        (subset, number) for subset in range(4) for number in range(5)
    ]


# A loop that is left by an error.


@pytest.mark.parametrize("adapt", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("leaves", ["raise", "break"])
def test_a_loop_that_is_left_in_a_step_fails_it_for_the_others_at_once(adapt, leaves):
    memory = Memory()
    errors: list[Any] = []
    with serve(WORKERS, 2, 3, transport=memory, adapt=adapt) as coordinator:
        shares = [
            join(coordinator.address, rank, transport=memory) for rank in range(WORKERS)
        ]

        def run(share):
            with pytest.raises(StepFailed) as raised:
                list(share.step(5))
            errors.append(raised.value)

        threads = [threading.Thread(target=run, args=(share,)) for share in shares[:2]]
        try:
            for _ in shares[2].step(5):
                for thread in threads:
                    thread.start()
                if leaves == "break":
                    break
                raise OSError("the disk is full")
        except OSError:
            pass
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive()
        assert len(errors) == 2
        for error in errors:
            assert str(error).startswith("worker 2 has left step 5 before its end.")
            assert error.lost == frozenset()
        # Its share is as good as before.
        outcomes: list[Any] = []
        threads = [
            threading.Thread(target=lambda s=share: outcomes.extend(s.step(5)))
            for share in shares
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    assert len(outcomes) == WORKERS * (3 if adapt else 5)
