"""`bcgc` keeps programs for other processes, and works where none can be kept."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import compilation as _compilation
from bcgc_jax.cli.commands import cli
from tests.scripts import python

_ARGS = (
    "--coordinates",
    "20000",
    "--format",
    "json",
    "--method",
    "time",
    "--method",
    "uncoded",
)
_RUN = """
import collections, json, sys
import jax
from bcgc_jax import cli
counts = collections.Counter()
def count(event, **_):
    counts.update([event.rpartition("/")[2]])
jax.monitoring.register_event_listener(count)
try:
    cli.main()
except SystemExit as stop:
    hits, asked = counts["cache_hits"], counts["compile_requests_use_cache"]
    print(json.dumps([stop.code or 0, hits, asked]), file=sys.stderr)
"""


def _solve(
    workers: int, rate: str, *args: str, **environment: str
) -> tuple[dict, int, int]:
    """`bcgc solve` in a process of its own: answer, programs found, and compiled."""
    law = (
        "--workers",
        str(workers),
        "--cycle-time",
        f"shifted-exponential:rate={rate},shift=50",
    )
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    }
    environment = {"JAX_PLATFORMS": "cpu", **environment}
    result = python(_RUN, "solve", *law, *args, env=inherited | environment)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr  # the counts alone: no warning
    code, hits, asked = json.loads(lines[0])
    assert code == 0
    return json.loads(result.stdout), hits, asked - hits


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*-cache") if path.is_file()]


@pytest.mark.slow
@pytest.mark.smoke
def test_a_process_of_its_own_solves_whatever_flags_its_xla_knows(tmp_path):
    output, _, _ = _solve(
        3, "1e-3", *_ARGS[:4], "--method", "uncoded", XDG_CACHE_HOME=str(tmp_path)
    )
    assert [row["method"] for row in output["solutions"]] == ["uncoded"]


@pytest.mark.slow
def test_another_process_finds_its_programs_for_another_n_rate_and_method(tmp_path):
    place = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    first, _, compiled = _solve(20, "1e-3", *_ARGS, **place)
    assert compiled > 3
    assert len(_entries(tmp_path)) == compiled
    second, hits, compiled = _solve(24, "2", *_ARGS[:6], **place)
    assert compiled == 0
    assert hits > 3
    (row,) = second["solutions"]
    assert (len(row["partition"]), sum(row["partition"])) == (24, 20_000)
    # An entry that was cut off is no trouble.
    largest = max(_entries(tmp_path), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    third, _, compiled = _solve(20, "1e-3", *_ARGS, **place)
    assert compiled == 1
    for row in (*first["solutions"], *third["solutions"]):
        del row["seconds"]
    assert third == first


def test_programs_are_kept_where_jax_is_told_or_in_the_users_cache_if_there_may_be_one(
    tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    for cache, home, jax_place, kept in (
        (tmp_path, "/", None, tmp_path / "bcgc_jax/programs"),
        ("", tmp_path, None, tmp_path / ".cache/bcgc_jax/programs"),
        (tmp_path / "file", "/", None, None),
        (tmp_path, "/", "elsewhere", None),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setenv("HOME", str(home))
        settings: dict[str, Any] = {}
        config = SimpleNamespace(
            jax_compilation_cache_dir=jax_place, update=settings.__setitem__
        )
        monkeypatch.setattr(_compilation, "jax", SimpleNamespace(config=config))
        _compilation.keep_programs()
        names = "cache_dir", "cache_max_size"
        values = [settings.get(f"jax_compilation_{name}") for name in names]
        assert values == ([str(kept), 2**26] if kept else [None, None])
        assert kept is None or kept.is_dir()
        assert all(hasattr(jax.config, name) for name in settings)


@pytest.mark.slow
def test_the_library_leaves_the_configuration_alone():
    result = python(
        "import jax; jax.config.update = None; import bcgc_jax as b; "
        "print(b.solve(b.Problem(b.Uniform(1., 2.), 3, 9), 'uncoded').status)"
    )
    assert result.stdout == "0\n", result.stderr


def test_numbers_of_workers_share_a_size():
    law, atoms = bcgc.Uniform(1.0, 2.0), bcgc.Empirical([1.0, 2.0])
    asked = [
        *((n, law, 10_000) for n in (1, 20, 32, 33, 401, 1000)),
        (20, atoms, 10_000),
        (20, law, 9),
    ]
    sizes = [
        _compilation.padded(bcgc.Problem(d, n, length)).max_workers
        for n, d, length in asked
    ]
    # of many workers, smooth steps need to know N
    assert sizes == [32, 32, 32, 64, 401, 1000, 20, 20]
    smooth = bcgc.ShiftedExponential(1.0, 1.0)
    paid = [bcgc.Problem(smooth, n, 10_000, setup_cycles=1e4) for n in (20, 33)]
    paid.append(bcgc.Problem(law, 20, 10_000, setup_cycles=1e4))
    # Levels that are paid for are searched in N rounds, kinks in N panels.
    sizes = [_compilation.padded(problem).max_workers for problem in paid]
    assert sizes == [32, 33, 20]


def test_a_command_that_runs_once_compiles_quickly_unless_the_user_has_said_how(
    monkeypatch,
):
    quick = "--xla_cpu_use_fusion_emitters=false"
    cases = {
        ("", "0.8.1"): quick,
        ("--xla_dump_to=x", "0.11.0"): f"--xla_dump_to=x {quick}",
        (
            "--xla_cpu_use_fusion_emitters=true",
            "0.10.2",
        ): "--xla_cpu_use_fusion_emitters=true",
        ("", "0.11.1"): "",
        ("", "0.12.0.1"): "",
    }
    for (user_flags, version), flags in cases.items():
        monkeypatch.setattr(
            "importlib.metadata.version", lambda _, reply=version: reply
        )
        monkeypatch.setenv("XLA_FLAGS", user_flags)
        with pytest.raises(SystemExit):
            cli.main(["solve", "--help"])
        assert os.environ["XLA_FLAGS"] == user_flags  # JAX is there already
        with monkeypatch.context() as process:
            process.delitem(sys.modules, "jax")
            for command in ("sweep", "solve"):
                assert os.environ["XLA_FLAGS"] == user_flags
                with pytest.raises(SystemExit):
                    cli.main([command, "--help"])
        assert os.environ["XLA_FLAGS"] == flags
