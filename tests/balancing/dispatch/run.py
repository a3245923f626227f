"""Workers that ask a coordinator in JSON, with a clock of their own."""

import json

import numpy as np

from bcgc_jax.balancing.dispatch.coordinator import Coordinator
from bcgc_jax.balancing.dispatch.loops import Loops
from bcgc_jax.balancing.dispatch.messages import (
    Answer,
    Begin,
    Done,
    Join,
    Question,
    answer_of,
    data_of,
)
from bcgc_jax.balancing.dispatch.transport import Memory
from bcgc_jax.balancing.placement import Placement

ROUND_TRIP = 0.125


class Run:
    """Workers that ask a coordinator in JSON, with a clock of their own."""

    def __init__(self, place: Placement, record=None, round_trip=ROUND_TRIP):
        self.round_trip = round_trip
        workers = range(place.num_workers)
        self.now = 0.0
        clock = lambda: self.now  # noqa: E731
        self.coordinator = Coordinator(Memory(), Loops(place, 1e9, record), clock)
        self.answers: dict[int, list[Answer]] = {rank: [] for rank in workers}
        self.replies = [self.answers[rank].append for rank in workers]
        self.handed_out: list[tuple[int, tuple[int, int]]] = []
        for rank in workers:
            self.ask(rank, Join(rank))
            self.answers[rank].clear()

    def ask(self, rank: int, question: Question) -> None:
        said = self.replies[rank]
        self.coordinator.asked(json.loads(json.dumps(data_of(question))), said)

    def answer(self, rank: int) -> Answer | None:
        said = self.answers[rank]
        return answer_of(json.loads(json.dumps(said.pop()))) if said else None

    def step(self, number, starts, seconds, pauses, loads=None) -> float:
        """When the last chunk ends; `seconds` of worker, subset, chunk, `[N, N, C]`."""
        workers = self.answers.keys()
        for rank in workers:
            self.answers[rank].clear()
        began = self.now
        until = began + np.array(starts, float)
        lengths = [None] * len(workers) if loads is None else loads.tolist()
        question: list[Question] = [
            Begin(number, worker_loads) for worker_loads in lengths
        ]
        done = [0] * len(workers)
        end = began
        while np.isfinite(until).any():
            self.now = until.min()
            for rank in np.flatnonzero(until == self.now).tolist():
                until[rank] = np.inf
                self.ask(rank, question[rank])
            self.coordinator.look()
            for rank in workers:
                answer = self.answer(rank)
                if answer is None or answer.ticket is None or answer.chunk is None:
                    continue
                subset, chunk = answer.chunk
                self.handed_out.append((rank, (subset, chunk)))
                chunk_seconds = seconds[rank, subset, chunk]
                pause = (
                    pauses[rank, done[rank]] if done[rank] < len(pauses[rank]) else 0.0
                )
                until[rank] = self.now + self.round_trip + chunk_seconds + pause
                end = max(end, until[rank])
                done[rank] += 1
                question[rank] = Done(answer.ticket, chunk_seconds)
        return end - began
