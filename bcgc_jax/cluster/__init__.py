"""Coded gradient descent on real processes: Ray, partial stragglers, dead workers (the extra `cluster`)."""

from bcgc_jax.cluster.master import Cluster, ClusterGradient, Fault, Work, WorkersLost

__all__ = ["Cluster", "ClusterGradient", "Fault", "Work", "WorkersLost"]
