"""The machine that hands out chunks: its rule and its protocol, by all events."""

import csv
import dataclasses
import os
import pickle
import random
from collections.abc import Sequence

import numpy as np
import pytest

from bcgc_jax.steps.driven import driven
from bcgc_jax.steps.ledger import Chunk, Ledger, Member, Name
from bcgc_jax.steps.paces import Paces
from bcgc_jax.steps.placement import Storage
from tests.oracles.work_sharing import VECTORS, offsets_of, sizes_of
from tests.steps.hand_outs import World

ROWS = list(csv.DictReader(VECTORS.read_text().splitlines()))
# A run is some hundred events; `HANDOUT_RUNS=100000` for when the machine has changed.
RUNS = int(os.environ.get("HANDOUT_RUNS", 1_000))


# The rule.


def _pairs(num_workers: int, chunks: int) -> Storage:
    """Two holders of each chunk, with another offset for each chunk of a subset."""
    offsets = offsets_of(num_workers, chunks)
    return Storage(
        tuple(
            tuple((j, (j + o) % num_workers) for o in offsets)
            for j in range(num_workers)
        )
    )


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['workers']}-{row['chunks']}"
)
def test_neediest_first_ends_when_it_should(row):
    chunks = int(row["chunks"])
    sizes = sizes_of(chunks, row["equal"] == "1")
    times = [float(t) / (4 * chunks) for t in row["cycle_times"].split()]
    ledger = Ledger(0, _pairs(len(times), len(sizes)), [sizes] * len(times), "chunks")
    # The vectors have nine digits.
    seconds = np.array(times)[:, None] * np.array(sizes * len(times))
    end = driven(ledger, Paces(len(times)), seconds).time
    assert end == pytest.approx(float(row["ends"]), rel=5e-9)
    assert ledger.complete
    assert not ledger.settled


# The protocol.


def _random_ledger(rng: random.Random, step: int, before=None, n=None) -> Ledger:
    n = n or rng.randint(2, 7)
    stored = rng.randint(2, n)
    sizes = sizes_of(rng.randint(1, 4), rng.random() < 0.5)
    rows = [
        tuple(
            (j, *rng.sample([w for w in range(n) if w != j], stored - 1)) for _ in sizes
        )
        for j in range(n)
    ]
    ledger = Ledger(step, Storage(tuple(rows)), [sizes] * n, before=before)
    for subset in rng.sample(range(n), rng.choice([0, 0, n // 2, n])):
        _reweigh(ledger, rng, subset)
    return ledger


def _reweigh(ledger: Ledger, rng: random.Random, subset: int) -> None:
    count = sum(j == subset for j, _ in ledger.holders)
    ledger.queue.reweigh(subset, rng.choices((1, 2, 3), k=count))


def _go(world: World, rng: random.Random, events: int):
    """Random events: processes that act often or hardly ever, sums that travel long."""
    eager = [rng.choice([1.0, 1.0, 0.3, 0.02]) for _ in range(100)]
    chances = {"late": 0.1, "lost": 0.1, "join": 0.1, "handle_stale": 1.0}
    chances["handle_parcel"] = rng.choice([1.0, 0.05])
    world.seconds = [rng.random() for _ in world.seconds]
    ledger = world.ledger
    everything = list(ledger.holders)
    for _ in range(events):
        world.worth = (
            rng.sample(everything, rng.randint(0, len(everything)))
            if rng.random() < 0.2
            else []
        )
        world.next_first = rng.random() < 0.3
        # A worker begins late, and says its lengths, or says them again.
        if rng.random() < 0.02:
            _reweigh(ledger, rng, rng.randrange(len(world.seconds)))
        possible = world.actions()
        if not possible:
            return
        weights = [chances.get(what, eager[where[0]]) for what, where in possible]
        ((what, where),) = rng.choices(possible, weights)
        if what == "handle_parcel" and rng.random() < 0.03:
            parcel = world.processes[where[0]].parcel
            assert parcel is not None
            wrong = parcel.label ^ {rng.choice(everything)}
            world.receive(dataclasses.replace(parcel, label=wrong))
            continue
        world.apply((what, where))
        if world.ledger.settled:
            return


def _run(seed: int) -> int:
    """Two steps with random events. Whoever still moves does what is left."""
    rng = random.Random(seed)
    world = World(_random_ledger(rng, 0))
    settled = 0
    for step in range(2):
        if step:
            ledger_before = world.ledger
            world.ledger = _random_ledger(
                rng, step, ledger_before.roster, n=len(ledger_before.roster.lives)
            )
            world.total.clear()
        budget = {
            "late": rng.randint(0, 8),
            "lost": rng.randint(0, 2),
            "join": rng.randint(0, 2),
        }
        world.budget = {**budget, "stale": rng.randint(0, 12)}
        _go(world, rng, rng.randint(0, 40 * len(world.seconds)))
        ledger = world.ledger
        alive = ledger.roster.alive
        moving = set(rng.sample(sorted(alive), rng.randint(0, len(alive))))
        worth = rng.choice([(), list(ledger.holders)])
        ended = world.finish(moving, worth) or world.finish(set(alive), worth)
        assert ledger.possible() == ended
        settled += ended
    return settled


def test_every_chunk_is_in_one_sum_whatever_happens():
    settled = [_run(seed) for seed in range(200)]
    # Of 400 steps; elsewhere a chunk has lost all its holders.
    assert sum(settled) > 320


@pytest.mark.slow
def test_every_chunk_is_in_one_sum_in_many_runs():
    for seed in range(1_000, 1_000 + RUNS):
        _run(seed)


def _small(num_workers: int, chunks: int = 1) -> Ledger:
    """Each chunk is stored by its owner and the next worker."""
    rows = [
        tuple((j, (j + 1) % num_workers) for _ in range(chunks))
        for j in range(num_workers)
    ]
    return Ledger(0, Storage(tuple(rows)), [[1] * chunks] * num_workers)


def _explore(world: World) -> tuple[int, int]:
    """All interleavings: counts of states, and of settled ones, which all can reach."""
    start = world.key()
    states = {start: pickle.dumps(world)}
    before: dict[str, list[str]] = {start: []}
    todo = [start]
    ends = []
    lost = set()
    while todo:
        key = todo.pop()
        world = pickle.loads(states[key])
        if world.ledger.settled:
            ends.append(key)
            continue
        if not world.ledger.possible():
            lost.add(key)
        for action in world.actions():
            following = pickle.loads(states[key])
            following.apply(action)
            reached = following.key()
            before.setdefault(reached, []).append(key)
            if reached not in states:
                states[reached] = pickle.dumps(following)
                todo.append(reached)
        for worker in world.ledger.roster.alive:  # the others fall silent here
            pickle.loads(states[key]).finish({worker})
    hopeful = set(ends)
    todo = list(ends)
    while todo:
        for key in before[todo.pop()]:
            if key not in hopeful:
                hopeful.add(key)
                todo.append(key)
    assert states.keys() - hopeful <= lost
    return len(states), len(ends)


def test_all_interleavings_of_two_workers():
    states, settled = _explore(World(_small(2)))
    assert states > settled > 10


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"late": 1}, {"stale": 1}, {"lost": 1}], ids=str)
def test_all_interleavings_with_a_fault(budget):
    states, settled = _explore(World(_small(2), **budget))
    assert states > settled > 100


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.parametrize(
    "budget", [{"late": 1, "stale": 1}, {"late": 1, "lost": 1}, {"join": 1}], ids=str
)
def test_all_interleavings_with_two_faults_or_a_new_process(budget):
    states, settled = _explore(World(_small(2), **budget))
    assert states > settled > 1_000


