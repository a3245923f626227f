"""Precision for the tests: the package follows the caller's dtype and never sets a global option."""

import os
import sys
from collections.abc import Callable, Iterator

import jax
import jaxlib.version
import numpy as np
import pytest

from bcgc_jax import cli
from bcgc_jax.solvers import schemes

# Where the tests were seen to pass with other settings of the compiler than a user has.
_OLDER = jaxlib.version.__version_info__ < (0, 11)


def pytest_configure() -> None:
    """Nearly all programs of the tests compile for longer than they run."""
    flags = os.environ.get("XLA_FLAGS", "")
    # XLA's older code generator compiles in two thirds of the time; later versions have it no more.
    if _OLDER and "xla_cpu_use_fusion_emitters" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Let go of what a file compiled: a process may hold only so many memory maps (65530 on Linux)."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Little optimisation, for files whose programs compile for longer than they run; not for rounding."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", _OLDER or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def built_in_schemes() -> Iterator[None]:
    """The schemes of the package alone, whatever another test or example of this process has added."""
    for name in schemes.added_schemes():
        schemes._schemes.pop(name)
    yield
    for name in schemes.added_schemes():
        schemes._schemes.pop(name)


@pytest.fixture
def x64() -> Iterator[None]:
    """64 bit within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[np.dtype]:
    """Each precision in turn, as the dtype that JAX then uses by default."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `bcgc ARGS` in this process: (exit status, stdout, stderr)."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bcgc", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run
