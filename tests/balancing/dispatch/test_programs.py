"""Workers that are devices of one compiled program: a step ends alike for all of them.

A process can begin a step again only when its program has ended on all its devices. So
none may wait for a worker of its own process that has left the program.
"""

import os
import random
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bcgc_jax.balancing.chunk_lengths import UNITS
from bcgc_jax.balancing.dispatch import Memory, StepFailed, client, join, serve
from bcgc_jax.balancing.dispatch.loops import Loops
from bcgc_jax.balancing.dispatch.messages import Begin, Done, Join, Leave, OwnDone
from bcgc_jax.balancing.dispatch.workers import GRACE
from bcgc_jax.balancing.placement import Placement
from tests.balancing.dispatch.clocked import Fickle

WORKERS, CHUNKS = 3, 2
PLACE = Placement(WORKERS, 2, CHUNKS)
PROCESSES = {"one": ((0, 1, 2),), "two": ((0, 1), (2,)), "three": ((0,), (1,), (2,))}
# Events of the model checker; `HANDOUT_EVENTS=100000` for when the protocol has
# changed.
EVENTS = int(os.environ.get("HANDOUT_EVENTS", 6_000))


class World:
    """Processes whose devices run a program each, and a coordinator; a fake clock."""

    def __init__(self, seed: int, processes: tuple[tuple[int, ...], ...]):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.judge = Fickle()
        judge: Any = self.judge
        self.loops = Loops(PLACE, 1e9, None, judge, shares=False)
        self.processes = [Process(self, ranks) for ranks in processes]
        self.strangers: list[Line] = []
        self.over: list[Device] = []
        self.ended: Counter[str] = Counter()

    @property
    def devices(self) -> list["Device"]:
        return [device for process in self.processes for device in process.devices]

    def event(self, faults: float) -> None:
        self.now += 0.01
        kind = self.rng.random()
        if kind < faults:
            self.fault(kind / faults)
        moves = [device.go_on for device in self.devices if device.is_computing]
        moves += [process.launch for process in self.processes if process.has_ended]
        if moves:
            self.rng.choice(moves)()
        due = self.loops.time_goes_on(self.now)
        self.check()
        if not moves:
            state = [(device.rank, device.outcome) for device in self.devices]
            assert due <= self.now + GRACE + 1e-9, state
            self.now = max(self.now, due)

    def fault(self, kind: float) -> None:
        """A worker is lost to a stranger, closes its share, or leaves the step."""
        device = self.rng.choice(self.devices)
        if kind < 0.4:
            self.strangers.append(Line(self, device.rank, "elsewhere"))
        elif kind < 0.5 and self.strangers:
            self.strangers.pop().close()
        elif kind < 0.8:
            device.close()
        elif device.is_computing:
            device.leave()

    def check(self) -> None:
        """Once a step is over it is for all workers, and its sum has all data once."""
        over, self.over = self.over, []
        if not over:
            return
        assert sorted(device.rank for device in over) == [*range(WORKERS)]
        assert len({device.step for device in over}) == 1
        total = sum((device.sum for device in over), Counter())
        units = range(CHUNKS * UNITS)
        assert total == Counter((j, u) for j in range(WORKERS) for u in units)
        self.ended["shared" if over[0].is_shared else "own"] += 1
        self.judge.mode.is_shared = self.rng.random() < 0.5


class Process:
    """It begins its program when this has ended on all devices, perhaps with others."""

    def __init__(self, world: World, ranks: tuple[int, ...]):
        self.world, self.ranks = world, ranks
        self.step = 0
        self.devices = [Device(world, rank, self) for rank in ranks]

    @property
    def has_ended(self) -> bool:
        return all(device.outcome for device in self.devices)

    def launch(self) -> None:
        outcomes = {device.outcome for device in self.devices}
        assert len(outcomes) == 1 or "over" not in outcomes
        if outcomes == {"over"}:
            self.step += 1
        if outcomes & {"failed", "broken"}:
            self.world.ended["failed"] += 1
        if "broken" in outcomes or self.world.rng.random() < 0.05:
            older = self.devices
            ranks = self.world.rng.sample(self.ranks, len(self.ranks))
            self.devices = [Device(self.world, rank, self) for rank in ranks]
            for device in older:
                device.close()
        for device in self.devices:
            device.begin()

    def breaks(self) -> None:
        """An error that is no failed step closes all shares of the process."""
        for device in self.devices:
            device.close()


class Line:
    """A connection; a stranger asks nothing."""

    def __init__(self, world: World, rank: int, process: str):
        self.world, self.rank = world, rank
        self.is_closed = False
        self.reply = lambda data: self.hear(data)
        who = Join(rank, process=process)
        answer = world.loops.joined(who, self.reply, world.now)
        self.next_shares = answer.shares

    def hear(self, answer) -> None:
        pass

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.world.loops.left(Join(self.rank), self.reply, self.world.now)


