"""A log that names each worker's host: advice, the plan by it, and what is refused."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.balancing.dispatch import Memory, join, serve
from bcgc_jax.balancing.storage import by_hosts

HOSTS = ("b", "a", "c", "b", "a", "c")


def _written(path, hosts=HOSTS, header="step,worker,seconds,host"):
    """One host of three is four times as slow in each step."""
    rng = np.random.default_rng(0)
    slow = rng.integers(0, 3, 20)
    rows = [header]
    for (step, worker), noise in np.ndenumerate(rng.lognormal(0, 0.1, (20, 6))):
        seconds = noise * (4 if worker % 3 == slow[step] else 1)
        rows.append(f"{step},{worker},{seconds:.6f},{hosts[worker]}")
    path.write_text("\n".join(rows))
    return str(path)


def test_serve_places_chunks_by_the_hosts_of_the_log(answer, tmp_path):
    log, plan = _written(tmp_path / "log.csv"), tmp_path / "plan.json"
    options = ("--timed-apart", "--stored", "2", "--out", str(plan))
    advice = answer("advise", log, *options)
    assert advice["advised"] == "sharing:2"
    by_name = {row["remedy"]: row for row in advice["rows"]}
    assert list(by_name)[-2:] == ["limit:2", "limit"]
    assert by_name["sharing:2"]["saved"][0] < by_name["limit:2"]["saved"][0]
    solution = bcgc.Solution.load(plan)
    bound = advice["step"] * (1 - by_name["limit:2"]["saved"][0])
    assert float(solution.lower_bound) == pytest.approx(bound)
    memory = Memory()
    with serve(plan, transport=memory) as coordinator:
        shares = [
            join(coordinator.address, rank, transport=memory) for rank in range(6)
        ]
        stored = by_hosts((0, 1, 2, 0, 1, 2), 2, len(shares[0].own)).chunks()
        for share, chunks in zip(shares, stored, strict=True):
            assert [(chunk.subset, chunk.number) for chunk in share.held] == [*chunks]
        assert shares[0].covers([0, 1, 3, 4])
    plan.write_text(plan.read_text().replace('"hosts": [', '"hosts": [7,'))
    with pytest.raises(ValueError, match="of each of 6 workers: got 7"):
        serve(plan, transport=memory)


def test_a_worker_has_one_host(refusal, command, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,worker,seconds,host\n1,a,1,x\n1,b,1,y\n1,c,1,x\n2,a,1,y\n")
    assert "log.csv, line 5: worker a is on host y, and was on x before" in refusal(
        "advise", str(log)
    )
    log.write_text("step,worker,seconds,node\n1,a,1,x\n1,b,1,y\n1,c,1,x\n2,d,1,\n")
    assert "worker d has no host, others have" in refusal(
        "advise", str(log), "--columns", "host=node"
    )
