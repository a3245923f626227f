"""What cannot be meant is refused in one line, status 2, before any work."""

import shlex

import pytest

from bcgc_jax._removed import COMMANDS

# Words of the shell that many rows have.
WORDS = {
    "SMALL": "--workers 4 --coordinates 10",
    "SIZES": "--workers 2,3 --coordinates 10",
    "LAW": "--cycle-time shifted-exponential:rate=1e-3,shift=50",
    "UNIFORM": "--cycle-time uniform:low=1,high=2",
    "PARETO": "--cycle-time pareto:scale=1",
}
# What is typed, and a part of what is said, which may be on the next line.
ROWS = r"""
solve LAW --workers 4
  -> give the length of the gradient, with --coordinates or --unit-costs
solve SMALL -> give the distribution of the cycle time, with --cycle-time or --trace
solve SMALL UNIFORM --unit-costs /dev/null
  -> --coordinates and --unit-costs both give the length
solve --workers 4 UNIFORM --unit-costs x.txt -> 'x.txt': No such file
solve SMALL UNIFORM --setup-cycles -1 -> at least 0
solve SMALL UNIFORM --setup-cycles 1 --method subgradient
  -> subgradient knows no --setup-cycles
solve SMALL UNIFORM --setup-cycles 1 --forward 47%
  -> --forward and --setup-cycles both give
sweep SIZES PARETO --setup-cycles 1,2 --forward 0,47%
  -> --forward and --setup-cycles both
solve SMALL UNIFORM --forward 47 -> pass from 0 to 10, such as 0.47 or 47%, got '47'
solve SMALL UNIFORM --forward -1% -> from 0 to 10
solve SMALL UNIFORM --forward 4%7 -> such as 0.47 or 47%, got '4%7'
solve SMALL UNIFORM --levels 0,x -> levels and ranges
solve SMALL UNIFORM --levels 3-1 -> levels and ranges
solve SMALL UNIFORM --levels 0,4 --method limit -> from 0 to 3
solve SMALL UNIFORM --objective completion-probability -> needs a --deadline
solve SMALL UNIFORM --min-completion 0.9 -> needs a --deadline
solve SMALL UNIFORM --min-completion 0.9 --deadline 9 --objective completion-probability
  -> two obj
solve SMALL UNIFORM --min-completion 0.9 --deadline 9 --method time
  -> unless a --method is deadline
solve SMALL UNIFORM --out plan.txt -> --out must end in .json, got plan.txt
solve SMALL UNIFORM --min-completion 1.5 --deadline 9 -> at most 1
solve SMALL LAW --trace -
  -> --cycle-time and --trace both give the distribution of the cycle time
solve SMALL LAW --keep-workers -> --keep-workers has no effect without --trace
solve SMALL --cycle-time '3*uniform:low=1,high=2' -> for 3 workers, but --workers is 4
solve SMALL --cycle-time 'x*uniform:low=1,high=2' -> whole number
solve --coordinates 9 LAW --cycle-time '1e9*uniform:low=1,high=2' -> at most 131,072
solve --coordinates 9 LAW -> --workers
solve --workers 2.5 --coordinates 9 LAW -> whole number
solve --workers 0 --coordinates 9 LAW -> at least 1
solve SMALL UNIFORM --cycles nan -> finite number above 0
solve SMALL UNIFORM --deadline 0 -> above 0
solve SMALL UNIFORM --method tandon:4 -> from 0 to 3
solve SMALL UNIFORM --format xml -> xml
solve SMALL --cycle-time uniform:low=1 -> high missing
solve SMALL --cycle-time gamma:shape=1,rat=2
  -> 'gamma:shape=1,rat=2' (did you mean rate?)
solve SMALL --cycle-time uniform:low=1,high=x -> cannot read 'high=x'
solve SMALL --cycle-time uniform:low=1,low=1,high=2 -> cannot read 'low=1'
solve SMALL --cycle-time uniform:low=2,high=1 -> low must be below high
solve SMALL --cycle-time pareto:scale=1,shape=0.9 -> mean of Pareto is infinite
solve SMALL --cycle-time two-speed:fast=1,slow=inf,probability=0.2 -> deadline
sweep SIZES PARETO -> needs shape
sweep SIZES PARETO --axis shap=1,2 -> has the parameters scale, shape
sweep SIZES PARETO --axis scale=1,2 -> given twice
sweep SIZES PARETO --axis shape=2 --axis shape=3 -> two axes
sweep SIZES PARETO --axis shape=1:2 -> LOW:HIGH:COUNT
sweep SIZES PARETO --axis shape=0:2:5:log -> above 0 LOW:HIGH:COUNT:log
sweep SIZES PARETO --axis shape=1:2:1500000 -> at most 1,000,000
sweep SIZES PARETO --axis shape -> must be PARAMETER=NUMBERS
sweep --workers 5:2 --coordinates 9 PARETO -> LOW:HIGH
sweep SIZES PARETO --axis shape=2 --resume -> give it with --out
sweep SIZES PARETO --axis shape=2 --out sweep.txt -> must end in .csv
sweep SIZES PARETO --axis shape=2 --objective completion-probability
  -> needs a --deadline
solve --workers 131073 --coordinates 9 LAW -> at most 131,072, got '131073'
solve SMALL UNIFORM --levels 0-99999999999 -> at most 131,072
solve SMALL --cycle-time deterministic:time=2 -> expected deterministic:value=
solve --workers 9 --coordinates 1e19 LAW -> at most 9,007,199,254,740,992, got '1e19'
solve SMALL UNIFORM --layout wide -> --layout has no effect without --trace
solve --trace - --keep-workers --trace-distribution atoms
  -> --trace-distribution has no effect with
solve SMALL UNIFORM --start-up pareto:scale=1,shape=0.9 -> must be a finite number
solve SMALL UNIFORM --start-up -3 -> at least 0, got '-3'
solve SMALL UNIFORM --overlap -> --overlap has no effect without --send-time
solve SMALL UNIFORM --chain-cycles 1 --method subgradient -> no --chain-cycles
"""


@pytest.mark.parametrize("row", ROWS.replace("\n  ->", " ->").strip().splitlines())
def test_bad_input_ends_with_one_line_and_status_2(refusal, monkeypatch, row):
    typed, _, said = row.partition("-> ")
    words = " ".join(WORDS.get(word, shlex.quote(word)) for word in shlex.split(typed))
    for work in ("solve_schemes._solve_all", "sweep._collect"):
        monkeypatch.setattr(
            f"bcgc_jax.cli.{work}", lambda *_: pytest.fail("the work began")
        )
    assert said in refusal(*shlex.split(words))


def test_a_method_that_is_gone_names_what_takes_its_place(refusal):
    args = [
        "--workers",
        "4",
        "--coordinates",
        "100",
        "--cycle-time",
        "uniform:low=1,high=2",
    ]
    assert 'take "sharing:D" in its place' in refusal(
        "solve", *args, "--method", "multi_message:2"
    )


@pytest.mark.parametrize("removed", sorted(COMMANDS))
def test_an_option_that_was_removed_names_its_replacement(refusal, removed):
    assert COMMANDS[removed] in refusal(*removed.split())
