"""Logs of chunks, slow by one cause."""

import numpy as np

from bcgc_jax.diagnosis.causes import Parts
from bcgc_jax.traces.microbatches import Microbatches

STEPS = 24
WORKERS = 8
CHUNKS = 8


def log_of(cause: str, seed: int, forward: bool = True) -> tuple[Parts, Microbatches]:
    """Return one cause of slowness, and its log of chunks of nearly one length."""
    rng = np.random.default_rng(7_000 + seed)
    shape = STEPS, WORKERS, CHUNKS
    steady, random, pauses = np.zeros(shape[:2]), np.zeros(shape[:2]), np.zeros(shape)
    data = np.exp(rng.normal(0, 0.05, shape))
    if cause == "data":
        data = data * np.exp(rng.normal(0, 0.4, shape))
    elif cause == "steady":
        steady[4 * rng.integers(3) :, rng.integers(WORKERS)] = np.log(1.5)
    elif cause == "random":
        random = rng.normal(0, 0.25, shape[:2])
    elif cause == "pauses":
        pauses = np.where(rng.random(shape) < 0.02, rng.uniform(3, 8, shape), 0)
    true = Parts(steady, random, data, pauses)
    # A pause is in one of the two passes.
    passes = (true.seconds - pauses) * 0.32 * np.exp(rng.normal(0, 0.03, shape))
    passes = passes + np.where(rng.random(shape) < 0.3, pauses, 0)
    return true, Microbatches(true.seconds, forward=passes if forward else None)
