"""Gradient descent on real processes: Ray, partial stragglers, dead workers (the extra `cluster`)."""

from bcgc_jax.cluster.calibration import Calibration, calibrate, work_trace
from bcgc_jax.cluster.checkpoints import Checkpoints
from bcgc_jax.cluster.master import Cluster, ClusterGradient, Work
from bcgc_jax.cluster.planning import ClosedLoop, InjectedDelay, Told
from bcgc_jax.cluster.processes import Fault, WorkersLost
from bcgc_jax.cluster.training import ClusterTraining, Run, Step, json_lines, train_on_cluster

__all__ = [
    "Calibration",
    "Checkpoints",
    "ClosedLoop",
    "Cluster",
    "ClusterGradient",
    "ClusterTraining",
    "Fault",
    "InjectedDelay",
    "Run",
    "Step",
    "Told",
    "Work",
    "WorkersLost",
    "calibrate",
    "json_lines",
    "train_on_cluster",
    "work_trace",
]
