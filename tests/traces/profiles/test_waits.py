"""Waits are inverted: vectors of the derivation, made-up jobs, and what is refused."""

from typing import Any

import numpy as np
import pytest

from bcgc_jax.traces.profiles.recording import Recording, joined
from bcgc_jax.traces.profiles.spans import Spans, covered, exposed
from bcgc_jax.traces.profiles.waits import Waits, aligned, check, shift_of, waits_of
from tests.traces.profiles.crafted import (
    Job,
    Rank,
    barriers,
    clock,
    lengths,
    overlapped,
)

_NONE = np.zeros(0)


def _recording(
    name: str, step: list[int], collectives: list[list[float]], work: list[list[float]]
) -> Recording:
    spans = np.array(collectives)
    exposed_time = exposed(spans, np.array(work).reshape(-1, 2))
    return Recording(
        name, np.array(step), spans[:, 1], exposed_time, _NONE.astype(int), _NONE, _NONE
    )


def _recordings(job: Job) -> list[Recording]:
    """By each rank's own clock, as a profiler has them."""
    recordings = []
    for number, rank in enumerate(job.ranks):
        steps, count, _ = rank.collectives.shape
        calls = clock(number, rank.collectives).reshape(-1, 2).tolist()
        step = np.repeat(np.arange(steps), count).tolist()
        recordings.append(
            _recording(str(number), step, calls, clock(number, rank.work).tolist())
        )
    return recordings


def _own_seconds(waits: Waits) -> np.ndarray:
    return waits.seconds - waits.wait


def test_one_all_reduce_as_in_the_derivation():
    """Clocks are 100 s apart."""
    first = [[1.0, 2.1], [3.1, 4.6], [6.5, 6.7]]
    second = [[102.0, 102.1], [104.5, 104.6], [105.6, 106.7]]
    waits = waits_of(
        [_recording(n, [0, 1, 2], of, []) for n, of in (("0", first), ("1", second))]
    )
    assert waits.steps.tolist() == [1, 2]
    np.testing.assert_allclose(
        _own_seconds(waits), [[1.0, 2.4], [1.9, 1.0]], atol=1e-13
    )
    np.testing.assert_allclose(waits.wait.min(axis=1), [0.1, 0.2], atol=1e-13)
    np.testing.assert_allclose(waits.by_all, 0, atol=1e-13)


def test_two_buckets_beside_work_as_in_the_derivation():
    """Ranks compute until 2.0 and 5.1, and 3.0 and 4.1. Durations alone are wrong."""
    first = [[0.5, 1.6], [2.0, 3.2], [3.7, 4.8], [5.1, 5.3]]
    second = [[1.5, 1.6], [3.0, 3.2], [3.6, 4.8], [4.8, 5.3]]
    work = {"0": [[0, 2.0], [3.2, 5.1]], "1": [[0, 3.0], [3.2, 4.1]]}
    for has_work, seconds, transfer in (
        (True, [1.9, 0.9], 0.2),
        (False, [0.8, 0.4], 1.3),
    ):
        waits = waits_of(
            [
                _recording(name, [0, 0, 1, 1], of, work[name] if has_work else [])
                for name, of in (("0", first), ("1", second))
            ]
        )
        np.testing.assert_allclose(_own_seconds(waits), [seconds], atol=1e-13)
        assert waits.wait.min() == pytest.approx(transfer, abs=1e-13)
        np.testing.assert_allclose(waits.seconds, 2.1, atol=1e-13)


