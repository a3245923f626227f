"""JAX is imported when something is computed; what the command knows without it is what the library has."""

import dataclasses
import json

import pytest

from bcgc_jax.cli import arguments as names
from bcgc_jax.cli.answers import describe_law
from bcgc_jax.cli.arguments import law_class, law_name, read_law
from bcgc_jax.coding import digits, gradients
from bcgc_jax.measured import likelihood, traces
from bcgc_jax.solvers import methods
from bcgc_jax.sweeps import files as sweep_files
from tests.scripts import python

_RUN = """
import json, sys
from bcgc_jax import cli
try:
    cli.main()
finally:
    print(json.dumps(sorted({"jax", "numpy"} & sys.modules.keys())), file=sys.stderr)
"""


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        *(([*name, "--help"], 0, None) for name in ([], ["solve"], ["fit"], ["sweep"], ["train"])),
        (["slove"], 2, "bcgc: No such command 'slove'"),
        (["solve", "--wrokers", "3"], 2, "bcgc: No such option '--wrokers'"),
        (["solve", "--workers", "x"], 2, "bcgc: Invalid value for '--workers': must be a whole number"),
        (["solve", "--trace", "none.csv"], 2, "bcgc: Invalid value for '--trace': File 'none.csv'"),
        (
            ["train", "--trace", "-", "--method", "tim"],
            2,
            "bcgc: Invalid value for '--method': no method 'tim' (did you mean time?)",
        ),
        (
            ["solve", "--cycle-time", "gama:rate=1"],
            2,
            "bcgc: Invalid value for '--cycle-time': unknown distribution",
        ),
        (["solve", "--cycle-time", "gamma:rat=1"], 2, "bcgc: Invalid value for '--cycle-time': cannot read"),
    ],
)
def test_help_and_refusals_need_no_jax(arguments, status, line):
    found = python(_RUN, *arguments)
    *said, imported = found.stderr.splitlines()
    assert (found.returncode, json.loads(imported)) == (status, [])
    if line is None:
        assert (found.stdout.startswith("Usage: bcgc"), said) == (True, [])
    else:
        assert (found.stdout, len(said)) == ("", 1)
        assert said[0].startswith(line)


@pytest.mark.parametrize("name", names.LAWS)
def test_a_law_has_the_parameters_that_it_is_typed_with(name):
    law = law_class(name)
    assert law_name(law) == name
    defaults = {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(law)  # type: ignore[arg-type]
    }
    assert names.LAWS[name] == defaults
    given = dict(zip(defaults, (0.5, 2.0, 0.25), strict=False))
    typed = ",".join(f"{parameter}={value}" for parameter, value in given.items())
    read = read_law(f"{name}:{typed}")
    assert repr(read) == repr(law(**given))
    assert describe_law(read) == {"law": name, **given}


def test_the_names_are_the_librarys():
    assert names.METHODS == methods.METHODS
    assert tuple(likelihood.FAMILIES) == names.FITTED_LAWS
    assert names.LAYOUTS == traces.LAYOUTS
    assert names.SWEPT == sweep_files.FORMATS
    assert tuple(digits.MODELS) == names.MODELS
    assert names.UNITS == gradients.UNITS
