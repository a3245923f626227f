"""Processes that a process has started, and those that these have."""

import subprocess
from typing import Any

from tests.waiting import comes_true


def descendants(pid):
    """All processes that this one has started, and those that these have."""
    command = ["ps", "-eo", "pid=,ppid="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines: Any = (map(int, line.split()) for line in listed.splitlines())
    parents: dict[int, int] = dict(lines)
    family = {pid}
    children = {pid}
    while children:
        children = {p for p, parent in parents.items() if parent in children}
        family |= children
    return sorted(family - {pid})


def living(pids):
    """Those of these processes that run, and their command lines."""
    command = ["ps", "-o", "pid=,stat=,args=", "-p", ",".join(map(str, pids))]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in listed]
    return {int(pid): args for pid, state, args in rows if state[0] != "Z"}


def gone(pids, but="nothing", seconds=20):
    """Whether these processes end, but for those whose command line says so."""

    def ended():
        return all(but in args for args in living(pids).values())

    return comes_true(ended, seconds)
