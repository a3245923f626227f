"""Gradient descent on real processes of Ray, some slow, some lost (extra `cluster`)."""

from bcgc_jax.cluster.checkpoints import Checkpoints as Checkpoints
from bcgc_jax.cluster.decisions import Decision as Decision
from bcgc_jax.cluster.master import Cluster as Cluster
from bcgc_jax.cluster.master import ClusterGradient as ClusterGradient
from bcgc_jax.cluster.planning import ClosedLoop as ClosedLoop
from bcgc_jax.cluster.planning import InjectedDelay as InjectedDelay
from bcgc_jax.cluster.planning import Told as Told
from bcgc_jax.cluster.processes import Fault as Fault
from bcgc_jax.cluster.processes import WorkersLost as WorkersLost
from bcgc_jax.cluster.rounds import Work as Work
from bcgc_jax.cluster.traces import work_trace as work_trace
from bcgc_jax.cluster.training import ClusterTraining as ClusterTraining
from bcgc_jax.cluster.training import Run as Run
from bcgc_jax.cluster.training import Step as Step
from bcgc_jax.cluster.training import json_lines as json_lines
from bcgc_jax.cluster.training import train_on_cluster as train_on_cluster
