"""Which files are traces of a profiler, by their content, and the log of them."""

import re
import zlib
from collections.abc import Sequence
from importlib.util import find_spec

from bcgc_jax.traces.profiles import jax_traces, kineto
from bcgc_jax.traces.profiles.log import MadeLog, made_log
from bcgc_jax.traces.profiles.recording import JAX, TORCH, Recording, joined
from bcgc_jax.traces.tables import short_names
from bcgc_jax.traces.units import counted

# Bytes that say what a file is.
_HEAD = 1 << 16
# A folder for each recording, below the one that was asked for.
_RECORDING = re.compile(r"(?:^|(?<=/))plugins/profile/[^/]+/")


def kind_of(path: str) -> str | None:
    """TORCH, JAX, or None for a file that is no trace of a profiler."""
    if path.endswith(".xplane.pb"):
        return JAX
    head = _head(path)
    if not re.match(rb"\s*[{\[]", head) or not re.search(rb'"traceEvents"|"ph"', head):
        return None
    torch = re.search(rb'"schemaVersion"|"deviceProperties"|"cat":\s*"cpu_op"', head)
    if torch:
        return TORCH
    return JAX


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head[:2] == b"\x1f\x8b":
        try:
            return zlib.decompressobj(31).decompress(head, _HEAD)
        except zlib.error:
            return b""
    return head


def log_of(files: Sequence[str], chunk_name: str | None = None) -> MadeLog | None:
    """Make the log of those files that are traces, one or more a rank; None where none
    is.

    See `made_log`. Raises ValueError, with the reason, for traces that make no log.
    """
    kinds = {file: kind for file in files if (kind := kind_of(file)) is not None}
    if not kinds:
        return None
    if len(set(kinds.values())) > 1:
        raise ValueError(
            "there are traces of PyTorch and of JAX: give those of one job"
        )
    kind = next(iter(kinds.values()))
    read = _read_jax
    if kind == TORCH:
        read = _read_torch
    recordings, said = read(list(kinds), chunk_name)
    ranks = joined(recordings)
    if len(ranks) < 2:
        raise ValueError(
            f"there is a trace of one rank alone ({ranks[0].rank}): record each, in a "
            "file of its own. JAX names files after the host, so processes of one host "
            "need a folder each"
        )
    log = made_log(ranks, kind, chunk_name)
    return log._replace(remarks=[*log.remarks, *said])


def _read_torch(
    files: list[str], chunk_name: str | None
) -> tuple[list[Recording], list[str]]:
    read = [kineto.read(file, chunk_name) for file in files]
    recordings = [rank.recording for rank in read]
    ranks = {recording.rank for recording in recordings}
    world = max((rank.world_size or 0 for rank in read), default=0)
    missing = sorted(set(map(str, range(world))) - ranks, key=int)
    if not missing or not ranks <= set(map(str, range(world))):
        return recordings, []
    names = ", ".join(missing[:5])
    if len(missing) > 5:
        names += ", …"
    return recordings, [
        f"There is no trace of {counted(len(missing), 'rank')} of {world} ({names}). "
        "Others may have waited for them: what all waited counts as the collective's."
    ]


def _read_jax(
    files: list[str], chunk_name: str | None
) -> tuple[list[Recording], list[str]]:
    """Read the last recording of each process, from *.xplane.pb if JAX is there."""
    planes = [file for file in files if file.endswith(".pb")]
    if planes and find_spec("jax"):
        files = planes
    else:
        files = [file for file in files if not file.endswith(".pb")]
    if not files:
        raise ValueError(
            "*.xplane.pb are read with JAX, which is not installed. jax.profiler "
            "writes *.trace.json.gz beside them: give those too"
        )
    newest = {_RECORDING.sub("", file): file for file in sorted(files)}
    recordings: list[Recording] = []
    for process, file in zip(short_names(list(newest)), newest.values(), strict=True):
        recordings += jax_traces.read(file, process, chunk_name)
    older = len(files) - len(newest)
    if not older:
        return recordings, []
    traces = counted(older, "trace")
    return recordings, [
        f"Left out: {traces} of an older recording of the same process."
    ]
