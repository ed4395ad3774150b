"""Learned optimizers, DMoptimizer and RNNprop, as ordinary optax transformations.

Use one: `rnnprop_transform`, `dm_transform`, `load`. Learn one: `meta_trainer` on a
`Task`, with `random_scaling` and `combine`. Compare: `evaluate`, `tune`.
"""

from l2l_jax.convex import combine, convex_task
from l2l_jax.evaluate import Evaluation, Evaluator, evaluator
from l2l_jax.meta import (
    Episode,
    MetaState,
    MetaTrainer,
    inner_step,
    meta_gradient,
    meta_loss,
    meta_step,
    meta_trainer,
    segment_weights,
    start_episode,
    unroll,
)
from l2l_jax.optimizers.dm import DMParams, DMState, dm_init, dm_transform
from l2l_jax.optimizers.learned import Learned, learned_optimizer, load, save
from l2l_jax.optimizers.rnnprop import (
    RNNpropParams,
    RNNpropState,
    rnnprop_init,
    rnnprop_transform,
)
from l2l_jax.random_scaling import random_scaling
from l2l_jax.tasks.quadratic import quadratic_task
from l2l_jax.types import LearnedOptimizer, Task

__version__ = "0.1.0"
