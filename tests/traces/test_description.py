"""Traces made in one known way: how far they are from independent, alike workers."""

import dataclasses

import numpy as np
import pytest
from scipy import signal

from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.diagnosis.description import autocorrelation, describe
from bcgc_jax.diagnosis.slowness import slowness_in
from bcgc_jax.traces.microbatches import Microbatches
from tests.cli.steps import trace_of
from tests.problems import not_none
from tests.traces.logs import log_of


def _table(seed: int = 0, steps: int = 120, workers: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4.0, 0.5, (steps, workers))


def test_a_trace_as_the_paper_has_it_is_not_complained_about():
    description = describe(trace_of(_table()))
    assert (description.num_workers, description.num_steps) == (8, 120)
    assert (description.num_times, description.num_missing) == (960, 0)
    assert description.mean == pytest.approx(_table().mean())
    assert description.high == pytest.approx(np.quantile(_table(), 0.99))
    assert description.remarks() == [
        "Nothing here speaks against independent workers of one distribution."
    ]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t * np.linspace(0.7, 1.5, 8), "not alike"),
        (
            lambda t: t * np.random.default_rng(1).uniform(0.5, 1.6, (120, 1)),
            "All workers are slow at once",
        ),
        (
            lambda t: (
                t
                + np.where(
                    np.arange(120)[:, None] // 20 % 2 == np.arange(8) % 2, 1.5, 0
                )
            ),
            "depends on that of its last step",
        ),
        (lambda t: 1 + np.random.default_rng(3).pareto(0.6, t.shape), "tail is heavy"),
        (
            lambda t: t[:, :1] * np.random.default_rng(4).uniform(1, 1.008, t.shape),
            "take the same time",
        ),
        (lambda t: t[:1], "too few steps"),
        (lambda t: t[:, :1], "too few workers"),
    ],
)
def test_each_way_of_being_otherwise_is_named(spoil, words):
    remarks = describe(trace_of(spoil(_table()))).remarks()
    assert any(words in remark for remark in remarks), remarks


def test_persistence_and_common_steps_neither_make_nor_hide_unlike_workers():
    alike = unlike = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = signal.lfilter([1.0], [1.0, -0.8], rng.normal(0, 0.1, (100, 8)), axis=0)
        alike += any(
            "not alike" in r
            for r in describe(trace_of(5 + noise), with_tail=False).remarks()
        )
        steps = (
            5
            + rng.normal(0, 0.5, (30, 1))
            + rng.normal(0, 0.1, (30, 8))
            + 0.3 * (np.arange(8) == 2)
        )
        unlike += any(
            "not alike" in r
            for r in describe(trace_of(steps), with_tail=False).remarks()
        )
    assert alike <= 4
    assert unlike == 20


def test_the_autocorrelation_of_short_traces_is_corrected_for_their_mean():
    tables = np.random.default_rng(0).normal(5, 1, (200, 12, 4))
    # uncorrected: -1/12
    assert abs(np.mean([autocorrelation(table).value for table in tables])) < 0.03


@pytest.mark.parametrize("slope", [0.6, -0.4])
def test_the_autocorrelation_is_found_and_its_interval_covers_it(slope):
    """95 % of 1,000 are 950; a coverage of 90 % would pass with a chance of 0.1 %."""
    rng = np.random.default_rng(0)
    # The second noise is alike for all of a step.
    noise = rng.normal(0, 1, (1000, 200, 4)) + rng.normal(0, 1, (1000, 200, 1))
    tables = 10 + signal.lfilter([1.0], [1.0, -slope], noise, axis=1)
    value, low, high = np.array([autocorrelation(table) for table in tables]).T
    assert abs(value.mean() - slope) < 0.03
    assert np.sum((low <= slope) & (slope <= high)) >= 930


def test_missing_and_cut_off_times_are_counted():
    table = _table()
    table[3, 2] = table[50, 0] = np.nan
    trace = trace_of(table)
    cut = trace._replace(censored=np.arange(trace.seconds.size) % 50 == 0)
    description = describe(cut)
    assert description.num_missing == 2
    assert description.num_censored == int(cut.censored.sum())
    assert any("cut off" in remark for remark in description.remarks())


def test_pauses_hide_no_worker_that_stays_slow():
    rng = np.random.default_rng(1)
    calm = np.exp(rng.normal(0, 0.1, (40, 6, 4)))
    calm[:, 2] *= 1.12
    seconds = calm + np.where(
        rng.random(calm.shape) < 0.02, rng.uniform(3, 8, calm.shape), 0
    )
    of_steps = trace_of(seconds.sum(axis=2))
    slowness = not_none(
        describe(of_steps._replace(microbatches=Microbatches(seconds))).slowness
    )
    assert [slow_worker.worker for slow_worker in slowness.slow_workers] == ["2"]
    assert slowness.unlike_workers


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("data", "long chunks: data, or a core that others use"),
        ("steady", "workers that stay slow"),
        ("random", "workers that are slow in single steps, at random"),
        ("pauses", "pauses within a chunk"),
    ],
)
def test_a_description_says_what_advise_says_of_the_cause_that_was_put_in(cause, words):
    _, log = log_of(cause, 5)
    trace = trace_of(log.seconds.sum(axis=2), microbatches=log)
    description, advice = describe(trace, with_tail=False), advise(trace)
    lost = not_none(description.slowness)
    compared = [field.name for field in dataclasses.fields(lost) if field.compare]
    assert [getattr(lost, name) for name in compared] == [
        getattr(advice, name) for name in compared
    ]
    first, *other_remarks = description.remarks()
    share = f"{100 * advice.causes[cause].value:.1f} % is due to {words}"
    assert first.startswith(
        f"Workers do not end together. Of the time that this costs, {share}"
    )
    said = " ".join(other_remarks)
    # Forward passes do not tell long data from a core that others use.
    assert "The data are slow more" not in said
    busy = "due to long chunks (data, or a core that others use), not to slow workers"
    assert (busy in said, lost.of_data) == (cause == "data",) * 2
    assert lost.unlike_workers == (cause == "steady")


def test_loads_tell_long_data_from_a_core_that_others_use():
    _, log = log_of("data", 5)
    loads = log._replace(forward=None, load=log.seconds)
    trace = trace_of(log.seconds.sum(axis=2), microbatches=loads)
    said = not_none(slowness_in(trace)).causes_in_words()
    assert said[1].startswith("The data are slow more than the workers. Plans here")
