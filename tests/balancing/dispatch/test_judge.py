"""What a judge says of the other mode, against steps that were run in it."""

import numpy as np
import pytest

from bcgc_jax.balancing.asking import MEASURED, Asking
from bcgc_jax.balancing.dispatch.judge import DoneStep, Judge
from bcgc_jax.balancing.placement import Placement
from tests.balancing.dispatch.clocked import QUESTION, Training

WORKERS, CHUNKS, STEPS = 6, 8, 20
PLACE = Placement(WORKERS, 2, CHUNKS)
CHUNK = 0.02
RNG = np.random.default_rng(0)
SHAPE = STEPS, WORKERS
PACES = {
    "equal": np.ones(SHAPE),
    "one in seven": np.where(RNG.random(SHAPE) < 1 / 7, 5.0, 1.0),
    "spread": RNG.lognormal(0, 0.3, SHAPE),
    "exponential": 0.5 + RNG.exponential(0.5, SHAPE),
    "one slow": np.where(np.arange(WORKERS) == 2, 3.0, 1.0)
    * RNG.lognormal(0, 0.02, SHAPE),
}


class Noted:
    """In place of a judge: all steps are shared, and kept."""

    def __init__(self):
        self.mode = Judge(PLACE).mode._replace(is_shared=True)
        self.steps = []

    add = property(lambda self: self.steps.append)


def _shared(paces: np.ndarray) -> tuple[np.ndarray, list[DoneStep], list[int]]:
    """Seconds of steps handed out, what the coordinator hears, and of which steps."""
    noted = Noted()
    training = Training(PLACE, judge=noted)
    took = []
    heard = []
    with training.coordinator:
        for step, pace in enumerate((CHUNK * paces).tolist()):
            before = len(noted.steps)
            took.append(training.step(step, pace))
            assert training.is_whole
            heard += [step] * (len(noted.steps) - before)
    return np.array(took), noted.steps, heard


def _own_steps(paces: np.ndarray) -> list[DoneStep]:
    who = np.repeat(np.arange(WORKERS), CHUNKS)
    return [
        DoneStep(False, who, CHUNK * pace[who], np.zeros(WORKERS)) for pace in paces
    ]


@pytest.mark.parametrize("paces", PACES.values(), ids=PACES)
def test_own_steps_tell_what_shared_ones_take(paces):
    """Chunks of a worker do not vary: its pace is known, and so is the other mode."""
    took, _, _ = _shared(paces)
    judge = Judge(PLACE, Asking(QUESTION))
    steps = _own_steps(paces)
    estimates = [judge._estimate(step) for step in steps]
    replayed = judge._replay(list(zip(steps, estimates, strict=True)))
    assert replayed.mean() == pytest.approx(took.mean(), rel=1e-9)


@pytest.mark.parametrize("paces", PACES.values(), ids=PACES)
def test_shared_steps_tell_what_own_ones_take(paces):
    """On average; also of workers that are five times as slow, and do few chunks."""
    _, steps, heard = _shared(paces)
    judge = Judge(PLACE, Asking(QUESTION))
    owns = [judge._own_seconds(step, judge._estimate(step)) for step in steps]
    expected = (CHUNKS * CHUNK * paces[heard]).max(axis=1).mean() + QUESTION
    assert len(steps) > STEPS / 2
    assert np.mean(owns) == pytest.approx(expected, rel=1e-9)


def _observed(steps: list[DoneStep]) -> list[int]:
    """How many steps are observed together, in turn."""
    counts: list[int] = []

    class Counting(Judge):
        def observe(self, steps):
            counts.append(len(steps))
            super().observe(steps)

    judge = Counting(PLACE, run=lambda work: work())
    for step in steps:
        judge.add(step)
    return counts


@pytest.mark.parametrize(("share", "count"), [(0.008, 16), (0.012, 2)])
def test_steps_are_replayed_at_once_if_sharing_may_save_a_hundredth(share, count):
    """After the requests of all pieces: 6 (1 + k / p) / (5 + 1 / p) = (1 - share) p."""
    requests = len(PLACE.sizes) * MEASURED.alone / (CHUNKS * CHUNK)
    pace = np.ones((1, WORKERS))
    pace[0, 2] = np.roots([5 * (1 - share), -5 - share, -6 * requests]).max()
    assert _observed(16 * _own_steps(pace))[0] == count


def test_the_cost_of_questions_is_that_of_the_last_256():
    """It is the middle of those: 129 outweigh 127."""
    judge = Judge(PLACE)
    (*_, step), _ = _shared(np.ones((2, WORKERS)))[1:]
    for count, seconds, alone in (
        (200, 0.002, 0.002),
        (126, 0.004, 0.002),
        (3, 0.004, 0.004),
    ):
        judge.observe([step._replace(questions=[seconds] * count)])
        assert judge.asking.alone == pytest.approx(alone)


def test_what_steps_cost_beside_their_chunks_is_that_of_the_last_16_shared_ones():
    """It is the middle of those: nine outweigh seven."""
    judge = Judge(PLACE, Asking(QUESTION))
    (*_, step), _ = _shared(np.ones((2, WORKERS)))[1:]
    judge.observe(2 * _own_steps(PACES["equal"]))
    middles = []
    for count, late in ((20, 0.0), (7, 4e-4), (2, 4e-4)):
        judge.observe([step._replace(took=step.took + late)] * count)
        judge._learn_overheads()
        middles.append(np.median(judge._overheads))
    assert np.diff(middles) == pytest.approx([0, 4e-4], abs=1e-9)


def test_what_a_chunk_takes_whatever_its_size_is_learnt_from_its_pieces():
    """A third of a chunk is fixed: a half and a quarter take 2/3 and 1/2 of it."""
    judge = Judge(PLACE)
    pieces = np.array(PLACE.shares)
    seconds = CHUNK * np.tile(pieces + (1 - pieces) / 3, WORKERS)
    who = np.repeat(np.arange(WORKERS), len(pieces))
    step = DoneStep(True, who, seconds, np.zeros(WORKERS), took=0.2)
    own_seconds = judge._own_seconds(step, judge._estimate(step))
    assert judge._reader.fixed == pytest.approx(1 / 3)
    assert own_seconds == pytest.approx(CHUNKS * CHUNK + judge.asking.alone)


def test_questions_that_a_run_has_shown_take_the_place_of_those_measured_elsewhere():
    judge = Judge(PLACE)
    assert judge.asking.alone == pytest.approx(7e-4)
    who = np.repeat(np.arange(WORKERS), len(PLACE.shares))
    seconds = np.tile(CHUNK * np.array(PLACE.shares), WORKERS)
    judge.observe(
        [DoneStep(True, who, seconds, np.zeros(WORKERS), 0.2, questions=[0.002] * 60)]
    )
    assert judge.asking.alone == pytest.approx(0.002)
