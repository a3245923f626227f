"""What is too large is refused by a stated limit, what is long is told before it starts."""

import re

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import estimates, solve, sweep, train
from bcgc_jax.cli.estimates import Cost, announce, cost_of, cost_of_all, duration
from bcgc_jax.solvers.methods import method_of

EXPONENTIAL = bcgc.ShiftedExponential(1e-3, 50.0)
ATOMS = bcgc.Empirical(np.random.default_rng(0).gamma(2.0, 1.0, 500) + 0.5)
LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]
LIMITED = {
    "solve": ("131,072", ["--coordinates", "60"]),
    "sweep": ("131,072", ["--coordinates", "60"]),
    "train": ("1,500", []),
    "fit": ("131,072", []),
}


@pytest.mark.parametrize("size", ["131073", "1e6", "1e9", "1e15", "1e300"])
@pytest.mark.parametrize("name", LIMITED)
def test_the_number_of_workers_has_a_stated_limit(command, name, size):
    most, more = LIMITED[name]
    law = ["steps.csv"] if name == "fit" else LAW
    status, out, err = command(name, *more, *law, "--workers", size)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"must be at most {most}, got '{size}'" in err


@pytest.mark.parametrize("name", LIMITED)
def test_the_limit_is_in_the_help(command, name):
    _, out, _ = command(name, "--help")
    assert f"at most {LIMITED[name][0]}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["solve", *LAW, "--workers", "20", "--coordinates", "60", "--levels", "0-99999999999"],
            "at most 131,072",
        ),
        (["sweep", *LAW, "--workers", "2:1e15", "--coordinates", "60"], "must be at most 131,072"),
    ],
)
def test_no_range_is_without_end(command, arguments, words):
    status, out, err = command(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize("size", [1e9, 10**15])
def test_python_refuses_what_no_machine_holds(size):
    for given in ({"num_workers": size}, {"num_workers": 3, "max_workers": int(size)}):
        with pytest.raises(
            ValueError, match=r"e\+\d\d workers are more than 131,072: .* arrays of N² numbers"
        ):
            bcgc.Problem(EXPONENTIAL, num_coordinates=60, **given)


@pytest.mark.parametrize(
    ("law", "workers", "method", "seconds"),
    [
        (EXPONENTIAL, 50, "optimal", 0.013),
        (EXPONENTIAL, 500, "optimal", 0.83),
        (EXPONENTIAL, 10_000, "optimal", 21),
        (bcgc.Gamma(4.0, 4.0), 1000, "optimal", 1.4),
        (bcgc.Exponential(1.0), 1000, "optimal", 26),
        (bcgc.Weibull(1.0, 2.0), 1000, "optimal", 12),
        (EXPONENTIAL, 500, "time", 0.14),
        (EXPONENTIAL, 10_000, "time", 4.4),
        (EXPONENTIAL, 100_000, "time", 107),
        (EXPONENTIAL, 10_000, "uncoded", 0.10),
        (EXPONENTIAL, 256, "optimal", 0.48),
        (EXPONENTIAL, 1000, "subgradient", 17),
        (EXPONENTIAL, 10_000, "tandon_partial", 0.22),
        (bcgc.Uniform(1.0, 2.0), 500, "time", 0.70),
        (bcgc.Uniform(1.0, 2.0), 500, "optimal", 5.9),
        (bcgc.Uniform(1.0, 2.0), 100, "optimal", 1.4),
        (ATOMS, 200, "single_block", 30),
        (ATOMS, 200, "tandon_partial", 8.4),
        (bcgc.Empirical(np.arange(1.0, 101.0)), 32, "optimal", 2.4),
        (bcgc.Rows(np.ones((100, 256))), 256, "optimal", 1.2),
        (bcgc.ShiftedExponential(1e-3, 50.0), 50, "cyclic:50", 0.05),
        (bcgc.ShiftedExponential(1e-3, 50.0), 4000, "cyclic:50", 1.2),
    ],
)
def test_estimates_are_what_was_measured_within_a_factor_of_three(law, workers, method, seconds):
    problem = bcgc.Problem(law, workers, 1_000_000)
    assert 1 / 3 < cost_of(problem, method_of(method)).seconds / seconds < 3


@pytest.mark.parametrize(
    ("workers", "more", "seconds"),
    [
        (16, {"start_up": bcgc.Weibull(4000.0, 0.7)}, 0.71),
        (32, {"start_up": 4000.0}, 0.01),
        (16, {"send_time": 0.02}, 0.05),
        (8, {"send_time": 0.02, "overlap": True}, 0.19),
        (8, {"start_up": 4000.0, "send_time": 0.02, "overlap": True, "chain_cycles": 0.1}, 45),
    ],
)
def test_so_are_those_of_workers_that_start_up_and_send(workers, more, seconds):
    problem = bcgc.Problem(bcgc.ShiftedExponential(1.0, 0.5), workers, 20_000, **more)
    assert 1 / 3 < cost_of(problem, bcgc.Optimal()).seconds / seconds < 3


def test_what_is_searched_for_takes_longer():
    plain = cost_of(bcgc.Problem(EXPONENTIAL, 20, 1_000_000), bcgc.Optimal()).seconds
    setup = cost_of(bcgc.Problem(EXPONENTIAL, 20, 1_000_000, setup_cycles=1.0), bcgc.Optimal()).seconds
    units = cost_of(bcgc.Problem(EXPONENTIAL, 50, 1_000), bcgc.Optimal()).seconds
    assert 4.1 / 3 < setup < 3 * 4.1
    assert 5.8 / 3 < units < 3 * 5.8
    assert plain < 0.1
    total, dearest = cost_of_all(
        bcgc.Problem(EXPONENTIAL, 20, 1_000_000, setup_cycles=1.0), [bcgc.Optimal(), method_of("time")]
    )
    assert dearest == "optimal"
    assert total.seconds > setup


def test_only_what_is_long_or_large_is_told(monkeypatch, capsys):
    monkeypatch.setattr(estimates, "_memory", lambda: 8.0 * 2**30)
    announce(Cost(9.0, 2**30), "never")
    assert capsys.readouterr() == ("", "")
    announce(Cost(42.0, 2**30), "quicker: less")
    assert capsys.readouterr() == ("", "bcgc: this takes about 40 s; quicker: less\n")
    announce(Cost(800.0, 3 * 2**30))
    assert capsys.readouterr().err == "bcgc: this takes about 13 min and about 3 GB of memory\n"
    with pytest.raises(ValueError, match=r"about 9 GB of memory, and the machine has 8 GB"):
        announce(Cost(1.0, 9 * 2**30))
    assert duration(30 * 3600.0) == "30 hours"


def test_a_machine_has_memory():
    assert estimates._memory() == 0 or estimates._memory() > 2**26


def test_commands_tell_before_they_start(command, monkeypatch):
    def work(*_, **__):
        raise ValueError("the work has begun")

    monkeypatch.setattr(solve, "_solve_all", work)
    monkeypatch.setattr(sweep, "_collect", work)
    monkeypatch.setattr(train, "_train_all", work)
    arguments = [*LAW, "--coordinates", "1e6"]
    _, _, err = command("solve", "--workers", "1000", *arguments)
    told, begun = err.splitlines()
    assert re.match(r"bcgc: this takes about \d+ (s|min); most of it for \w+; quicker: some --method", told)
    assert begun == "bcgc: the work has begun"
    _, _, err = command("sweep", "--workers", "300", "--samples", "1:9:50", *arguments)
    told, begun = err.splitlines()
    assert re.match(r"bcgc: this takes about \d+ (s|min)", told)
    assert begun == "bcgc: the work has begun"
    _, _, err = command("train", "--workers", "50", *LAW)
    told, begun = err.splitlines()
    assert re.match(r"bcgc: this takes about \d+ (s|min)", told)
    assert begun == "bcgc: the work has begun"
    _, _, err = command("solve", "--workers", "20", *arguments)
    assert err == "bcgc: the work has begun\n"
