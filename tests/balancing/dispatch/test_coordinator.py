"""Chunks for loops of one's own: sums are whole, whoever is late, dies or hangs."""

import csv
import math
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from bcgc_jax.balancing.dispatch import Chunk, StepFailed, client, join, serve
from bcgc_jax.balancing.dispatch import loops as own_loops
from bcgc_jax.balancing.dispatch.coordinator import Coordinator
from bcgc_jax.balancing.dispatch.line import TcpLine
from bcgc_jax.balancing.dispatch.messages import Begin, Done, Join
from bcgc_jax.balancing.dispatch.transport import Memory, Tcp
from bcgc_jax.balancing.placement import Placement
from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.traces import load_trace
from tests.balancing.dispatch.loops import SAMPLES, WORKERS, Loops, whole
from tests.balancing.dispatch.run import Run
from tests.raising import raising
from tests.waiting import comes_true

KEY = "secret"


@pytest.fixture
def coordinator():
    with serve(WORKERS, 2, 3, key=KEY, timeout=1.0, adapt=False) as coordinator:
        yield coordinator


def test_every_sample_is_in_one_sum_and_the_fast_ones_help_the_slow_one(coordinator):
    done = []

    def seconds(rank):
        done.append(rank)
        return 0.05 * (rank == 1)

    loops = Loops(coordinator, seconds)
    assert [loops.run(range(WORKERS), step) for step in (0, 1, 7)] == [
        whole(step) for step in (0, 1, 7)
    ]
    assert done.count(1) < 3 * 5  # its own five chunks each time


def test_what_each_may_be_given_is_told_before_and_has_the_samples_of_its_subsets(
    coordinator,
):
    held = []
    for rank in range(WORKERS):
        with join(coordinator.address, rank, key=KEY) as share:
            assert [chunk.subset for chunk in share.held][:5] == [rank] * 5
            held += [
                row for chunk in share.held for row in chunk.rows(SAMPLES, WORKERS)
            ]
    assert np.all(np.bincount(held, minlength=SAMPLES) >= 1)
    # as much as two subsets: the last chunks are not alike
    assert abs(len(held) - 2 * SAMPLES) <= 8


def test_nobody_is_told_that_a_step_is_complete_before_all_are_there():
    """If one did all chunks, its sum could meet a sum of another attempt."""
    run = Run(Placement(2, 2, 1, equal_chunks=True))
    with run.coordinator:
        run.ask(0, Begin(0))
        run.coordinator.look()
        done = set()
        while (answer := run.answer(0)) is not None and answer.ticket is not None:
            done.add(answer.chunk)
            run.ask(0, Done(answer.ticket, 0.1))
            run.coordinator.look()
        assert answer is None
        assert done == {(0, 0), (1, 0)}
        run.ask(1, Begin(0))
        run.coordinator.look()
        answers = [run.answer(rank) for rank in range(2)]
    assert [answer and answer.over for answer in answers] == [True, True]


def test_a_worker_that_leaves_a_step_by_break_is_named():
    run = Run(Placement(2, 2, 2, equal_chunks=True))
    with run.coordinator:
        for rank in range(2):
            run.ask(rank, Begin(1))
        run.coordinator.look()
        first = run.answer(0)
        assert first is not None
        assert first.ticket is not None
        run.ask(1, Begin(2))
        run.ask(0, Done(first.ticket, 0.1))
        answer = run.answer(0)
    assert answer is not None
    assert (
        answer.failed == "worker 1 has left step 1 before its end, and asks for step "
        "2. Step 1 has failed and must be repeated"
    )


def test_a_worker_that_goes_makes_the_step_fail_for_all_and_its_successor_does_it_anew(
    coordinator,
):
    """Also if it has done chunks: these are gone with it."""
    loops = Loops(coordinator, lambda rank: 0.02)
    lost = join(coordinator.address, 0, key=KEY)
    chunks = lost.step(4)
    for _ in range(2):
        next(chunks)
    two_workers = threading.Thread(target=loops.run, args=([1, 2], 4))
    two_workers.start()
    assert comes_true(lambda: loops.begun == {1, 2})
    lost.close()
    two_workers.join(10.0)
    assert sorted(rank for rank, _ in loops.failed) == [1, 2]
    for _, why in loops.failed:
        assert "worker 0 is lost, because its connection was closed. Step 4 has" in why
    assert loops.run(range(WORKERS), 4) == whole(4)


