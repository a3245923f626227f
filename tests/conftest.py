"""Precision of tests: the package follows its caller's dtype, sets no global option."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bcgc_jax import cli
from bcgc_jax.cli.options import quick_flags

# As `bcgc solve` compiles: XLA's older emitters take half the time, with every
# optimisation. The smoke tests of `.ci/run` are compiled as programs of Python users
# are.
_FLAGS = quick_flags("")
if _FLAGS:
    # Processes compile beside each other: a thread for each is enough. Of the
    # processor's time it takes a tenth less.
    _FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
# Programs are kept as `bcgc` keeps them, for worker processes too: a second run takes a
# third of the time.
_PROGRAMS = str(Path(__file__).parents[1] / ".pytest_cache" / "programs")
jax.config.update("jax_compilation_cache_dir", _PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# XLA's threads wait for each other busily. With one for each process some files take
# 7 % less of the processors.
os.environ.setdefault("NPROC", "1")
# Hundreds of processes are started. Each would compile all modules anew, for 4 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Ray's workers give way to all other programs. Here these are tests that compute beside
# them.
os.environ.setdefault("RAY_worker_niceness", "0")

# Files that share programs go to one process, in this order, and the rest behind them,
# a file at a time.
_GROUPS = {
    "tests/test_registry.py": "examples",
    "bcgc_jax/traces/fits.py": "fits",
    "tests/traces/test_fits.py": "fits",
    "tests/solvers/": "solvers",
    "tests/plans/test_circle.py": "solvers",
    "tests/test_sweeps.py": "solvers",
    "tests/test_solution.py": "solvers",
    # the longest files, not at the end while one process waits
    "tests/test_documents.py": "documents",
    "tests/plans/test_mass_at_infimum.py": "infimum",
    "bcgc_jax/": "examples",
}

# Tracing makes many objects and little garbage: collecting at Python's own pace takes a
# fifth of its time.
gc.set_threshold(20_000, 10, 10)

_SLOW_EXAMPLES = ("bcgc_jax/traces/fits.py::bcgc_jax.traces.fits.fit_distributions",)


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return next(
        (name for start, name in _GROUPS.items() if file.startswith(start)), file
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A group to a process. (`--dist loadgroup` loses the groups with pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Put tests in the order of groups; examples as dear as slow tests are slow."""
    order = list(dict.fromkeys(_GROUPS.values()))
    items.sort(
        key=lambda item: (
            order.index(name) if (name := _group(item.nodeid)) in order else len(order)
        )
    )
    for item in items:
        if item.nodeid.startswith(_SLOW_EXAMPLES):
            item.add_marker(pytest.mark.slow)
    return (yield)


def pytest_collection_finish() -> None:
    """What is imported stays."""
    gc.freeze()


# Linux gives a process 65530 memory maps, and a compiled program takes several.
_MANY_MAPS = 40_000


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """The files of a process share programs, as long as it has room for them."""
    yield
    with contextlib.suppress(OSError), open("/proc/self/maps", "rb") as maps:
        if sum(1 for _ in maps) > _MANY_MAPS:
            jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """64 bit within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[pytest.param("float32", marks=pytest.mark.slow), "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[np.dtype]:
    """Take each precision in turn, as JAX's default; the default tier takes float64."""
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
