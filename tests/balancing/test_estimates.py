"""What a step tells: worked out by hand, and drawn workers are found again."""

import numpy as np
import pytest

from bcgc_jax.balancing.estimates import Known, Reader, Timed


def _own_step(seconds) -> Timed:
    """A step in which each worker, a row, did its own chunks."""
    rows = np.array(seconds, float)
    who = np.repeat(np.arange(len(rows)), rows.shape[1])
    return Timed(who, rows.ravel(), np.ones(rows.size), is_shared=False)


def _shared_step(who: str, seconds: str) -> Timed:
    numbers = np.array([*map(float, seconds)])
    return Timed(
        np.array([*map(int, who)]), numbers, np.ones(numbers.size), is_shared=True
    )


def test_paces_and_lengths_of_an_own_step():
    _, estimate = Known.of(3).after(_own_step([[1] * 4, [2] * 4, [1] * 4]))
    assert estimate.paces == pytest.approx([0.7937, 1.5874, 0.7937], abs=5e-5)
    assert estimate.lengths == pytest.approx([1.2599] * 12, abs=5e-5)


def test_what_a_chunk_takes_whatever_its_size_is_that_of_the_last_16_steps():
    """It is the middle of those: nine steps of another job outweigh seven."""
    reader = Reader(np.array([1.0, 0.5]), num_workers=1)

    def read(fixed, steps):
        for _ in range(steps):
            reader.read(True, np.zeros(2, int), np.array([1.0, 0.5 + 0.5 * fixed]))
        return reader.fixed

    assert read(0.2, 20) == pytest.approx(0.2)
    assert read(0.6, 7) == pytest.approx(0.2)
    assert read(0.6, 2) == pytest.approx(0.6)


def test_workers_that_differ_less_than_their_chunks_are_alike():
    _, estimate = Known.of(2).after(_own_step([[1, 3], [2, 2]]))
    assert estimate.paces.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("who", "seconds", "paces", "pauses", "own_seconds"),
    [
        # Worker 1 did one chunk, in five times its usual seconds: it paused.
        ("00001000", "11115111", [1, 1], [0, 4], [4, 8]),
        # It did two, in three times its usual seconds: it is slow.
        ("00001100", "11113311", [0.5774, 1.7321], [0, 0], [4, 12]),
        # It did none: it is as it was.
        ("00000000", "11111111", [1, 1], [0, 0], [4, 4]),
    ],
)
def test_a_shared_step_after_an_own_step_of_ones(
    who, seconds, paces, pauses, own_seconds
):
    knowledge, _ = Known.of(2).after(_own_step(np.ones((2, 4))))
    _, estimate = knowledge.after(_shared_step(who, seconds))
    assert estimate.paces == pytest.approx(paces, abs=5e-5)
    assert estimate.pauses == pytest.approx(pauses)
    lengths = estimate.lengths.reshape(2, 4).sum(axis=1)
    assert estimate.paces * lengths + estimate.pauses == pytest.approx(own_seconds)


def test_drawn_paces_are_found_again_whoever_did_which_chunk():
    """Chunks vary by 10 %, paces by about 1.5; the worst of 40 steps is 8 % off."""
    rng = np.random.default_rng(0)
    knowledge = Known.of(5)
    for _ in range(40):
        paces = np.exp(rng.normal(0, 0.4, 5))
        paces /= np.exp(np.log(paces).mean())
        who = np.r_[np.repeat(np.arange(5), 4), rng.integers(0, 5, 20)]
        lengths = np.exp(rng.normal(0, 0.1, 40))
        sizes = rng.choice([1.0, 0.5, 0.25], 40)
        step = Timed(who, paces[who] * lengths * sizes, sizes, is_shared=True)
        knowledge, estimate = knowledge.after(step)
        assert estimate.paces == pytest.approx(paces, rel=0.12)
        seconds = estimate.paces[who] * estimate.lengths
        paused = np.zeros(40)
        for worker in np.flatnonzero(estimate.pauses):
            done = np.flatnonzero(who == worker)
            paused[done[(step.seconds / sizes)[done].argmax()]] = estimate.pauses[
                worker
            ]
        assert seconds + paused == pytest.approx(step.seconds)