@pytest.mark.study
@pytest.mark.slow
def test_all_interleavings_of_three_workers():
    states, settled = _explore(World(_small(3)))
    assert states > settled > 1_000


# What is said of a worker.

FIRST, SECOND, THIRD = (Member(0, worker, 0) for worker in range(3))
# Each stores one chunk of everyone.
ALL = Storage(tuple(((j, *(w for w in range(3) if w != j)),) for j in range(3)))


def _alike(ledger: Ledger) -> list[float]:
    return [1.0] * len(ledger.queue.stored)


def _next(
    ledger: Ledger, who: Member, worth: Sequence[Chunk] = ()
) -> tuple[Name, Chunk]:
    ticket = ledger.next(who, _alike(ledger), worth)
    assert ticket is not None
    return ticket


def _do(ledger: Ledger, who: Member) -> Name:
    """A worker does its next chunk, which counts: in this sum."""
    name = ledger.done(who, _next(ledger, who)[0])
    assert name is not None
    return name


def _copy(ledger: Ledger) -> Ledger:
    return pickle.loads(pickle.dumps(ledger))


def _all_begun(ends="sums") -> tuple[Ledger, list[Name]]:
    """The third has done its chunk, the others compute theirs; their tickets."""
    ledger = Ledger(0, ALL, [[4]] * 3, ends)
    tickets = [_next(ledger, who)[0] for who in (FIRST, SECOND, THIRD)]
    assert ledger.done(THIRD, tickets[2]) is not None
    return ledger, tickets


def test_a_free_worker_copies_what_is_worth_it_then_what_overdue_workers_run_or_keep():
    ledger, _ = _all_begun()
    assert ledger.begun(2) == [(0, 0), (1, 0)]
    assert ledger.next(THIRD, _alike(ledger)) is None
    ledger.late(0)
    assert _next(_copy(ledger), THIRD, worth=[(1, 0)])[1] == (1, 0)
    assert _next(ledger, THIRD)[1] == (0, 0)
    ledger, tickets = _all_begun()
    ledger.done(FIRST, tickets[0])
    # Neither runs.
    assert ledger.next(THIRD, _alike(ledger), worth=[(0, 0), (2, 0)]) is None
    ledger.late(0)
    assert _next(ledger, THIRD)[1] == (0, 0)


