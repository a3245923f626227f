"""Times of microbatches: read, and asked whether the workers are slow or the data."""

import io
import re

import numpy as np
import pytest
from scipy import stats

from bcgc_jax.measured.description import describe, worker_share
from bcgc_jax.measured.traces import Trace, load_trace
from experiments.report import TRACES

RECORDED = TRACES / "llm_training_32_workers_microbatches.csv"
recorded = pytest.mark.skipif(not RECORDED.exists(), reason=f"{RECORDED.name} is not part of the repository")

_HEADER = "step,worker,chunk,load,seconds,forward_seconds\n"


def _read(rows: str, header: str = _HEADER) -> Trace:
    return load_trace(io.BytesIO(f"{header}{rows}".encode()))


def test_microbatches_are_read_and_a_step_is_their_sum():
    trace = _read(
        "2,a,10,4,3,1\n2,a,9,5,6,2\n1,b,9,7,1.5,.5\n1,b,10,8,2.5,1\n1,a,9,6,4,1\n1,a,10,3,5,1.5\n2,b,9,1,,\n"
    )
    parts = trace.microbatches
    assert parts is not None
    assert (trace.step_names.tolist(), trace.worker_names.tolist()) == (["1", "2"], ["a", "b"])
    np.testing.assert_array_equal(trace.table(), [[9.0, 4.0], [9.0, np.nan]])
    assert trace.num_missing == 1
    # [step][worker][microbatch], in the order of the numbers 9 and 10.
    nothing = [np.nan, np.nan]
    np.testing.assert_array_equal(parts.seconds, [[[4, 5], [1.5, 2.5]], [[6, 3], nothing]])
    np.testing.assert_array_equal(parts.forward, [[[1, 1.5], [0.5, 1]], [[2, 1], nothing]])
    np.testing.assert_array_equal(parts.load, [[[6, 3], [7, 8]], [[5, 4], nothing]])
    assert parts.forward_ratio == pytest.approx(7 / (22 - 7))


def test_without_a_column_chunk_nothing_changes_and_forward_and_load_may_be_left_out():
    plain = _read("1,a,4,2,1\n1,a,8,3,1\n", "step,worker,load,seconds,forward_seconds\n")
    assert plain.microbatches is None
    assert plain.load is not None
    alone = _read("1,a,0,2\n1,a,1,3\n", "step,worker,chunk,seconds\n").microbatches
    assert alone is not None
    assert (alone.forward, alone.load, alone.forward_ratio) == (None, None, None)
    # A column of that name may be another's.
    named = load_trace(io.BytesIO(b"step,chunk,seconds\n1,a,2\n1,b,3\n"), worker="chunk")
    assert (named.worker_names.tolist(), named.microbatches) == (["a", "b"], None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "1,a,0,1,2,1\n1,b,0,1,2,1\n1,a,0,1,3,1\n",
            "lines 2 and 4: step 1 has two times of microbatch 0 of worker a",
        ),
        (
            "1,a,0,1,2,1\n1,a,1,1,2,1\n1,b,1,1,3,1\n",
            "step 1 has no time of microbatch 0 of worker b. All steps",
        ),
        (
            "1,a,0,1,2,1\n1,a,1,1,2,1\n2,a,0,1,3,1\n",
            "no time of microbatch 1 .*more microbatches than others, give",
        ),
        ("1,a,0,1,2,2\n", "line 2: forward_seconds must be a part of seconds.*got '2' of 2"),
        (
            "1,a,0,1,2,\n",
            "line 2: forward_seconds must .*give it for all microbatches, or leave the column out",
        ),
        ("1,a,0,,2,1\n", "line 2: load is empty"),
        ("1,a,,1,2,1\n", "line 2: the label of a step, worker or chunk is empty"),
    ],
)
def test_microbatches_that_cannot_be_are_refused_with_their_reason(rows, message):
    with pytest.raises(ValueError, match=message):
        _read(rows)


def test_microbatches_that_were_cut_off_and_wide_files_are_refused():
    text = b"step,worker,chunk,seconds,cut\n1,a,0,2,1\n"
    with pytest.raises(
        ValueError, match="microbatches that were cut off are not supported: leave their steps"
    ):
        load_trace(io.BytesIO(text), censored="cut")
    with pytest.raises(ValueError, match="the wide layout has no place for chunk"):
        load_trace(io.BytesIO(b"step,chunk,w1\n1,0,2\n"), layout="wide")