def test_spans_are_those_of_a_clock_that_ticks():
    """Against counting whole seconds one by one."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        begins = rng.integers(0, 40, (2, 6))
        ends = begins + rng.integers(1, 9, (2, 6))
        ticks = np.arange(50)
        works, calls = (
            [(ticks >= b) & (ticks < e) for b, e in zip(*side, strict=True)]
            for side in zip(begins, ends, strict=True)
        )
        spans = Spans()
        for begin, end in zip(begins[0], ends[0], strict=True):
            spans.add(begin, end)
        work, working = spans.union(), np.any(works, axis=0)
        moments = rng.integers(0, 50, 5)
        assert covered(work, moments).tolist() == [
            working[:time].sum() for time in moments
        ]
        order = np.argsort(begins[1], kind="stable")
        exposed_times = exposed(
            np.stack([begins[1], ends[1]], axis=1)[order].astype(float), work
        )
        seen = np.zeros(50, bool)
        for row, call in zip(exposed_times, order, strict=True):
            anew = calls[call] & ~seen
            seen |= calls[call]
            after = (
                ticks
                >= max(np.flatnonzero(working & (ticks < ends[1][call])), default=-1)
                + 1
            )
            assert row.tolist() == [(anew & ~working).sum(), (anew & after).sum()]


@pytest.mark.parametrize("transfer", [0.0005, 0.01])
def test_buckets_beside_work_give_each_rank_its_own_seconds(transfer):
    job = overlapped(lengths(60, 5, 1), transfer=transfer)
    waits = waits_of(_recordings(job))
    check(waits)
    # Clocks drift by 50 ppm a rank; the worst of these is 2.0e-4.
    np.testing.assert_allclose(_own_seconds(waits), job.seconds[1:], rtol=3e-4)
    assert waits.collectives == 5


def test_one_collective_needs_no_computation():
    job = barriers(lengths(60, 6, 1), transfer=0.004)
    waits = waits_of(
        _recordings(job._replace(ranks=[_idle(rank) for rank in job.ranks]))
    )
    check(waits)
    np.testing.assert_allclose(_own_seconds(waits), job.seconds[1:], rtol=3e-4)
    np.testing.assert_allclose(waits.wait.min(axis=1), 0.004, rtol=3e-4)


def _idle(rank: Rank) -> Rank:
    return rank._replace(work=np.zeros((0, 2)))


def test_ranks_that_meet_within_a_step_are_refused_with_what_all_wait():
    """FSDP: slow layers are others in each; a step is the sum of maxima."""
    rng = np.random.default_rng(0)
    seconds = 0.005 * np.exp(
        rng.normal(0, 0.5, (40, 4, 8)) * (rng.random((40, 4, 8)) < 0.3)
    )
    with pytest.raises(
        ValueError, match=r"all ranks wait during 9\.3 % of a step.*FSDP"
    ):
        check(waits_of(_recordings(barriers(seconds))))
    # Those of one speed within a step meet without loss.
    check(waits_of(_recordings(barriers(np.repeat(seconds[:, :, :1], 8, axis=2)))))


def test_kernels_that_cover_half_are_refused_with_both_losses():
    """Of 15.9 % lost, 36.8 or 21.7 % are seen."""
    rng = np.random.default_rng(0)
    chunks = 0.02 * rng.lognormal(0, 0.05, (60, 8, 1))
    chunks *= np.exp(
        rng.normal(0, 0.3, chunks.shape) * (rng.random(chunks.shape) < 0.2)
    )

    def covered_by(cover: float) -> Waits:
        job = overlapped(chunks, 8, transfer=1e-4, forward=0.02, cover=cover)
        return waits_of(_recordings(job))

    check(covered_by(0.95))
    with pytest.raises(
        ValueError, match=r"lost time is 36\.8 % if gaps .*, and 21\.7 % if"
    ):
        check(covered_by(0.5))


def _refused(**fields: Any) -> str:
    """Why waits of 40 steps of a second are refused, if these are others."""
    ends = np.repeat(np.arange(1.0, 41)[:, None], 2, axis=1)
    zeros = np.zeros((40, 2))
    waits = Waits(
        ["0", "1"], np.arange(40), ends - 1, ends, zeros, zeros, zeros[:, 0], 1
    )
    try:
        check(waits._replace(**fields))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("share", "word"), [(0.045, ""), (0.055, "FSDP")])
def test_all_ranks_may_wait_for_a_twentieth_of_a_step(share, word):
    assert word in _refused(by_all=np.full(40, share))
    assert bool(_refused(by_all=np.full(40, share))) == bool(word)


@pytest.mark.parametrize(("uncertain", "refused"), [(0.07, False), (0.09, True)])
def test_the_loss_may_be_uncertain_by_eight_points(uncertain, refused):
    """A rank waits for twice that in every step, if gaps are waits."""
    wait = np.tile([2 * uncertain, 0.0], (40, 1))
    assert ("The host may launch kernels too late." in _refused(wait=wait)) == refused


def test_ranks_of_other_recordings_are_refused():
    ranks = _recordings(barriers(lengths(40, 3, 1)))
    other_ranks = _recordings(barriers(lengths(40, 3, 1, seed=1)))
    with pytest.raises(ValueError, match=r"ranks leave a collective 11\.4 ms apart"):
        check(waits_of([*ranks[:2], other_ranks[2]]))
    far = other_ranks[2]._replace(step=other_ranks[2].step + 1000)
    with pytest.raises(
        ValueError, match="no step has the same number of collectives on all ranks"
    ):
        waits_of([*ranks[:2], far])


@pytest.mark.parametrize("seed", range(4))
def test_shifted_numbers_are_put_right_and_none_is_invented(seed):
    """By one to three up and down, each of two ranks: 12 a seed."""
    ranks = _recordings(barriers(lengths(30, 3, 1, seed)))
    assert aligned(ranks) == (ranks, [])
    assert shift_of(ranks[1], ranks[2]) == 0
    true = _own_seconds(waits_of(ranks))
    for place in (1, 2):
        for shift in (-3, -2, -1, 1, 2, 3):
            moved = list(ranks)
            moved[place] = ranks[place].numbered(shift)
            recordings, said = aligned(moved)
            assert [rank.step.tolist() for rank in recordings] == [
                r.step.tolist() for r in ranks
            ]
            assert said[0].startswith(
                f"The step numbers of worker {place} differ by {shift:+d} from"
            )
            np.testing.assert_array_equal(_own_seconds(waits_of(recordings)), true)


def test_steps_with_other_collectives_are_left_out():
    job = barriers(lengths(20, 3, 1))
    ranks = _recordings(job)
    # A rank lacks step 7, and in step 12 all have one more.
    ranks[1] = _without(ranks[1], 7)
    ranks = [_with_another(rank, 12) for rank in ranks]
    waits = waits_of(ranks)
    assert waits.steps.tolist() == [
        step for step in range(1, 20) if step not in (7, 8, 12, 13)
    ]
    np.testing.assert_allclose(_own_seconds(waits), job.seconds[waits.steps], rtol=3e-4)


def _without(rank: Recording, step: int) -> Recording:
    keep = rank.step != step
    return rank._replace(
        step=rank.step[keep], end=rank.end[keep], exposed=rank.exposed[keep]
    )


def _with_another(rank: Recording, step: int) -> Recording:
    row = np.searchsorted(rank.step, step)
    return rank._replace(
        step=np.insert(rank.step, row, step),
        end=np.insert(rank.end, row, rank.end[row]),
        exposed=np.insert(rank.exposed, row, 0.0, axis=0),
    )


def test_cycles_of_a_profiler_are_one_recording():
    (rank,) = _recordings(barriers(lengths(20, 1, 1)))
    halves = [_without(rank, 10), rank]
    cycles = [
        rank._replace(
            step=rank.step[part], end=rank.end[part], exposed=rank.exposed[part]
        )
        for part in (slice(12, None), slice(0, 8))
    ]
    (recording,) = joined(cycles)
    assert recording.step.tolist() == [*range(8), *range(12, 20)]
    with pytest.raises(ValueError, match="two traces of rank 0 contain the same steps"):
        joined(halves)
