"""What is too large is refused, what is long is told before it starts."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import estimates, solve, sweep, train
from bcgc_jax.cli.estimates import Cost, announce, cost_of
from bcgc_jax.solvers.methods import method_of
from tests.raising import raising

EXPONENTIAL = bcgc.ShiftedExponential(1e-3, 50.0)
ATOMS = bcgc.Empirical(np.random.default_rng(0).gamma(2.0, 1.0, 500) + 0.5)
LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]


@pytest.mark.parametrize("name", ["solve", "sweep", "train", "fit"])
def test_the_limit_is_in_the_help(command, name):
    _, out, _ = command(name, "--help")
    assert f"at most {'1,500' if name == 'train' else '131,072'}" in " ".join(out.split())


@pytest.mark.parametrize("size", [1e9, 10**15])
def test_python_refuses_what_no_machine_holds(size):
    for given in ({"num_workers": size}, {"num_workers": 3, "max_workers": int(size)}):
        words = r"e\+\d\d workers are more than 131,072: .* arrays of N² numbers"
        with pytest.raises(ValueError, match=words):
            bcgc.Problem(EXPONENTIAL, num_coordinates=60, **given)


@pytest.mark.parametrize(
    ("law", "workers", "method", "least", "most"),
    [
        # Measured, on one core: 1.4 s and 21 s, 30 s and 8 s, 107 s.
        (bcgc.Gamma(4.0, 4.0), 1000, "optimal", 0.0, 60.0),
        (EXPONENTIAL, 10_000, "optimal", 0.0, 60.0),
        (ATOMS, 500, "single_block", 60.0, 86_400.0),
        (ATOMS, 1000, "tandon_partial", 30.0, 86_400.0),
        (EXPONENTIAL, 100, "credit", 60.0, 86_400.0),
        (ATOMS, 10_000, "optimal", 86_400.0, np.inf),
        (EXPONENTIAL, 100_000, "credit", 86_400.0, np.inf),
        (EXPONENTIAL, 100_000, "cyclic:50", 0.0, 60.0),
    ],
)
def test_a_minute_and_a_day_are_told_apart(law, workers, method, least, most):
    assert least <= cost_of(bcgc.Problem(law, workers, 1_000_000), method_of(method)).seconds < most


def test_what_is_long_is_told_and_what_takes_a_day_or_the_memory_refused(monkeypatch, capsys):
    monkeypatch.setattr(estimates, "_memory", lambda: 8.0 * 2**30)
    announce(Cost(50.0, 2**30), "never")
    assert capsys.readouterr() == ("", "")
    announce(Cost(800.0, 2**30), "quicker: less")
    assert capsys.readouterr() == ("", "bcgc: this takes long; quicker: less\n")
    with pytest.raises(ValueError, match=r"more than a day; quicker: less"):
        announce(Cost(1e5), "quicker: less")
    with pytest.raises(ValueError, match=r"about 9 GB of memory, and the machine has 8 GB"):
        announce(Cost(1.0, 9 * 2**30))


def test_a_machine_has_memory():
    assert estimates._memory() == 0 or estimates._memory() > 2**26


def test_commands_tell_and_refuse_before_they_start(command, monkeypatch):
    for module, work in ((solve, "_solve_all"), (sweep, "_collect"), (train, "_train_all")):
        monkeypatch.setattr(module, work, raising(ValueError("the work has begun")))
    arguments = [*LAW, "--coordinates", "1e6"]
    begun, long = "bcgc: the work has begun\n", "bcgc: this takes long; "
    assert command("solve", "--workers", "20", *arguments)[2] == begun
    for asked, words in (
        (["solve", "--workers", "60000", *arguments], "most of it for optimal; quicker: some --method alone"),
        (
            ["sweep", "--workers", "300", "--samples", "1:9:900", *arguments],
            "quicker: fewer cells or --workers",
        ),
        (["train", "--workers", "50", *LAW], "quicker: fewer --steps, --seeds or --workers"),
    ):
        assert command(*asked)[2] == f"{long}{words}\n{begun}"
    status, _, err = command("solve", "--workers", "100000", "--method", "credit", *arguments)
    assert (status, err) == (
        2, "bcgc: this would take more than a day; most of it for credit; quicker: fewer --workers\n"
    )  # fmt: skip
