"""Run the program of compiled.py in two processes, each a worker of two devices.

Set BCGC_HANDOUT_KEY to the same secret in two shells. Run
`python docs/examples/compiled_processes.py RANK` in them, with RANK 0 and 1.
"""

import contextlib
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import compiled
import ending
import jax
from jax.sharding import AxisType

from bcgc_jax.balancing.compiled import SharedWork
from bcgc_jax.balancing.dispatch import join, serve

WORKERS = 2


def main(rank, steps=20, ports=(5701, 5702)):
    jax.distributed.initialize(f"127.0.0.1:{ports[0]}", WORKERS, rank)
    mesh = jax.make_mesh(
        (WORKERS, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )
    with serve(WORKERS, port=ports[1]) if rank == 0 else contextlib.nullcontext():
        share = join(("127.0.0.1", ports[1]), rank)
        return compiled.train(mesh, SharedWork(mesh, shares={rank: share}), steps)


if __name__ == "__main__":
    ending.run(lambda rank: f"loss {main(rank)[1]}")
