"""A step of work sharing, chunk by chunk, and the placement bound as a linear program."""

import heapq
from typing import Any

import numpy as np


def shared(holders, sizes, starts, times, round_trip=0.0, lengths=None):
    """When everyone has ended its last chunk: `holders[subset][chunk]`, times for a unit of size.

    In place of the sizes there may be lengths, `[worker, subset * chunk]`, which nobody knows.
    """
    workers = len(times)
    count = len(sizes)
    chunks = [(j, c) for j in range(workers) for c in range(count)]
    size_of = {(j, c): sizes[c] for j, c in chunks}
    every = [[*sizes] * workers] * workers if lengths is None else lengths
    length = [dict(zip(chunks, row, strict=True)) for row in every]
    nobody_has_begun = set(chunks)
    last_pace: list[Any] = [None] * workers
    running: list[Any] = [None] * workers
    events = [(starts[w], w, None) for w in range(workers)]
    heapq.heapify(events)
    now = end = 0.0

    def pace(b):
        known = [p for p in last_pace if p is not None]
        if not known:
            return 1.0
        expected = last_pace[b]
        if expected is None:
            expected = sum(known) / len(known)
        if running[b] is not None:
            begun, size = running[b]
            expected = max(expected, (now - begun) / size)
        return expected

    def left(b):
        return sum(size_of[j, c] for j, c in nobody_has_begun if b in holders[j][c])

    while events:
        now = events[0][0]
        free = []
        while events and events[0][0] == now:
            _, w, size = heapq.heappop(events)
            if size is not None:
                last_pace[w] = (now - running[w][0]) / size
                running[w] = None
            free.append(w)
        for w in sorted(free):
            mine = [(j, c) for j, c in nobody_has_begun if w in holders[j][c]]
            if not mine:
                continue
            largest = max(size_of[chunk] for chunk in mine)
            need = {b: left(b) * pace(b) for b in range(workers)}

            def order(chunk, w=w, need=need):
                j, c = chunk
                neediest = min((need[b] for b in holders[j][c] if b != w), default=np.inf)
                return -neediest, j != w, chunk

            may = [chunk for chunk in mine if size_of[chunk] == largest]
            chunk = min(may, key=order)
            nobody_has_begun.remove(chunk)
            running[w] = now, size_of[chunk]
            until = now + round_trip + length[w][chunk] * times[w]
            end = max(end, until)
            heapq.heappush(events, (until, w, size_of[chunk]))
    return end