def test_one_copy_is_enough_of_what_an_overdue_worker_keeps():
    ledger, tickets = _all_begun()
    ledger.done(FIRST, tickets[0])
    ledger.late(0)
    assert _next(ledger, THIRD)[1] == (0, 0)
    ledger.done(SECOND, tickets[1])
    assert ledger.begun(1) == []  # what runs is kept
    assert ledger.next(SECOND, _alike(ledger)) is None
    given_up = _copy(ledger)
    given_up.lost(0)
    # nobody keeps the chunk any more, but the copy runs
    assert given_up.next(SECOND, _alike(given_up)) is None
    ledger.late(2)
    assert _next(ledger, SECOND)[1] == (0, 0)


def test_what_is_kept_stays_so_when_the_worker_of_its_copy_is_lost():
    ledger, tickets = _all_begun()
    assert _next(ledger, THIRD, worth=[(0, 0)])[1] == (0, 0)
    for who, ticket in ((FIRST, tickets[0]), (SECOND, tickets[1])):
        ledger.done(who, ticket)
    ledger.lost(2)
    assert _next(ledger, FIRST)[1] == (2, 0)  # what the lost one kept
    assert ledger.next(SECOND, _alike(ledger)) is None


@pytest.mark.parametrize("heard", [False, True])
def test_a_copy_decides_against_a_keeper_that_is_overdue_then(heard):
    ledger, tickets = _all_begun()
    kept = ledger.done(FIRST, tickets[0])
    assert kept is not None
    ledger.late(0)
    copy, chunk = _next(ledger, THIRD)
    assert chunk == (0, 0)
    if heard:
        ledger.next(FIRST, _alike(ledger))
    assert (ledger.done(THIRD, copy) is None) == heard
    assert ledger.stands(FIRST, kept) == heard
    assert ledger.voided == (not heard)


def test_a_kept_chunk_is_copied_only_where_others_can_compute_the_whole_sum():
    storage = Storage((((0,),), ((1, 0),)))
    ledger = Ledger(0, storage, [[4], [4]])
    for _ in range(2):
        _do(ledger, FIRST)
    ledger.late(0)
    assert ledger.complete
    assert ledger.next(SECOND, _alike(ledger)) is None


@pytest.mark.parametrize("label", [{(0, 0), (1, 0)}, {(0, 0), (2, 0)}, set()], ids=str)
def test_a_sum_with_another_label_is_void(label):
    ledger = Ledger(0, Storage((((0, 1),), ((1, 0),))), [[4], [4]])
    names = [_do(ledger, who) for who in (FIRST, SECOND)]
    assert ledger.sum_to_send(FIRST) == (names[0], {(0, 0)})
    assert not ledger.arrived(FIRST, names[0], label)
    assert ledger.sum_to_send(FIRST) is None
    assert not ledger.complete
    assert _next(ledger, FIRST)[1] == (0, 0)


def test_a_sum_that_nobody_asked_for_is_void():
    ledger, tickets = _all_begun()
    name = ledger.done(FIRST, tickets[0])
    assert name is not None
    for _ in range(2):
        assert not ledger.arrived(FIRST, name, {(0, 0)})
        assert not ledger.stands(FIRST, name)
        assert ledger.voided == 1
    assert _next(ledger, FIRST)[1] == (0, 0)


def test_what_is_kept_while_a_sum_is_on_its_way_is_another_sum():
    ledger, tickets = _all_begun()
    ledger.done(FIRST, tickets[0])
    copy, _ = _next(ledger, FIRST, worth=[(1, 0)])
    # A chunk is not kept yet, and may come into this sum.
    assert ledger.sum_to_send(FIRST) is None
    ledger.done(SECOND, tickets[1])
    first_sum = ledger.sum_to_send(FIRST)
    assert first_sum is not None
    ledger.late(1)
    second_sum = ledger.done(FIRST, copy)
    assert ledger.complete
    assert ledger.sum_to_send(FIRST) == first_sum == (first_sum[0], {(0, 0)})
    assert second_sum is not None
    assert second_sum != first_sum[0]
    spoilt = _copy(ledger)
    assert not spoilt.arrived(FIRST, first_sum[0], {(0, 0), (1, 0)})
    assert [spoilt.stands(FIRST, name) for name in (first_sum[0], second_sum)] == [
        False,
        True,
    ]
    assert ledger.arrived(FIRST, *first_sum)
    assert ledger.sum_to_send(FIRST) == (second_sum, {(1, 0)})


