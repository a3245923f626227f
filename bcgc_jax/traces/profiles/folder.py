"""Find profiler traces among files by their content, and make a log of them."""

import re
import zlib
from collections.abc import Sequence
from importlib.util import find_spec

from bcgc_jax.traces.profiles import jax_traces, kineto
from bcgc_jax.traces.profiles.log import MadeLog, made_log
from bcgc_jax.traces.profiles.recording import JAX, TORCH, Recording, joined
from bcgc_jax.traces.tables import short_names
from bcgc_jax.traces.units import counted

# Number of bytes by which the kind of a file is recognised.
_HEAD = 1 << 16
# Folder of a single recording, which jax.profiler creates in the given folder.
_RECORDING = re.compile(r"(?:^|(?<=/))plugins/profile/[^/]+/")


def kind_of(path: str) -> str | None:
    """Return TORCH or JAX, or None if the file is not a profiler trace."""
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
    """Make a log of the profiler traces among some files.

    Args:
      files: Paths. Each rank has one or more traces, and other files are ignored.
      chunk_name: Name of the range or jitted function that begins a chunk.

    Returns:
      The log, or None if no file is a trace.

    Raises:
      ValueError: If the traces do not determine a log.
    """
    kinds = {file: kind for file in files if (kind := kind_of(file)) is not None}
    if not kinds:
        return None
    if len(set(kinds.values())) > 1:
        raise ValueError(
            "some traces are from PyTorch, others from JAX. Use traces of one job."
        )
    kind = next(iter(kinds.values()))
    read = _read_jax
    if kind == TORCH:
        read = _read_torch
    recordings, said = read(list(kinds), chunk_name)
    ranks = joined(recordings)
    if len(ranks) < 2:
        raise ValueError(
            f"only rank {ranks[0].rank} has a trace. Record all ranks, each in its own "
            "file. JAX names files after the host, so each process of a host needs its "
            "own folder."
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
        f"Traces are missing for {counted(len(missing), 'rank')} of {world} ({names}). "
        "Time that all other ranks waited for them counts as time of the collective."
    ]


def _read_jax(
    files: list[str], chunk_name: str | None
) -> tuple[list[Recording], list[str]]:
    """Read the last recording of each process, from *.xplane.pb if JAX is installed."""
    planes = [file for file in files if file.endswith(".pb")]
    if planes and find_spec("jax"):
        files = planes
    else:
        files = [file for file in files if not file.endswith(".pb")]
    if not files:
        raise ValueError(
            "reading *.xplane.pb needs JAX, which is not installed. Use the files "
            "*.trace.json.gz instead, which jax.profiler writes to the same folder."
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
        f"{traces} of older recordings of the same process are left out."
    ]
