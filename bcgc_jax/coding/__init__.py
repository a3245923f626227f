"""Gradient codes, coded gradients, and training with them on a simulated clock."""

from bcgc_jax.coding.codes import (
    GradientCode,
    allocate,
    conditioning,
    decode,
    decoding_weights,
    encode,
    gradient_code,
)
from bcgc_jax.coding.gradients import (
    CodedGradient,
    CodingPlan,
    coded_value_and_grad,
    coding_plan,
    schedule_plan,
    shard_subsets,
    split_batch,
    unit_sizes,
)
from bcgc_jax.coding.stages import backward_order
from bcgc_jax.coding.training import Training, TrainingScheme, train, training_scheme

__all__ = [
    "CodedGradient",
    "CodingPlan",
    "GradientCode",
    "Training",
    "TrainingScheme",
    "allocate",
    "backward_order",
    "coded_value_and_grad",
    "coding_plan",
    "conditioning",
    "decode",
    "decoding_weights",
    "encode",
    "gradient_code",
    "schedule_plan",
    "shard_subsets",
    "split_batch",
    "train",
    "training_scheme",
    "unit_sizes",
]
