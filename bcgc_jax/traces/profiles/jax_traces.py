"""Traces of `jax.profiler`: *.xplane.pb, which only JAX reads, or *.trace.json.gz."""

import bisect
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.traces.profiles.events import Event, Events
from bcgc_jax.traces.profiles.recording import IN_ONE_JIT, Recording, unknown_chunk
from bcgc_jax.traces.profiles.spans import Spans, exposed

_COLLECTIVE = re.compile(
    r"all[-_]?reduce|reduce[-_]?scatter|all[-_]?gather|all[-_]?to[-_]?all|psum|pmean|nccl",
    re.IGNORECASE,
)
_PAIR = re.compile(r"collective[-_]permute|ppermute", re.IGNORECASE)


class _Collective(NamedTuple):
    begin: float
    end: float
    program: str
    run: str


class _Device:
    """What ran on one device, in seconds."""

    def __init__(self) -> None:
        self.collectives: list[_Collective] = []
        self.work = Spans()
        # When the runs of the program that makes a chunk have begun.
        self.chunks: dict[str, float] = {}
        # The runs of each program, where one of them is looked for.
        self.runs: dict[str, set[str]] = {}


def read(path: str, process: str, chunk_name: str | None = None) -> list[Recording]:
    """Read one process: a recording of each device on which collectives ran.

    The program that is in collectives the longest is the step. A chunk is a run of the
    program of the jitted function `chunk_name`.

    Raises ValueError, with the reason, for a file that does not show what a worker
    waits, or has no such chunk.
    """
    planes: dict[Any, str] = {}
    marks: list[tuple[float, int]] = []
    devices: dict[str, _Device] = {}
    for event in _xplane(path) if path.endswith(".pb") else Events(path):
        arguments = event.arguments
        if event.phase == "M":
            if event.name == "process_name":
                planes[event.process] = str(arguments.get("name"))
        elif "step_num" in arguments:
            marks.append((event.begin, int(arguments["step_num"])))
        elif "hlo_op" in arguments:
            plane = planes.get(event.process, "")
            on_device = plane.startswith("/device:")
            place = plane
            if not on_device:
                place = str(arguments.get("device_ordinal", 0))
            _add(event, devices.setdefault(place, _Device()), chunk_name, path)
    steps = {place: device for place, device in devices.items() if device.collectives}
    if not steps:
        raise ValueError(
            f"{path}: no collective (psum, all-reduce) was recorded: was a step of "
            "data-parallel training profiled?"
        )
    if chunk_name is not None and not any(device.chunks for device in devices.values()):
        counts = {
            program: len(runs)
            for device in devices.values()
            for program, runs in device.runs.items()
        }
        unknown = unknown_chunk(path, chunk_name, counts)
        num_runs = [
            len({collective.run for collective in device.collectives})
            for device in steps.values()
        ]
        if max(counts.values()) > max(num_runs):
            raise unknown
        # No program runs more often than once a step.
        raise ValueError(f"{unknown}. {IN_ONE_JIT}")
    marks.sort()
    names = [process if len(steps) == 1 else f"{process}:{place}" for place in steps]
    return [
        _recording(device, name, marks)
        for device, name in zip(steps.values(), names, strict=True)
    ]


def _add(event: Event, device: _Device, chunk_name: str | None, path: str) -> None:
    operation, program, run = (
        str(event.arguments.get(name, ""))
        for name in ("hlo_op", "hlo_module", "run_id")
    )
    named = f"{operation} {event.name}"
    if _PAIR.search(named):
        raise ValueError(
            f"{path}: the device sends to single others ({operation}), as a stage of a "
            "pipeline. It is no whole replica, and what it waits for them is no time "
            "of its own"
        )
    if chunk_name is not None:
        device.runs.setdefault(program, set()).add(run)
        if program in (chunk_name, f"jit_{chunk_name}"):
            device.chunks[run] = min(event.begin, device.chunks.get(run, math.inf))
    if _COLLECTIVE.search(named):
        device.collectives.append(_Collective(event.begin, event.end, program, run))
    else:
        device.work.add(event.begin, event.end)


def _recording(device: _Device, name: str, marks: list[tuple[float, int]]) -> Recording:
    seconds: dict[str, float] = {}
    for collective in device.collectives:
        seconds[collective.program] = (
            seconds.get(collective.program, 0.0) + collective.end - collective.begin
        )
    step_program = max(seconds, key=seconds.__getitem__)
    for collective in device.collectives:
        if collective.program != step_program:
            device.work.add(collective.begin, collective.end)
    collectives = sorted(
        collective
        for collective in device.collectives
        if collective.program == step_program
    )
    step = _steps(collectives, marks, name)
    spans = np.array([(collective.begin, collective.end) for collective in collectives])
    chunks = np.sort(np.array(list(device.chunks.values())))
    return Recording(
        rank=name,
        step=step,
        end=spans[:, 1],
        exposed=exposed(spans, device.work.union()),
        chunk_step=np.append(step, step[-1] + 1)[np.searchsorted(spans[:, 0], chunks)],
        begin=chunks,
        forward=np.full(len(chunks), np.nan),
    )


def _steps(
    collectives: list[_Collective], marks: list[tuple[float, int]], name: str
) -> np.ndarray:
    """The number of the step of each collective, `[C]`: of the runs of a program, in a
    row.

    A host that runs ahead marks steps too early, so one mark alone is taken, if there
    are any.
    """
    runs: dict[str, int] = {}
    for collective in collectives:
        runs.setdefault(collective.run, len(runs))
    if "" not in runs:
        first = 0
        if marks:
            first = _marked(marks, collectives[0].begin)
        return np.array([first + runs[collective.run] for collective in collectives])
    if not marks:
        raise ValueError(
            f"process {name}: neither runs of programs nor steps are marked: put the "
            "step into jax.profiler.StepTraceAnnotation('train', step_num=…)"
        )
    return np.array([_marked(marks, collective.begin) for collective in collectives])


def _marked(marks: list[tuple[float, int]], begin: float) -> int:
    """The number of the step that was marked last before a time."""
    return marks[max(bisect.bisect_right(marks, (begin, math.inf)) - 1, 0)][1]


def _xplane(path: str) -> Iterator[Event]:
    """The events of *.xplane.pb as those of a Chrome trace."""
    from jax.profiler import ProfileData

    try:
        planes = ProfileData.from_file(path).planes
    except RuntimeError as error:
        raise ValueError(f"{path} is no trace of jax.profiler: {error}") from None
    for number, plane in enumerate(planes):
        if not plane.name.startswith(("/host:CPU", "/device:")):
            continue
        yield Event("M", "process_name", "", 0.0, 0.0, number, {"name": plane.name})
        for line in plane.lines:
            for event in line.events:
                arguments = dict(event.stats)
                begin = 1e-9 * event.start_ns
                end = begin + 1e-9 * event.duration_ns
                yield Event("X", event.name, "", begin, end, number, arguments)
