"""Random games with shared work in compiled programs, in processes of 4 to 8 devices.

A process that says nothing and computes nothing for a minute is killed, and its game is
reported as one that hangs.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import pytest

from bcgc_jax.cli.options import quick_flags
from tests.balancing.compiled import games

# Devices of a process, and whether it computes in 64 bits.
PROCESSES = [(4, False), (6, False), (8, False), (4, True)]
SILENCE = 60.0
# Seconds of a processor that a process takes meanwhile if it compiles.
BUSY = 2.0


class Ended(NamedTuple):
    """A game: the line that it began with, and the line that it ended with.

    Attributes:
      begun: Its setting.
      result: What was found; None if it hung or crashed.
      last: Where it was last.
    """

    begun: dict[str, Any]
    result: dict[str, Any] | None
    last: str


class Process:
    """A process that plays games."""

    def __init__(self, devices: int, is_wide: bool, seeds: list[int]) -> None:
        # Each operation rounds to its type, whatever XLA fuses it with. Otherwise, two
        # programs of the same loss may differ by a unit of half precision.
        flags = (
            f"--xla_force_host_platform_device_count={devices} "
            "--xla_allow_excess_precision=false"
        )
        environment = os.environ | {
            "XLA_FLAGS": quick_flags(flags),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": str(int(is_wide)),
        }
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "tests.balancing.compiled.games",
            *map(str, seeds),
        ]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def line(self) -> dict[str, Any] | None:
        """The next line; None if there is none, or none comes."""
        while True:
            before = self._computed()
            try:
                line = self._lines.get(timeout=SILENCE)
            except queue.Empty:
                if self._computed() - before > BUSY:
                    continue
                return None
            if line is None or line.startswith("{"):
                return None if line is None else json.loads(line)

    def _computed(self) -> float:
        """Seconds of a processor that the process has taken."""
        command = ["ps", "-o", "cputimes=", "-p", str(self._process.pid)]
        printed = subprocess.run(command, capture_output=True, text=True).stdout
        return float(printed.strip() or 0.0)

    def end(self) -> int:
        """End the process; one that hangs writes the stacks of its threads."""
        self._process.send_signal(signal.SIGABRT)
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        return self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


def play(devices: int, is_wide: bool, seeds: list[int]) -> list[Ended]:
    """Play games; a process that hangs or crashes is followed by another one."""
    ended: list[Ended] = []
    while len(ended) < len(seeds):
        process = Process(devices, is_wide, seeds[len(ended) :])
        begun, last = None, "the start of the process"
        while (line := process.line()) is not None:
            if "begins" in line:
                begun, last = line, "its start"
            elif "ends" in line:
                ended.append(Ended(begun or {}, line, last))
                begun = None
            else:
                last = line["at"]
        process.end()
        if len(ended) < len(seeds):
            ended.append(Ended(begun or {"begins": seeds[len(ended)]}, None, last))
    return ended


def report(played: list[Ended]) -> str:
    """The counts of each kind, the worst errors, and the seconds after resets."""
    results = [game.result for game in played if game.result is not None]
    worst: dict[str, float] = {}
    resets: dict[str, list[float]] = {}
    for result in results:
        for kind, error in result.get("worst", {}).items():
            worst[kind] = max(error, worst.get(kind, 0.0))
        for kind, seconds in result.get("resets", []):
            resets.setdefault(kind, []).append(seconds)
    lines = [f"{len(played)} games, {len(played) - len(results)} did not end"]
    faulty = sum(bool(game.begun.get("setting", {}).get("faults")) for game in played)
    lines.append(f"{faulty} games with faults")
    for key, what in (("compared", "ok, and compared"), ("failures", "not ok")):
        count = sum(result.get(key, 0) for result in results)
        lines.append(f"{count} steps that were {what}")
    for kind, error in sorted(worst.items()):
        lines.append(f"largest error, {kind}: {error:.2g}")
    for kind, seconds in sorted(resets.items()):
        lines.append(f"{len(seconds)} steps after {kind}: {max(seconds):.2f} s at most")
    return "\n".join(lines)


def wrong_of(played: list[Ended]) -> list[str]:
    """What is wrong with games, by seed."""
    wrong = []
    for game in played:
        name = f"seed {game.begun['begins']}"
        if game.result is None:
            wrong.append(f"{name} did not end: {game.last}")
            continue
        wrong += [f"{name}: {text}" for text in game.result["wrong"]]
        wrong += [
            f"{name}: {seconds:.1f} s after {kind}"
            for kind, seconds in game.result.get("resets", [])
            if seconds > 5.0
        ]
    return wrong


def test_a_game_on_one_device_is_right():
    """A coordinator that ends in a step, and a loader that raises."""
    model = games.Model("plain", "labels", False, False, True, None, "mean")
    faults = [
        games.Fault("coordinator", 0, "turn", 1, 0.0, False, 1, False),
        games.Fault("loader", 0, "turn", 1, 0.0, False, 2, False),
    ]
    setting = games.Setting.draw(0, 1, False)._replace(
        max_subsets=1,
        chunks=4,
        adapt=False,
        param_dtype="float32",
        data_dtype="float32",
        steps=1,
        model=model,
        faults=tuple(faults),
    )
    result = games.play(setting)
    assert result["wrong"] == []
    assert (result["failures"], len(result["resets"])) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "is_wide", "seeds"),
    [(4, False, [8, 17, 34, 35]), (8, False, [0, 12]), (4, True, [5, 7])],
)
def test_games_that_have_found_defects_are_right(devices, is_wide, seeds):
    played = play(devices, is_wide, seeds)
    assert wrong_of(played) == []


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("devices", "is_wide"), PROCESSES)
def test_random_games_are_right(devices, is_wide):
    played = play(devices, is_wide, [*range(75)])
    print(report(played))
    assert wrong_of(played) == []


def main() -> None:
    """`python -m tests.balancing.compiled.test_games FIRST LAST`: a report on all."""
    first, last = map(int, sys.argv[1:])
    everything = []
    for devices, is_wide in PROCESSES:
        played = play(devices, is_wide, [*range(first, last)])
        everything += played
        print(f"{devices} devices, {'64' if is_wide else '32'} bits")
        print(report(played))
        print("\n".join(wrong_of(played)), flush=True)
    print("All:", report(everything), sep="\n")


if __name__ == "__main__":
    main()