class Device(Line):
    """A worker in a program."""

    def __init__(self, world: World, rank: int, process: Process):
        super().__init__(world, rank, str(process.ranks))
        self.process = process
        self.outcome = "none yet"
        self.is_asking = False

    @property
    def is_computing(self) -> bool:
        return not self.outcome and not self.is_asking

    def begin(self) -> None:
        self.outcome = ""
        self.is_asking = False
        self.is_shared = self.next_shares
        self.step = self.process.step
        self.ticket = self.chunk = None
        self.sum: Counter = Counter()

    def say(self, question) -> None:
        if self.is_closed:
            self.breaks()
            return
        self.is_asking = not isinstance(question, Leave)
        self.world.loops.asked(Join(self.rank), question, self.reply, self.world.now)

    def go_on(self) -> None:
        edges = np.cumsum([0, *PLACE.sizes]).tolist()
        if self.is_shared and self.ticket is None:
            self.say(Begin(self.step))
        elif self.is_shared:
            subset, number = self.chunk
            units = range(edges[number], edges[number + 1])
            self.sum.update((subset, unit) for unit in units)
            self.say(Done(self.ticket, 0.01))
        else:
            self.sum = Counter((self.rank, u) for u in range(CHUNKS * UNITS))
            self.say(OwnDone(self.step, 0.0, [0.01] * CHUNKS))

    def leave(self) -> None:
        self.say(Leave(self.step))
        self.breaks()

    def breaks(self) -> None:
        self.outcome = "broken"
        self.process.breaks()

    def close(self) -> None:
        super().close()
        if self.is_asking and not self.outcome:
            self.breaks()

    def hear(self, answer) -> None:
        if self.is_closed or self.outcome:
            return
        self.is_asking = False
        if answer.refused:
            self.breaks()
        elif answer.failed:
            self.outcome = "failed"
        elif answer.over:
            self.outcome = "over"
            self.next_shares = answer.shares
            self.world.over.append(self)
        else:
            self.ticket, self.chunk = answer.ticket, answer.chunk


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("faults", [0.01, 0.1])
def test_no_worker_waits_for_one_that_has_left_the_program(processes, faults):
    world = World(int(100 * faults), PROCESSES[processes])
    for _ in range(EVENTS // 3):
        world.event(faults)
    assert min(world.ended[kind] for kind in ("own", "shared", "failed")) > 5
    for stranger in world.strangers:
        stranger.close()
    before = world.ended.copy()
    for _ in range(1000):
        world.event(0.0)
    after = world.ended - before
    assert min(after["own"], after["shared"]) > 5
    # What has happened before is heard once by each process.
    assert after["failed"] <= 2 * len(world.processes)


# The same with threads, and the shares of users.

JOINING = threading.Lock()


class Program:
    """A process whose devices are threads: it runs steps until each is over.

    It joins with other connections where a step has ended by an error that is no failed
    step. `event` is called in step 1, before it is launched or in a worker's first run.
    """

    def __init__(self, coordinator, ranks, event, is_within):
        self.coordinator, self.ranks = coordinator, ranks
        self.event, self.is_within = event, is_within
        self.shares = self.joined()
        self.following: dict[int, Any] = {}  # that have joined already
        self.outcomes: list[tuple[int, list[Any]]] = []

    def joined(self):
        """Connections of this process, among several in the test."""
        where, transport = self.coordinator.address, self.coordinator.transport
        with JOINING:
            client._PROCESS = str(self.ranks)
            return {rank: join(where, rank, transport=transport) for rank in self.ranks}

    def run(self, steps):
        step = 0
        while step < steps:
            if step == 1 and not self.is_within:
                self.happens()
            outcomes = self.launch(step)
            self.outcomes.append((step, outcomes))
            step += outcomes == ["over"] * len(self.ranks)
            if any(isinstance(error, OSError | ValueError) for error in outcomes):
                older, self.shares = self.shares, self.following or self.joined()
                self.following = {}
                for share in older.values():
                    share.close()

    def happens(self):
        event, self.event = self.event, None
        if event is not None and 1 in self.ranks:
            event(self)

    def launch(self, step):
        """How the step has ended on each device."""
        outcomes: list[Any] = [None] * len(self.ranks)

        def device(place, rank):
            try:
                for _ in self.shares[rank].runs(step):
                    if step == 1 and rank == 1 and self.is_within:
                        self.happens()
                outcomes[place] = "over"
            except StepFailed as error:
                outcomes[place] = error
            except (OSError, ValueError) as error:
                outcomes[place] = error
                for share in self.shares.values():
                    share.close()

        _in_threads(
            [lambda place=place: device(*place) for place in enumerate(self.ranks)]
        )
        return outcomes


def _in_threads(functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5.0)
        assert not thread.is_alive()


def _taken_over(program):
    coordinator = program.coordinator
    join(coordinator.address, 1, transport=coordinator.transport)


def _all_taken_over(program):
    program.joined()


def _closed(program):
    program.shares[1].close()


def _raising(program):
    raise OSError("the disk is full")


def _joined_again(program):
    program.shares = program.joined()


def _joined_early(program):
    program.following = program.joined()


EVENTS_WITHIN = [_taken_over, _all_taken_over, _closed, _raising]
CASES = [(event, True) for event in EVENTS_WITHIN]
CASES += [(event, False) for event in (*EVENTS_WITHIN[:3], _joined_again)]
CASES += [(_joined_early, is_within) for is_within in (False, True)]


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize(("event", "is_within"), CASES)
@pytest.mark.parametrize("adapt", [True, False], ids=["own", "shared"])
def test_after_a_lost_connection_all_processes_go_on(
    processes, event, is_within, adapt, monkeypatch
):
    monkeypatch.setattr(client, "_PROCESS", "")
    with serve(WORKERS, 2, CHUNKS, transport=Memory(), adapt=adapt) as coordinator:
        programs = [
            Program(coordinator, ranks, event, is_within)
            for ranks in PROCESSES[processes]
        ]
        _in_threads([lambda program=program: program.run(3) for program in programs])
    for program in programs:
        ended = [step for step, outcomes in program.outcomes if "over" in outcomes]
        assert ended == [0, 1, 2]
        for _, outcomes in program.outcomes:
            assert outcomes.count("over") in (0, len(outcomes)), outcomes
        # A step fails once or twice in each process.
        assert len(program.outcomes) <= 5, program.outcomes