def test_a_silent_worker_makes_the_step_fail_after_the_timeout(coordinator):
    loops = Loops(coordinator)
    silent = join(coordinator.address, 0, key=KEY)
    chunks = silent.step(2)
    next(chunks)
    began = time.monotonic()
    loops.run([1, 2], 2)
    assert time.monotonic() - began > 0.9
    for _, why in loops.failed:
        assert "silent for 1 s" in why
    with pytest.raises(StepFailed, match="silent"):  # it was, and comes back
        next(chunks)
    results = []
    two_workers = threading.Thread(target=lambda: results.append(loops.run([1, 2], 2)))
    two_workers.start()
    results.append(loops.one_step(silent, 0, 2))
    two_workers.join(10.0)
    assert sum(results) == whole(2)


def test_a_step_that_is_begun_anew_by_one_fails_for_the_others(coordinator):
    loops = Loops(coordinator, lambda rank: 0.05)
    share = join(coordinator.address, 0, key=KEY)
    chunks = share.step(0)
    next(chunks)
    two_workers = threading.Thread(target=loops.run, args=([1, 2], 0))
    two_workers.start()
    assert comes_true(lambda: loops.begun == {1, 2})
    begun = threading.Thread(
        target=lambda: loops.sums.update({0: loops.one_step(share, 0, 0)})
    )
    begun.start()
    two_workers.join(10.0)
    assert len(loops.failed) == 2
    for _, why in loops.failed:
        assert "worker 0 has begun step 0 again" in why
    sum_of_two = loops.run([1, 2], 0)
    begun.join(10.0)
    assert sum_of_two + loops.sums.pop(0) == whole(0)


def test_who_comes_back_with_an_old_step_is_refused_also_if_it_is_there_first(
    coordinator,
):
    late_share, new_share = (
        join(coordinator.address, rank, key=KEY) for rank in (0, 1)
    )
    chunks = late_share.step(4)
    next(chunks)
    new_chunks = new_share.step(5)
    next(new_chunks)
    with pytest.raises(StepFailed, match="worker 1 asks for step 5, others are at 4"):
        next(chunks)
    with pytest.raises(
        ValueError, match="worker 0 asks for step 4, the others are at 5"
    ):
        next(late_share.step(4))


def test_a_step_of_the_past_can_be_asked_for_when_all_do(coordinator):
    loops = Loops(coordinator)
    assert [loops.run(range(WORKERS), step) for step in (3, 0, 1)] == [
        whole(step) for step in (3, 0, 1)
    ]


def test_who_has_ended_before_it_began_is_waited_for(coordinator):
    loops = Loops(coordinator)
    join(coordinator.address, 0, key=KEY).close()
    sums = []
    two_workers = threading.Thread(target=lambda: sums.append(loops.run([1, 2], 0)))
    two_workers.start()
    assert comes_true(lambda: loops.begun == {1, 2})
    sums.append(loops.run([0], 0))
    two_workers.join(10.0)
    assert sum(sums) == whole(0)


def test_who_has_ended_before_it_began_is_given_up_after_a_second(coordinator):
    loops = Loops(coordinator)
    join(coordinator.address, 0, key=KEY).close()
    began = time.monotonic()
    loops.run([1, 2], 0)
    assert time.monotonic() - began > 0.9
    assert [why for _, why in loops.failed] == [
        "worker 0 is lost, because its connection was closed. Step 0 has failed and "
        "must be repeated"
    ] * 2


def test_an_old_process_is_told_that_another_one_has_its_place(coordinator):
    old_share = join(coordinator.address, 0, key=KEY)
    join(coordinator.address, 0, key=KEY)
    with pytest.raises(ValueError, match=r"worker 0: .* Call dispatch\.join again"):
        next(old_share.step(0))
    with pytest.raises(ValueError, match="from 0 to 2: got rank 3"):
        join(coordinator.address, 3, key=KEY)


@pytest.mark.parametrize(
    "message",
    [
        *(1, None, [], {}, ["join", "0", 0], ["begin", 1.5, None], ["done", 1, 1.0]),
        *(["done", [1, "x"], 1.0], ["begin", 0], ["over"], ["join", 0, 0]),
        *(
            ["done", [1, 1], seconds]
            for seconds in (10**400, -1, math.nan, math.inf, None)
        ),
        ["done", [1, 77], 1.0],
    ],
)
def test_nonsense_harms_nobody(coordinator, message):
    """Of one who has the key, has joined, and is within a step."""
    line = TcpLine(coordinator.address, KEY.encode())
    client.ask(line, Join(0))
    assert client.ask(line, Begin(0)).ticket == (1, 1)
    with pytest.raises(ConnectionError):
        line.ask(message)
    assert Loops(coordinator).run(range(WORKERS), 0) == whole(0)


