"""A trace on the command line: one law, one limit, and the flags of each command."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import traces
from bcgc_jax.plans.plan import partition_plan
from tests.cli.steps import TIMES, trace_of, written_in_parts
from tests.oracles.chains import chain, in_order
from tests.problems import not_none
from tests.traces.logs import log_of


def test_a_worker_that_stays_slow_is_known_beforehand():
    times = np.random.default_rng(0).gamma(20.0, 0.05, (40, 4))
    assert not traces.stays_slow(None)
    assert not traces.stays_slow(trace_of(times))
    assert traces.stays_slow(trace_of(times * [3.0, 1, 1, 1]))


def test_a_trace_may_keep_its_workers(refusal, answer, trace):
    asked = ["--trace", trace, "--keep-workers", "--method", "uncoded", "--coordinates"]
    output, mean = answer("solve", *asked, "3000"), TIMES.max(axis=1).mean() * 1000 / 4
    law = output["problem"]["cycle_time"]
    assert law.pop("mean") == pytest.approx(TIMES.mean())
    assert law == {"distribution": "rows", "steps": 6, "workers": 4}
    assert output["solutions"][0]["expected_runtime"] == pytest.approx(
        3 * mean, rel=1e-9
    )
    assert "the steps of 4 workers, not 3" in refusal(
        "solve", *asked, "3000", "--workers", "3"
    )
    runtimes = [row["expected_runtime"] for row in answer("sweep", *asked, "2000,3000")]
    assert runtimes == pytest.approx([2 * mean, 3 * mean], rel=1e-8)


@pytest.mark.slow
def test_work_sharing_of_microbatches_is_replayed_once_as_advise_does(
    answer, command, tmp_path
):
    _, log = log_of("data", 3)
    path = written_in_parts(tmp_path / "log.csv", log.seconds[:, :4])
    asked = (
        "--trace",
        path,
        "--setup-cycles",
        "0",
        "--coordinates",
        "60",
        "--method",
        "uncoded",
    )
    shared, said = answer("solve", *asked)["microbatches"], answer("advise", path)
    assert shared["forward_ratio"] == pytest.approx(1 / 3, rel=1e-6)
    assert {row["remedy"] for row in shared["rows"]} == {
        "sharing:3",
        "sharing:all",
        "sharing:2",
        "limit",
    }
    assert all(row in said["rows"] for row in shared["rows"])
    assert (shared["causes"], shared["step"]) == (said["causes"], said["step"])
    _, out, _ = command("solve", *asked)
    text = " ".join(out.split())
    for row in said["rows"]:
        if row["remedy"].startswith("sharing"):
            saved, low, high = (f"{100 * share:.1f}" for share in row["saved"])
            assert f"{row['remedy']} {saved} % ({low} to {high} %)" in text
    # By forward passes alone: as `bcgc advise` says it.
    why = "data, or a core that others use"
    assert (
        f"{100 * said['causes']['data'][0]:.1f} % is due to long chunks: {why}" in text
    )
    assert f"Most of this is due to long chunks ({why}), not to slow workers" in text
    assert "The data are slow more" not in text
    whole: Any = SimpleNamespace(keep_workers=True)
    assert traces.remarks(whole, bcgc.traces.load_trace(path))[0].startswith(
        "Workers do not end together."
    )


@pytest.mark.slow
def test_a_plan_on_a_circle_is_replayed_in_the_steps_of_the_trace():
    problem = bcgc.Problem(bcgc.ShiftedExponential(1.0, 1.0), 4, 60, 4)
    plan = not_none(bcgc.solve(problem, "cyclic:2").plan)
    runtimes = traces.replay(trace_of(TIMES), problem, plan)
    subset = [np.minimum(60 * TIMES[:, w], 120 * TIMES[:, w - 1]) for w in range(4)]
    np.testing.assert_allclose(runtimes, np.max(subset, axis=0), rtol=1e-6)


@pytest.fixture
def stdin(monkeypatch):
    """Give the process a text on its standard input."""

    def give(content: str) -> None:
        stream: Any = io.BytesIO(content.encode())
        stream.name = "<stdin>"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))

    return give


def test_a_trace_brings_its_law_and_its_number_of_workers_from_standard_input_too(
    answer, stdin, trace
):
    stdin(Path(trace).read_text())
    # E max of 4 draws with replacement from the 24 times, written out.
    t, share = np.sort(TIMES.ravel()), np.arange(1, 25) / 24
    expected = np.sum(t * (share**4 - (share - 1 / 24) ** 4)) * 100 / 4
    for name in (trace, "-"):
        output = answer(
            "solve", "--trace", name, "--coordinates", "100", "--method", "uncoded"
        )
        assert output["problem"]["num_workers"] == 4
        assert output["problem"]["cycle_time"]["measured_times"] == 24
        assert output["solutions"][0]["expected_runtime"] == pytest.approx(
            expected, rel=1e-9
        )


def test_what_is_wrong_with_standard_input_is_told_by_its_name(command, refusal, stdin):
    for content, message in (
        ("", "standard input is empty"),
        (
            "step,worker,seconds\n1,a,fast\n",
            "standard input, line 2: seconds must be a positive number",
        ),
        ("step,worker,seconds\n1,a,2\n", "standard input has one worker only"),
    ):
        stdin(content)
        assert message in refusal("solve", "--trace", "-", "--coordinates", "30")
    for name in ("fit", "solve"):
        assert "standard input" in " ".join(command(name, "--help")[1].split())


def _three_levels(done):
    return all(sum((w, k) in done for w in range(4)) >= 4 - k for k in range(3))


def test_a_plan_is_replayed_in_the_steps_of_its_trace():
    rng = np.random.default_rng(0)
    times = rng.gamma(4.0, 0.5, (200, 4)) * rng.uniform(0.5, 2.0, (200, 1))
    problem, counts = (
        bcgc.Problem(bcgc.Empirical(times.ravel()), 4, 60, 3.0),
        [10, 20, 30, 0],
    )
    # By hand: a worker's cycles up to the end of each level are 10, 50, 140, 140, of M
    # / N = 3 / 4 samples.
    steps = (
        np.array(
            [max(10 * t[3], 50 * t[2], 140 * t[1]) for t in np.sort(times, axis=1)]
        )
        * 3
        / 4
    )
    uncoded = 60 * times.max(axis=1) * 3 / 4

    def said(trace, counts, promised):
        plan = partition_plan(np.array(counts, float), len(counts))
        return traces.in_its_steps(trace, problem, "mine", plan, promised)

    saved, begun, late = said(trace_of(times), counts, steps.mean() / 1.25)
    error = 100 * (uncoded - steps).std(ddof=1) / 200**0.5 / uncoded.mean()
    share = 100 * (1 - steps.mean() / uncoded.mean())
    assert (
        f"mine takes {-share:.1f} ± {error:.2g} % more time than the uncoded scheme"
        in saved
    )
    assert saved.endswith("it is not faster by two standard errors: take uncoded.")
    assert "mine takes 25 % longer than expected" in late
    assert len(said(trace_of(times), counts, steps.mean())) == 2
    # One after the other, worker by worker: 10, 20 twice, 30 three times; three are
    # enough of level 1.
    pieces = in_order([1, 2, 3], counts[:3])
    after = chain([pieces] * 4, _three_levels, (0 * times).tolist(), times.tolist())[0]
    share = 100 * (1 - 3 / 4 * np.mean(after) / uncoded.mean())
    assert np.mean(after) * 3 / 4 > 1.02 * steps.mean()
    assert begun.endswith(
        f"ends the pass that it has begun, it takes {-share:.1f} % more time than "
        "uncoded there."
    )
    apart = 1 + 20 * (rng.random((200, 4)) < 0.05)
    better = said(trace_of(apart), [0, 60, 0, 0], steps.mean())[0]
    assert "less time" in better
    assert better.endswith("expect less of later ones.")
    # One step has no error, other workers have another plan, and without a code nothing
    # is saved.
    assert (
        said(trace_of(times), [60, 0, 0, 0], 1.0)
        == said(trace_of(times[:1]), counts, 1.0)
        == []
    )
    assert said(trace_of(times[:, 1:]), counts, 1.0) == []


def test_runtimes_under_a_trace_are_in_seconds_of_a_step():
    problem = bcgc.Problem(bcgc.Empirical(TIMES.ravel()), 4, 60, 3.0)
    unit, name = traces.unit_of(trace_of(TIMES), problem)
    sentence = (
        "JSON and CSV have another unit: divide their runtimes by 45 to get these "
        "seconds"
    )
    assert (unit, name) == (45, f"seconds of a recorded step. {sentence}")
    # Where two workers share the data of four, a step of one second is one of two.
    half = bcgc.Problem(problem.cycle_time, 2, 60, 3.0)
    unit, name = traces.unit_of(trace_of(TIMES), half)
    assert 3 * 60 / 2 / unit == 2
    assert (
        "The trace has 4 workers. Here 2 share the same data: each has 2 times as much"
        in name
    )
    # A recorded step has its forward pass, and carries the derivative back.
    late = bcgc.Problem(
        problem.cycle_time, 4, 60, 3.0, setup_cycles=30.0, chain_cycles=0.2
    )
    assert traces.unit_of(trace_of(TIMES), late)[0] == pytest.approx(
        3 / 4 * (60 * 1.2 + 30)
    )
    assert traces.unit_of(trace_of(TIMES)._replace(of_cycles=True), problem) == (
        1,
        "seconds",
    )
    assert traces.unit_of(None, problem) == (1, "the cycle time's unit")


@pytest.mark.parametrize("size", [1e9, 10**15])
def test_python_refuses_what_no_machine_holds(size):
    law = bcgc.ShiftedExponential(1e-3, 50.0)
    for sizes in ({"num_workers": size}, {"num_workers": 3, "max_workers": int(size)}):
        with pytest.raises(
            ValueError,
            match=r"e\+\d\d workers are more than .* 131,072. .* arrays of N²",
        ):
            bcgc.Problem(law, num_coordinates=60, **sizes)


def test_what_takes_a_day_or_the_memory_is_refused(monkeypatch):
    atoms = bcgc.Empirical(np.random.default_rng(0).gamma(2.0, 1.0, 500) + 0.5)
    for law, workers in ((bcgc.ShiftedExponential(1e-3, 50.0), 2**17), (atoms, 500)):
        traces.check_size(bcgc.Problem(law, workers, 1_000_000))
    with pytest.raises(ValueError, match="more than a day: take fewer --workers"):
        traces.check_size(bcgc.Problem(atoms, 10_000, 1_000_000))
    monkeypatch.setattr("os.sysconf", lambda _: 1)
    with pytest.raises(
        ValueError, match="GB of memory, and there are 0: take fewer --workers"
    ):
        traces.check_size(bcgc.Problem(atoms, 10_000, 1_000_000))
