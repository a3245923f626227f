"""Share work in a NumPy loop, where process 0 adds the gradients of four processes.

The example does not use JAX. Set BCGC_HANDOUT_KEY to the same secret in four shells.
Run `python docs/examples/with_numpy.py RANK` in them, with RANK from 0 to 3. A plus
marks the lines that are added to a data-parallel loop.
"""

import os
import sys
from multiprocessing.connection import Client, Listener

import numpy as np

from bcgc_jax.balancing import dispatch  # +

WORKERS, SAMPLES = 4, 128  # SAMPLES per step
INPUTS = np.random.default_rng(0).standard_normal((1024, 8))
TARGETS = INPUTS @ np.arange(8.0)


def slope(weights, inputs, targets):
    """Return the gradient of a chunk's samples, divided by the number of all samples.

    The chunks' gradients then add up to the gradient of the mean.
    """
    return inputs.T @ (inputs @ weights - targets) / SAMPLES


def train(share, all_reduce, steps):
    weights = np.zeros(8)
    for step in range(steps):
        total = np.zeros_like(weights)  # +
        for chunk in share.step(step):  # +
            rows = step * SAMPLES + np.asarray(chunk.rows(SAMPLES, share.num_workers))
            rows = rows % len(INPUTS)
            gradient = slope(weights, INPUTS[rows], TARGETS[rows])
            total += gradient  # +
        weights = weights - 0.1 * all_reduce(total)
    return weights


def all_reduce_over(connections, rank):
    """Return an all-reduce in which process 0 adds, and sends the sum to the others."""

    def all_reduce(own):
        if rank > 0:
            connections[0].send_bytes(own.tobytes())
            return np.frombuffer(connections[0].recv_bytes())
        total = own + sum(np.frombuffer(other.recv_bytes()) for other in connections)
        for other in connections:
            other.send_bytes(total.tobytes())
        return total

    return all_reduce


def main(rank, steps=100, ports=(5701, 5702)):
    secret, meeting = os.environ["BCGC_HANDOUT_KEY"].encode(), ("127.0.0.1", ports[0])
    listener = Listener(meeting, authkey=secret) if rank == 0 else None
    if rank == 0:  # +
        coordinator = dispatch.serve(WORKERS, port=ports[1])  # +
    share = dispatch.join(("127.0.0.1", ports[1]), rank)  # +
    if listener is not None:
        connections = [listener.accept() for _ in range(WORKERS - 1)]
    else:
        connections = [Client(meeting, authkey=secret)]
    params = train(share, all_reduce_over(connections, rank), steps)
    share.close()  # +
    if rank == 0:  # +
        coordinator.close()  # +
    return params


if __name__ == "__main__":
    if "BCGC_HANDOUT_KEY" not in os.environ or len(sys.argv) < 2:
        sys.exit("set BCGC_HANDOUT_KEY to a secret, and pass the rank as argument")
    print(main(int(sys.argv[1])))