def test_who_has_not_joined_is_told_so(coordinator):
    line = TcpLine(coordinator.address, KEY.encode())
    for question in (Begin(0), Done((1, 1), 0.1)):
        with pytest.raises(ValueError, match="has not joined"):
            client.ask(line, question)
    line.close()


def test_a_worker_may_come_before_its_coordinator(monkeypatch):
    connect, refused = Tcp.connect, threading.Event()

    def noted(transport, address):
        try:
            return connect(transport, address)
        except ConnectionRefusedError:
            refused.set()
            raise

    monkeypatch.setattr(Tcp, "connect", noted)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with pytest.raises(OSError, match="in use"):
            serve(1, 1, key=KEY, port=address[1])
    with pytest.raises(ConnectionError):
        join(address, 0, key=KEY, wait=0.0)
    shares = []
    early = threading.Thread(
        target=lambda: shares.append(join(address, 0, key=KEY, wait=10.0))
    )
    refused.clear()
    early.start()
    assert refused.wait(10.0)
    with serve(1, 1, key=KEY, port=address[1]):
        early.join(10.0)
        assert [len(share.held) for share in shares] == [8]


def _closed_port():
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()


def test_where_nobody_listens_the_error_has_the_address_and_what_to_do():
    host, port = _closed_port()
    with pytest.raises(ConnectionRefusedError) as raised:
        join((host, port), 2, key=KEY, wait=0.0)
    said = str(raised.value)
    assert said.startswith(f"worker 2: nobody has listened at {host}:{port} for 0 s.")
    assert "serve" in said
    assert "host=" in said


def test_a_worker_says_before_it_gives_up_that_nobody_listens(monkeypatch):
    monkeypatch.setattr(client, "SILENCE", 0.15)
    host, port = _closed_port()
    with (
        pytest.warns(
            UserWarning, match=f"nobody has listened at {host}:{port}"
        ) as said,
        pytest.raises(ConnectionRefusedError),
    ):
        join((host, port), 0, key=KEY, wait=0.5)
    assert len(said) == 1


def test_another_key_is_an_error_with_the_address(coordinator):
    host, port = coordinator.address
    with pytest.raises(ConnectionError, match=rf"worker 1: .* {host}:{port}: .*key"):
        join(coordinator.address, 1, key="another")


def test_a_host_that_is_none_is_an_error_with_the_address(monkeypatch):
    monkeypatch.setattr(Tcp, "connect", raising(socket.gaierror(-2, "no such host")))
    with pytest.raises(
        ConnectionError, match=r"answers at elsewhere:1: .*no such host"
    ):
        join(("elsewhere", 1), 0, key=KEY)


class Timed(Coordinator):
    """It is what time the test says; workers are in this process."""

    def __init__(self):
        self.now = 0.0
        loops = own_loops.Loops(Placement(WORKERS, 2, 3), 60.0, None)
        super().__init__(Memory(), loops, lambda: self.now)

    def join(self, rank):
        return join(self.address, rank, transport=self.transport)

    def look_at(self, *times):
        for self.now in times:
            self.look()


def test_for_whom_a_step_waits_is_said_once():
    with Timed() as coordinator:
        begun = coordinator.join(0)
        coordinator.join(1)
        next(begun.step(7))
        coordinator.look_at(4.9)
        with pytest.warns(UserWarning, match="has waited") as said:
            coordinator.look_at(5.0, 5.1, 50.0)
    assert [str(warning.message) for warning in said] == [
        "step 7 has waited for 5 s. Workers that have joined, but not begun it: 1. "
        "Workers that have not joined: 2"
    ]


def test_nobody_is_named_where_all_have_begun():
    with Timed() as coordinator, warnings.catch_warnings():
        warnings.simplefilter("error")
        for rank in range(WORKERS):
            next(coordinator.join(rank).step(0))
        coordinator.look_at(4.9, 5.0, 50.0)


def test_the_error_names_who_was_missing_besides():
    with Timed() as coordinator:
        silent = coordinator.join(0)
        coordinator.join(2).close()
        chunks = silent.step(3)
        next(chunks)
        coordinator.look_at(0.9, 1.0)
        with pytest.raises(StepFailed) as raised:
            next(chunks)
    assert str(raised.value) == (
        "worker 2 is lost, because its connection was closed. Step 3 has failed and "
        "must be repeated. Workers that have not joined: 1"
    )
    assert raised.value.lost == {2}


