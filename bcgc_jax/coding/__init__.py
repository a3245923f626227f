"""Gradient codes, coded gradients, and coded training on a simulated clock."""

from bcgc_jax.coding.codes import GradientCode as GradientCode
from bcgc_jax.coding.codes import allocate as allocate
from bcgc_jax.coding.codes import conditioning as conditioning
from bcgc_jax.coding.codes import decode as decode
from bcgc_jax.coding.codes import decoding_weights as decoding_weights
from bcgc_jax.coding.codes import encode as encode
from bcgc_jax.coding.codes import gradient_code as gradient_code
from bcgc_jax.coding.gradients import CodedGradient as CodedGradient
from bcgc_jax.coding.gradients import CodingPlan as CodingPlan
from bcgc_jax.coding.gradients import coded_value_and_grad as coded_value_and_grad
from bcgc_jax.coding.gradients import coding_plan as coding_plan
from bcgc_jax.coding.gradients import schedule_plan as schedule_plan
from bcgc_jax.coding.gradients import shard_subsets as shard_subsets
from bcgc_jax.coding.gradients import split_batch as split_batch
from bcgc_jax.coding.gradients import unit_sizes as unit_sizes
from bcgc_jax.coding.losses import Stateful as Stateful
from bcgc_jax.coding.losses import loss_key as loss_key
from bcgc_jax.coding.losses import stateful as stateful
from bcgc_jax.coding.stages import backward_order as backward_order
from bcgc_jax.coding.training import Training as Training
from bcgc_jax.coding.training import TrainingScheme as TrainingScheme
from bcgc_jax.coding.training import train as train
from bcgc_jax.coding.training import training_scheme as training_scheme
