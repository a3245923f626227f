"""Loops of workers in threads, whose sums are whole if each sample is in one sum."""

import threading
import time

import numpy as np

from bcgc_jax.balancing.dispatch import StepFailed, join

WORKERS = 3
SAMPLES = 96
DATA = np.random.default_rng(0).integers(0, 2**40, SAMPLES)


class Loops:
    """Each rank is a thread. Sums of integers meet at a barrier, as by all-reduce."""

    def __init__(self, coordinator, seconds=lambda rank: 0.0):
        self.coordinator = coordinator
        self.seconds = seconds
        self.begun: set[int] = set()  # ranks that have had a chunk
        self.sums = {}
        self.failed = []
        self.errors = []

    def run(self, ranks, step):
        threads = [
            threading.Thread(target=self.take_part, args=(rank, step)) for rank in ranks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
            assert not thread.is_alive()
        assert not self.errors
        return sum(self.sums.pop(rank, 0) for rank in ranks)

    def take_part(self, rank, step):
        try:
            transport = self.coordinator.transport
            with join(self.coordinator.address, rank, transport=transport) as share:
                self.sums[rank] = self.one_step(share, rank, step)
        except StepFailed as error:
            self.failed.append((rank, str(error)))
        except Exception as error:
            self.errors.append(error)

    def one_step(self, share, rank, step):
        total = 0
        for chunk in share.step(step):
            self.begun.add(rank)
            time.sleep(self.seconds(rank))
            total += int(DATA[list(chunk.rows(SAMPLES, WORKERS))].sum()) * (step + 1)
        return total


def whole(step):
    return int(DATA.sum()) * (step + 1)