def test_the_error_names_all_that_were_silent_for_as_long():
    with Timed() as coordinator:
        silent = coordinator.join(0)
        coordinator.join(2)
        chunks = silent.step(3)
        next(chunks)
        with pytest.warns(UserWarning, match="step 3 has waited"):
            coordinator.look_at(59.9, 60.0)
        with pytest.raises(StepFailed) as raised:
            next(chunks)
    assert str(raised.value).startswith(
        "worker 0 is lost, because it was silent for 60 s; worker 1 has not joined "
        "within 60 s; worker 2 is lost, because it was silent for 60 s. Step 3 has"
    )
    assert raised.value.lost == {0, 1, 2}


def test_a_question_that_was_left_ends_the_share(coordinator):
    """Else the next one would get its answer."""
    share = join(coordinator.address, 0, key=KEY)
    line = share._line
    assert isinstance(line, TcpLine)
    line._socket.settimeout(0.1)  # as if a signal came meanwhile
    with pytest.raises(ConnectionError, match="does not answer: timed out"):
        list(share.step(0))
    with pytest.raises(ConnectionError, match="closed"):
        next(share.step(0))


def test_a_coordinator_that_ends_ends_the_step(coordinator):
    chunks = join(coordinator.address, 0, key=KEY).step(0)
    next(chunks)
    coordinator.close()
    with pytest.raises(ConnectionError):
        next(chunks)


def test_a_chunk_without_a_sample_is_an_error_and_no_mean_of_nothing():
    with pytest.raises(ValueError, match="has none of the 8 samples"):
        Chunk(0, 1, 9, 0.96875, 1.0).rows(8, 2)


def test_without_a_key_nobody_is_listened_to(coordinator, monkeypatch):
    monkeypatch.delenv("BCGC_HANDOUT_KEY", raising=False)
    with pytest.raises(ValueError, match="BCGC_HANDOUT_KEY"):
        join(coordinator.address, 0)
    with pytest.raises(ConnectionError):
        join(coordinator.address, 0, key="another")
    monkeypatch.setenv("BCGC_HANDOUT_KEY", KEY)
    join(coordinator.address, 0).close()


def test_the_record_has_each_chunk_of_complete_steps_once_and_is_a_trace(tmp_path):
    path = tmp_path / "chunks.csv"
    with serve(WORKERS, 1, 2, key=KEY, record=path, adapt=False) as coordinator:
        lost = join(coordinator.address, 0, key=KEY)
        next(lost.step(0))
        lost.close()
        loops = Loops(coordinator, lambda rank: 0.01 * (1 + rank))
        for step in (0, 1):
            assert loops.run(range(WORKERS), step) == whole(step)
    rows = list(csv.DictReader(path.open()))
    assert [(row["step"], row["worker"]) for row in rows].count(("1", "2")) == 2
    assert len(rows) == 2 * WORKERS * 2
    assert all(
        0.01 * (1 + int(row["worker"])) <= float(row["seconds"]) < 1 for row in rows
    )
    assert [row["subset"] for row in rows] == [row["worker"] for row in rows]
    trace = load_trace(path)
    assert trace.microbatches is not None
    # Nobody has sent lengths: sizes would pass for them.
    assert trace.microbatches.load is None
    assert trace.microbatches.seconds.shape == (2, WORKERS, 2)
    # What a question took is in the record, and what advice takes it to cost.
    questions = sorted(float(row["asking"]) for row in rows)
    assert 0 < questions[0] < questions[-1] < 1
    assert trace.microbatches.asking == statistics.median(questions)
    assert advise(trace).costs.asking.delay == trace.microbatches.asking
    assert trace.seconds.sum() == pytest.approx(
        sum(float(row["seconds"]) for row in rows)
    )


def test_joining_imports_neither_jax_nor_numpy():
    program = (
        "import sys; from bcgc_jax.balancing.dispatch import join; "
        "print({'jax', 'numpy', 'ray'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert process.stdout == "set()\n"


def test_a_plan_that_is_none_is_refused():
    for arguments in ((3, 4, 8), (3, 0, 8), (3, 2, 0)):
        with pytest.raises(ValueError, match="subsets each"):
            serve(*arguments, key=KEY)


def test_a_record_that_cannot_be_written_ends_and_the_training_goes_on(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    with serve(WORKERS, 1, 2, key=KEY, record=folder / "chunks.csv") as coordinator:
        shutil.rmtree(folder)
        loops = Loops(coordinator)
        with pytest.warns(UserWarning, match="the record ends here"):
            assert [loops.run(range(WORKERS), step) for step in (0, 1)] == [
                whole(0),
                whole(1),
            ]