def _residuals(seconds: np.ndarray, factors: list[np.ndarray]) -> tuple[float, int]:
    """Sum of squares that dummy variables of these factors leave, and the rank of them."""
    columns = [np.arange(factor.max() + 1) == factor[:, None] for factor in factors]
    design = np.concatenate(columns, axis=1).astype(float)
    fit, _, rank, _ = np.linalg.lstsq(design, seconds, rcond=None)
    return float(np.sum((seconds - design @ fit) ** 2)), int(rank)


@pytest.mark.parametrize("missing", [False, True])
def test_the_share_of_the_worker_is_that_of_an_analysis_of_variance(missing):
    seconds = np.random.default_rng(0).gamma(3.0, 1.0, (5, 4, 3)) + np.arange(4)[:, None] / 2
    if missing:
        seconds[1, 2] = seconds[3, 0] = seconds[4] = np.nan
    known = np.isfinite(seconds)
    of_step, worker, _ = np.nonzero(known)
    y, of_cell = seconds[known], 4 * of_step + worker
    (total, steps), (within, cells) = _residuals(y, [of_step]), _residuals(y, [of_cell])
    outer, inner = cells - steps, y.size - cells
    ratio = (total - within) / outer / (within / inner)
    ratios = ratio / np.append(1, stats.f.ppf([0.975, 0.025], outer, inner))
    # At most 7e-10 apart, by the quantiles.
    np.testing.assert_allclose(worker_share(seconds), (ratios - 1) / (ratios - 1 + 3), rtol=0, atol=1e-9)
    if not missing:  # a step alone is the textbook's case
        alone = stats.f_oneway(*seconds[0]).statistic
        assert worker_share(seconds[:1]).value == pytest.approx((alone - 1) / (alone + 2), rel=1e-9)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_a_known_share_is_found_without_bias(share):
    """The mean of 20 logs, with microbatches of a skewed law, and steps that are long for all workers."""
    values = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rest = rng.gamma(2.0, 1.0, (15, 8, 6)) / np.sqrt(2)
        own = rng.normal(0.0, 1.0, (15, 8, 1))
        seconds = 5 + rng.gamma(3.0, 1.0, (15, 1, 1)) + np.sqrt(share) * own + np.sqrt(1 - share) * rest
        values.append(worker_share(seconds).value)
    assert abs(np.mean(values) - share) < 3 * np.std(values) / np.sqrt(20)


def test_microbatches_say_in_words_whether_workers_or_data_are_slow():
    rng = np.random.default_rng(1)
    worker, data = rng.gamma(4, 1, (9, 6, 1)), rng.gamma(4, 1, (9, 6, 8))
    for seconds, words in [
        (0 * worker + data, "The data are slow, not the workers: of the variance"),
        (worker + 0.1 * data, "The workers are slow, not their data: of the variance"),
        (worker + data, "Workers and data are slow alike: of the variance"),
    ]:
        rows = "".join(f"{s},{w},{c},{t}\n" for (s, w, c), t in np.ndenumerate(seconds))
        found = describe(_read(rows, "step,worker,chunk,seconds\n"), with_tail=False)
        assert found.remarks()[0].startswith(words), found.worker_share
    one = describe(_read("1,a,0,2\n1,b,0,3\n2,a,0,2\n2,b,0,3\n", "step,worker,chunk,seconds\n"))
    assert str(one.worker_share) == "unknown"
    assert not re.search("microbatch", " ".join(one.remarks()))


@recorded
def test_the_recorded_microbatches_are_slow_by_their_data():
    """What the README of the traces says of them."""
    trace = load_trace(RECORDED)
    parts = trace.microbatches
    assert parts is not None
    share = worker_share(parts.seconds)
    assert share.value == pytest.approx(0.02, abs=0.002)
    assert share.high < 0.04
    assert parts.forward_ratio == pytest.approx(0.466, abs=5e-4)
    assert (parts.seconds.shape, trace.num_missing) == ((43, 32, 8), 0)
