"""`bcgc advise` of workers in lock-step, and of lengths alone."""

import numpy as np
import pytest

from tests.cli.steps import written, written_in_parts


@pytest.fixture
def chunks(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.pareto(2.2, (24, 5, 4)) + 0.2
    seconds = 0.1 * lengths * rng.gamma(200.0, 0.005, (24, 5, 1))
    return written_in_parts(tmp_path / "parts.csv", seconds, load=lengths)


@pytest.fixture
def lengths(tmp_path):
    rng = np.random.default_rng(1)
    tokens = rng.integers(10, 4000, (12, 3, 4))
    rows = [f"{s},{w},{c},{n}" for (s, w, c), n in np.ndenumerate(tokens)]
    (tmp_path / "lengths.csv").write_text("\n".join(["step,worker,chunk,load", *rows]))
    return str(tmp_path / "lengths.csv")


def test_in_lock_step_rows_are_dealt_and_nothing_hangs(command, answer, chunks):
    apart, together = answer("advise", chunks), answer("advise", chunks, "--lock-step")
    assert (apart["lock_step"], together["lock_step"]) == (False, True)
    assert together["step"] > apart["step"]
    assert together["balanced"] == apart["balanced"]
    assert [row["remedy"] for row in together["rows"]] == [
        "rows of alike chunks",
        "dealt, equal numbers",
        "own chunks sorted",
        "slowest replaced",
        "limit",
    ]
    assert "dealt, equal numbers" in {row["remedy"] for row in apart["rows"]}
    said = " ".join(command("advise", chunks, "--lock-step")[1].split())
    assert f"In lock-step a step takes {together['step']:.4g} s on average." in said
    assert (
        "Do this: deal the chunks so that those which are computed together are alike."
        in said
    )
    assert "A question is taken to cost" not in said


def test_what_cannot_be_meant_is_refused(refusal, chunks, lengths, tmp_path):
    steps = written(
        tmp_path / "steps.csv", np.random.default_rng(0).gamma(4.0, 1.0, (9, 3))
    )
    assert "the log has none: give a row for each" in refusal(
        "advise", steps, "--lock-step"
    )
    assert "If it has lengths alone, say what they cost: --cost a,b" in refusal(
        "advise", lengths
    )
    assert "a cost is for a log of lengths alone" in refusal(
        "advise", chunks, "--cost", "1,0"
    )
    for bad in ("1", "1,-1", "0,0", "a,b", "1,inf"):
        assert "must be a,b of a L + b L²" in refusal("advise", lengths, "--cost", bad)
    assert "--unit has no effect with --cost" in refusal(
        "advise", lengths, "--cost", "1,0", "--unit", "ms"
    )
    assert "both give what is replayed" in refusal(
        "advise", chunks, "--lock-step", "--method", "nested"
    )
