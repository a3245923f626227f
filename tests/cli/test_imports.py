"""JAX is imported only to compute; names that the command knows are the library's."""

import inspect
import json

import pytest

from bcgc_jax import __version__
from bcgc_jax.balancing.scheme_names import ABOUT, ALONE, NUMBERED
from bcgc_jax.cli import arguments as names
from bcgc_jax.cli.arguments import law_class, law_name, read_law
from bcgc_jax.cli.describe import describe_law
from bcgc_jax.solvers import methods
from bcgc_jax.solvers.baselines import CLOSED_FORMS
from bcgc_jax.traces import fits
from bcgc_jax.traces import trace as traces
from tests.scripts import python

_RUN = """
import contextlib, io, json, sys
from bcgc_jax import cli
for typed in json.load(sys.stdin):
    sys.argv, out, err = ["bcgc", *typed], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with contextlib.suppress(SystemExit):
            cli.main()
    imported = sorted({"jax", "numpy"} & sys.modules.keys())
    print(json.dumps([out.getvalue(), err.getvalue(), imported]))
"""
# What is typed, and how the one line of the refusal goes on.
_REFUSED = {
    "slove": "No such command 'slove'",
    "solve --wrokers 3": "No such option '--wrokers'",
    "solve --workers x": "Invalid value for '--workers': must be a whole number",
    "solve --trace none.csv": "Invalid value for '--trace': File 'none.csv'",
    "sweep --trace - --method tim": "Invalid value for '--method': no method 'tim' "
    "(did you mean time?)",
    "solve --cycle-time gama:rate=1": "Invalid value for '--cycle-time': unknown "
    "distribution",
    "solve --cycle-time gamma:rat=1": "Invalid value for '--cycle-time': cannot read",
}


@pytest.mark.smoke
def test_help_and_refusals_need_no_jax():
    helped = [
        "",
        "--help",
        *(f"{name} --help" for name in ("advise", "solve", "fit", "sweep")),
    ]
    typed = [text.split() for text in (*helped, "--version", *_REFUSED)]
    lines = python(_RUN, input=json.dumps(typed)).stdout.splitlines()
    for text, line in zip((*helped, "--version", *_REFUSED), lines, strict=True):
        out, err, imported = json.loads(line)
        assert imported == [], text
        if text in _REFUSED:
            assert (out, err.count("\n")) == ("", 1)
            assert err.startswith(f"bcgc: {_REFUSED[text]}")
        else:
            # The version of a clone that is not installed, too.
            assert out.startswith((f"bcgc, version {__version__}\n", "Usage: bcgc")), (
                text
            )
            assert err == ""


def test_advice_needs_no_jax(trace):
    ((out, err, imported),) = map(
        json.loads,
        python(_RUN, input=json.dumps([["advise", trace]])).stdout.splitlines(),
    )
    assert out.startswith("trace.csv: 4 workers, 6 steps.")
    assert err == ""
    assert imported == ["numpy"]


_NO_JAX = """
import sys
# as if not installed
sys.modules.update(dict.fromkeys(("jax", "jaxlib", "optax", "chex")))
from bcgc_jax import cli
from bcgc_jax.balancing import dispatch
with dispatch.serve(2, key="secret") as coordinator:
    with dispatch.join(coordinator.address, 0, key="secret") as share:
        print(len(share.held))
sys.argv = ["bcgc", "advise", *sys.argv[1:]]
cli.main()
"""


def test_sharing_and_advice_go_where_jax_is_not_installed(trace):
    done = python(_NO_JAX, trace)
    shared, _, advised = done.stdout.partition("\n")
    assert (done.returncode, done.stderr, shared) == (0, "", "20")
    assert advised.startswith("trace.csv: 4 workers, 6 steps.")


@pytest.mark.parametrize(
    ("module", "options"), [("rich", ()), ("jax", ("--method", "nested"))]
)
def test_what_is_missing_is_named_with_what_to_install(trace, module, options):
    missing = _NO_JAX.replace('"jax",', f'"jax", "{module}",')
    done = python(missing, trace, *options)
    assert done.returncode == 2
    assert done.stderr == (
        f"bcgc: {module} is missing: in a clone of the project, pip install '.[cli]'\n"
    )


@pytest.mark.parametrize("name", names.LAWS)
def test_a_law_has_the_parameters_that_it_is_typed_with(name):
    law = law_class(name)
    assert law_name(law) == name
    typed = inspect.signature(law).parameters.values()
    defaults = {
        parameter.name: None
        if parameter.default is parameter.empty
        else parameter.default
        for parameter in typed
    }
    assert names.LAWS[name] == defaults
    numbers = dict(zip(defaults, (0.5, 2.0, 0.25), strict=False))
    parameters = [f"{parameter}={value}" for parameter, value in numbers.items()]
    read = read_law(f"{name}:{','.join(parameters)}")
    assert repr(read) == repr(law(**numbers))
    assert describe_law(read) == {"distribution": name, **numbers}


def test_the_names_are_the_librarys():
    kinds = {word for word in ABOUT if ABOUT[word].solver}
    assert {*kinds, *CLOSED_FORMS} == methods.NAMES
    assert all(methods.method_of(name).name.partition(":")[0] == name for name in ALONE)
    assert all(methods.kind_of(word).word == word for word in NUMBERED)
    assert tuple(fits.FAMILIES) == names.FITTED_LAWS
    assert names.LAYOUTS == traces.LAYOUTS
    assert tuple(traces.UNITS) == names.TIME_UNITS
