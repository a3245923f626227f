"""Read traces of `jax.profiler`: *.trace.json.gz, or *.xplane.pb, which needs JAX."""

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
    """Collectives, computation and programs of one device, in seconds."""

    def __init__(self) -> None:
        self.collectives: list[_Collective] = []
        self.work = Spans()
        # Begins of the runs of the program that computes a chunk.
        self.chunks: dict[str, float] = {}
        # Runs of each program, if a chunk's program is searched for.
        self.runs: dict[str, set[str]] = {}


def read(path: str, process: str, chunk_name: str | None = None) -> list[Recording]:
    """Read the trace of one process: a recording of each device that ran collectives.

    The step is the program that has the longest time in collectives. A chunk is a run
    of the jitted function `chunk_name`.

    Raises:
      ValueError: If the file does not show how long workers wait, or if it has no
        function `chunk_name`.
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
            f"{path} has no collective, such as psum or all-reduce. Profile steps of "
            "data-parallel training."
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
        # No program runs more than once per step.
        raise ValueError(f"{unknown} {IN_ONE_JIT}")
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
            f"{path}: the device sends to single devices ({operation}), for example as "
            "a stage of a pipeline. Its times blocked in collectives therefore do not "
            "show its compute time. Use traces of pure data parallelism."
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
    """Return the step number of each collective, `[C]`.

    Successive runs of the program have successive numbers. Only the first one is taken
    from the marks of steps, because a host that runs ahead marks steps too early.
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
            f"the trace of process {name} does not mark runs of programs or steps. Put "
            "the step into `jax.profiler.StepTraceAnnotation('train', step_num=…)`."
        )
    return np.array([_marked(marks, collective.begin) for collective in collectives])


def _marked(marks: list[tuple[float, int]], begin: float) -> int:
    """Return the number of the last step that was marked before a time."""
    return marks[max(bisect.bisect_right(marks, (begin, math.inf)) - 1, 0)][1]


def _xplane(path: str) -> Iterator[Event]:
    """Yield the events of *.xplane.pb in the form of a Chrome trace."""
    from jax.profiler import ProfileData

    try:
        planes = ProfileData.from_file(path).planes
    except RuntimeError as error:
        raise ValueError(f"{path} is not a trace of jax.profiler: {error}") from None
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
