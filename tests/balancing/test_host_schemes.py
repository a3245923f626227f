"""Work sharing in a log that says which workers share a host, and what bounds it."""

import io
import itertools
import math

import numpy as np
import pytest

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.placement import Placement
from bcgc_jax.balancing.remedies import HostLimit, Limit, Sharing
from bcgc_jax.balancing.scheme import Costs, Resources
from bcgc_jax.balancing.steps import Steps
from bcgc_jax.diagnosis.advice import advise, best_and_drawn
from bcgc_jax.diagnosis.log_model import model_of
from bcgc_jax.diagnosis.replays import seats_of
from bcgc_jax.traces.trace import load_trace
from bcgc_jax.traces.whole_steps import whole_steps
from experiments.event_loop import driven

HOSTS = tuple(worker // 8 for worker in range(32))
QUESTION = Asking(0.01)  # a hundredth of a chunk
SHARING = Sharing("2", 2, costs=Costs(QUESTION))
CHUNKS = 8


def _paces(steps, slower):
    """Four hosts of eight workers, one of them slow in each step."""
    rng = np.random.default_rng(0)
    factors = np.ones((steps, 4))
    factors[np.arange(steps), rng.integers(0, 4, steps)] = slower
    return rng.lognormal(0, 0.03, (steps, 32)) * factors[:, HOSTS]


def _steps(paces, hosts=HOSTS):
    chunks = np.ones((*paces.shape, CHUNKS))
    return Steps(paces, chunks, 0 * chunks, 0 * paces, hosts=hosts)


def _handed_out(steps, place, asking=QUESTION):
    """Seconds of each step, by what hands out where workers compute."""
    shares = np.tile(place.shares, place.num_workers)
    ends = []
    for number, pace in enumerate(steps.pace):
        sizes = [place.sizes] * place.num_workers
        ledger = Ledger(place.storage, sizes)
        length = steps.lengths[number].mean()
        seconds = length * pace[:, None] * shares
        ends.append(driven(ledger, seconds, asking=asking).time)
    return ends


def test_a_slow_host_costs_as_little_as_was_worked_out():
    steps = _steps(_paces(160, 5.0))
    uncoded = steps.last().mean()
    saved = {
        hosts: 100
        * (1 - SHARING.outcome(steps._replace(hosts=hosts)).seconds / uncoded)
        for hosts in (HOSTS, None)
    }
    assert saved[HOSTS].mean() == pytest.approx(73.0, abs=0.5)
    assert saved[None].mean() == pytest.approx(62.8, abs=0.5)
    first = steps.take(np.arange(160) < 1)
    np.testing.assert_allclose(
        SHARING.outcome(first).seconds,
        _handed_out(first, Placement(32, 2, CHUNKS, hosts=HOSTS)),
        rtol=1e-12,
    )


@pytest.mark.parametrize("stored", [2, 3])
def test_the_limit_of_hosts_is_that_of_their_worst_set(stored):
    """Two of four hosts are slow, so that it is above the limit of all data."""
    rng = np.random.default_rng(1)
    paces = rng.lognormal(0, 0.2, (6, 8))
    hosts = (0, 1, 2, 3) * 2
    paces[:, [1, 2, 5, 6]] *= 8
    steps = _steps(paces, hosts)
    bounds = HostLimit(stored).outcome(steps).seconds
    work = 8 * CHUNKS / math.comb(4, stored)
    for seconds, pace in zip(bounds, paces, strict=True):
        speed = [sum(1 / pace[w] for w in range(8) if w % 4 == h) for h in range(4)]
        sets = [
            slow
            for k in range(stored, 5)
            for slow in itertools.combinations(range(4), k)
        ]
        assert seconds == pytest.approx(
            max(
                work * math.comb(len(slow), stored) / sum(speed[h] for h in slow)
                for slow in sets
            )
        )
    assert np.all(bounds > 1.2 * Limit().outcome(steps).seconds) or stored == 3
    assert np.all(bounds >= Limit().outcome(steps).seconds * (1 - 1e-12))


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        (HOSTS, ["limit:2", "limit:3"]),
        ((0, 0, 1, 1, 2, 2), ["limit:2"]),
        ((0, 0, 1, 1), []),
        ((0, 0, 0, 1, 2, 2), []),
        (None, []),
    ],
)
def test_limits_are_of_hosts_of_one_size(hosts, names):
    resources = Resources(len(hosts or HOSTS), hosts=hosts)
    assert [row.name for row in HostLimit.rows(resources)] == names
    small = resources._replace(stored_subsets=2)
    assert [row.name for row in HostLimit.rows(small)] == names[:1]


def test_hosts_have_the_same_places_in_all_draws_whatever_the_log_calls_its_workers():
    rng = np.random.default_rng(2)
    hosts = np.array([0, 1, 2, 1, 0, 1, 2, 1])
    steps = _steps(rng.lognormal(0, 0.5, (4, 8)), tuple(hosts.tolist()))
    order = rng.permutation(8)
    drawn = [steps.seated(seat) for seat in seats_of(steps, 5)]
    renamed = steps.seated(order)
    redrawn = [renamed.seated(seat) for seat in seats_of(renamed, 5)]
    assert {draw.hosts for draw in drawn + redrawn} == {(0, 0, 0, 0, 1, 1, 2, 2)}
    assert len({draw.pace.tobytes() for draw in drawn}) == 5
    for left, right in zip(drawn, redrawn, strict=True):
        np.testing.assert_array_equal(left.pace, right.pace)


def _log(paces):
    rows = ["step,worker,host,seconds"]
    for (step, worker), pace in np.ndenumerate(paces):
        rows.append(f"{step},{worker},node-{HOSTS[worker]},{CHUNKS * float(pace)!r}")
    return "\n".join(rows).encode()


@pytest.mark.slow
def test_what_is_said_of_a_log_is_what_is_handed_out_by_its_plan():
    trace = load_trace(io.BytesIO(_log(_paces(12, 5.0))))
    assert trace.hosts == HOSTS
    advice = advise(trace, round_trip=QUESTION.delay, timed_apart=True)
    row = advice.row("sharing:2")
    log = model_of(whole_steps(trace))
    best, draws = best_and_drawn(log.model)
    steps = [log.as_steps(draw) for draw in draws]
    place = Placement(32, 2, CHUNKS, row.equal_chunks, hosts=HOSTS)
    ends = [
        _handed_out(draw.seated(seat), place)
        for draw, seat in zip(steps, seats_of(steps[0], len(steps)), strict=True)
    ]
    saved = 1 - np.mean(ends) / best.steps().last().mean()
    assert row.saved.value == pytest.approx(saved, abs=1e-9)
    assert 0.72 < saved < 0.75
    bound = advice.row("limit:2").saved.value
    assert saved < bound <= advice.row("limit").saved.value + 1e-12