def test_nothing_begins_while_a_sum_is_on_its_way():
    ledger, tickets = _all_begun()
    names = [
        ledger.done(who, ticket)
        for who, ticket in zip((FIRST, SECOND), tickets, strict=False)
    ]
    first_sum = ledger.sum_to_send(FIRST)
    assert first_sum is not None
    assert first_sum == (names[0], {(0, 0)})
    second_sum = ledger.sum_to_send(SECOND)
    assert second_sum is not None
    ledger.lost(1)
    ledger.lost(2)
    assert not ledger.arrived(SECOND, *second_sum)
    assert ledger.next(FIRST, _alike(ledger)) is None
    assert ledger.arrived(FIRST, *first_sum)
    _do(ledger, FIRST)
    assert not ledger.complete
    _do(ledger, FIRST)
    assert ledger.complete


def test_that_chunk_is_next_whose_first_other_holder_would_come_last():
    storage = Storage((((0,),), ((1, 0, 2),), ((2,),), ((3, 0, 4),), ((4,),)))
    ledger = Ledger(0, storage, [[1], [4], [1], [4], [1]])
    seconds = [1.0, 1.0, 5.0, 2.0, 2.0]
    alone = ledger.next(FIRST, seconds)
    assert alone is not None
    assert alone[1] == (0, 0)  # nobody else will ever come to it
    ledger.done(FIRST, alone[0])
    shared = ledger.next(FIRST, seconds)
    assert shared is not None
    assert shared[1] == (3, 0)  # after 8, or 10; of the other after 4, or 25


def test_a_lost_holder_or_one_that_is_overdue_is_the_neediest():
    storage = Storage((((0, 1, 2),), ((1, 0),), ((2, 0),)))
    for happens in (Ledger.late, Ledger.lost):
        for worker in (1, 2):
            ledger = Ledger(0, storage, [[2], [4], [4]])
            for neediest in (2, worker):
                ticket = _copy(ledger).next(FIRST, [1.0, 1.0, 1.1])
                assert ticket is not None
                assert ticket[1] == (neediest, 0)
                happens(ledger, worker)


def test_what_a_lost_worker_had_is_as_if_it_had_never_begun():
    storage = _pairs(5, 6)
    sizes = [sizes_of(4, False)] * 5
    fresh = Ledger(0, storage, sizes)
    restarted = Ledger(0, storage, sizes)
    seconds = [1.0, 3.0, 0.5, 2.0, 0.7]
    for _ in range(3):
        _do(restarted, SECOND)
    _next(restarted, SECOND)
    life = restarted.join(1)
    assert not restarted.present(SECOND)
    for turn in range(60):
        chunks = []
        for ledger, lives in ((fresh, [0] * 5), (restarted, [0, life, 0, 0, 0])):
            who = Member(0, 2 * turn % 5, lives[2 * turn % 5])
            ticket, chunk = ledger.next(who, seconds) or (Name(0, 0), None)
            ledger.done(who, ticket)
            chunks.append(chunk)
        assert chunks[0] == chunks[1]
    assert restarted.complete


def test_an_all_reduce_needs_everyone():
    ledger, tickets = _all_begun("chunks")
    ledger.late(0)
    assert ledger.next(THIRD, _alike(ledger), worth=[(1, 0)]) is None
    ledger.lost(0)
    assert ledger.failed
    assert not ledger.possible()
    ledger.done(SECOND, tickets[1])
    assert ledger.next(SECOND, _alike(ledger)) is None
    assert not ledger.complete


def test_who_was_overdue_or_lost_is_so_in_the_next_step():
    ledger, _ = _all_begun()
    ledger.late(0)
    ledger.late(1)
    ledger.lost(1)
    ledger.late(1)
    following = Ledger(1, ALL, [[4]] * 3, before=ledger.roster)
    assert following.roster == ((0, 1, 0), {0, 2}, {0})
    assert not following.present(FIRST)  # of the last step
    following.next(FIRST._replace(step=1), _alike(following))
    assert following.roster.overdue == set()
    assert following.possible()
    following.lost(0)
    following.lost(2)
    assert not following.possible()
    assert following.possible(coming=[2])


def test_what_has_been_added_needs_no_holder():
    ledger = Ledger(0, Storage((((0,),), ((1, 0),))), [[4], [4]])
    names = [_do(ledger, who) for who in (FIRST, SECOND)]
    assert ledger.sum_to_send(FIRST) == (names[0], {(0, 0)})
    lost = _copy(ledger)
    lost.lost(0)
    assert not lost.possible()
    assert ledger.arrived(FIRST, names[0], {(0, 0)})
    ledger.lost(0)
    assert ledger.possible()


def test_sizes_must_be_of_the_chunks():
    with pytest.raises(ValueError, match="sizes must be"):
        Ledger(0, ALL, [[4], [4], [4, 4]])
