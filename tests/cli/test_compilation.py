"""The programs that `bcgc` keeps: found by another process, and no trouble where they cannot be kept."""

import json
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import compilation as _compilation
from tests.problems import known
from tests.scripts import python

_ARGS = ("--format", "json", "--method", "time", "--method", "uncoded")
_RUN = """
import collections, json, sys
import jax
from bcgc_jax import cli
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
try:
    cli.main()
except SystemExit as stop:
    hits, asked = counts["cache_hits"], counts["compile_requests_use_cache"]
    print(json.dumps([stop.code or 0, hits, asked]), file=sys.stderr)
"""


def _bcgc(*args: str, **environment: str) -> tuple[dict, int, int]:
    """`bcgc ARGS` in a process of its own: the answer, programs found, and programs compiled."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    result = python(_RUN, *args, env=inherited | {"JAX_PLATFORMS": "cpu", **environment})
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr  # the counts alone: no warning
    code, hits, asked = json.loads(lines[0])
    assert code == 0
    return json.loads(result.stdout), hits, asked - hits


def _solve(workers: int, rate: str, *more: str) -> tuple[str, ...]:
    law = f"shifted-exponential:rate={rate},shift=50"
    size = ("--workers", str(workers), "--coordinates", "20000")
    return ("solve", *size, "--cycle-time", law, *(more or _ARGS))


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*-cache") if path.is_file()]


@pytest.mark.slow
def test_another_process_finds_its_programs_for_another_n_rate_and_method(tmp_path):
    place = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path)}
    first, _, compiled = _bcgc(*_solve(20, "1e-3"), **place)
    assert compiled > 3
    # Two threads may ask for one program at the same time.
    assert compiled - 3 <= len(_entries(tmp_path)) <= compiled
    other, hits, compiled = _bcgc(*_solve(24, "2", *_ARGS[:4]), **place)
    assert (compiled, hits > 3) == (0, True)
    (row,) = other["solutions"]
    assert (len(row["partition"]), sum(row["partition"])) == (24, 20_000)
    _, hits, compiled = _bcgc(*_solve(9, "2"), **place)
    assert (compiled, hits > 3) == (0, True)
    # An entry that was cut off is no trouble.
    largest = max(_entries(tmp_path), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    again, _, compiled = _bcgc(*_solve(20, "1e-3"), **place)
    assert compiled == 1
    for answer in (first, again):
        for row in answer["solutions"]:
            del row["seconds"]
    assert again == first


def _kept_in() -> str | None:
    """JAX's own setting, an attribute that its types do not have."""
    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


@pytest.fixture
def configuration(monkeypatch):
    """JAX's settings, and what is done with warnings, as they were."""
    ours = ("cache_dir", "cache_max_size")
    names = [*(f"jax_compilation_{name}" for name in ours), "jax_persistent_cache_min_compile_time_secs"]
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv(_compilation.VARIABLE, raising=False)
    with warnings.catch_warnings():
        jax.config.update("jax_compilation_cache_dir", None)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_option_comes_before_the_variable_and_jax_before_the_default(
    configuration, monkeypatch, tmp_path
):
    monkeypatch.setenv(_compilation.VARIABLE, str(tmp_path / "variable"))
    option = known(_compilation.keep_programs(str(tmp_path / "option")))
    variable = known(_compilation.keep_programs(None))
    assert (option.parent, variable.parent) == (tmp_path / "option", tmp_path / "variable")
    assert _kept_in() == str(variable)
    assert jax.config.jax_compilation_cache_max_size == 2**26  # type: ignore[attr-defined]
    assert variable.stat().st_mode & 0o077 == 0
    monkeypatch.setenv(_compilation.VARIABLE, "OFF")
    assert _compilation.keep_programs(None) is _kept_in() is None
    monkeypatch.delenv(_compilation.VARIABLE)
    jax.config.update("jax_compilation_cache_dir", "the user's")
    assert _compilation.keep_programs(None) is None
    assert _kept_in() == "the user's"
    assert _compilation.keep_programs("off") is None
    assert _kept_in() is None
    monkeypatch.setattr(_compilation, "_user_cache", lambda: tmp_path / "default")
    assert known(_compilation.keep_programs(None)).parent == tmp_path / "default"


def test_the_cache_is_where_the_platform_keeps_such_things(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, folder in (("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "local")):
        monkeypatch.setattr(sys, "platform", name)
        assert _compilation._user_cache() == tmp_path / folder / "bcgc_jax"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _compilation._user_cache() == tmp_path / "xdg" / "bcgc_jax"


def test_a_folder_that_others_may_write_to_or_nobody_or_that_cannot_be_made_is_not_used(
    configuration, monkeypatch, tmp_path
):
    folder = known(_compilation.keep_programs(str(tmp_path)))
    jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o777)
    assert _compilation.keep_programs(str(tmp_path)) is None
    folder.chmod(0o700)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root everything may be written to
    assert _compilation.keep_programs(str(tmp_path)) is None
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), str(tmp_path / "file/x"), "/proc/self"):
        assert _compilation.keep_programs(place) is None
    assert _kept_in() is None


@pytest.mark.slow
def test_the_library_leaves_the_configuration_alone():
    code = "import jax; jax.config.update = None; import bcgc_jax as b; "
    code += "print(b.solve(b.Problem(b.Uniform(1., 2.), 3, 9), 'uncoded').status)"
    result = python(code)
    assert result.stdout == "0\n", result.stderr


def test_numbers_of_workers_share_a_size():
    law = bcgc.Uniform(1.0, 2.0)
    sizes = [_compilation.padded_workers(n, law) for n in (1, 20, 32, 33, 1000)]
    assert sizes == [32, 32, 32, 64, 1000]  # of many workers, smooth steps need to know N
    assert _compilation.padded_workers(20, bcgc.Empirical([1.0, 2.0])) == 20


def test_a_stopwatch_leaves_out_compiling_in_its_own_thread():
    heard: list[bool] = []
    with _compilation.Stopwatch(heard.append) as watch:
        with watch.lap() as seconds:
            start = time.perf_counter()
            jax.block_until_ready(jax.jit(lambda x: jax.numpy.sort(x) @ x)(jax.numpy.arange(7.0)))
            time.sleep(0.05)
            end = time.perf_counter()
        assert 0.05 <= seconds() < end - start
        assert heard[-1] is False
        assert True in heard

        def elsewhere() -> None:
            jax.block_until_ready(jax.jit(lambda x: jax.numpy.cumsum(x) @ x)(jax.numpy.arange(5.0)))

        with watch.lap() as waiting:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        assert waiting() > 0.001
    count = len(heard)
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert len(heard) == count


def test_spans_within_spans_count_once():
    assert _compilation._length([(1.0, 4.0), (2.0, 3.0), (3.5, 5.0), (7.0, 8.0)]) == pytest.approx(5.0)
    assert _compilation._length([]) == 0
