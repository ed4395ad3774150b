"""Learned optimizers, DMoptimizer, RNNprop, Longrun, as ordinary optax transformations.

Use one: `load_pretrained`, `rnnprop_transform`, `dm_transform`, `longrun_transform`,
`ntm_bfgs_transform`, `load`; `lazy_updates` around any of them. Learn one:
`meta_trainer` on a `Task`, with `random_scaling` and `combine`; several at once with
`partitioned`, one by another with `weights_in_state`. Compare: `evaluator`. Tasks on
data are in `l2l_jax.tasks`, estimators of the meta-gradient in `l2l_jax.estimators`,
hand-written optimizers in `l2l_jax.baselines`, resumable runs in `l2l_jax.runs`,
pictures in `l2l_jax.plotting`, of what a rule does from `l2l_jax.probe`.
"""

import importlib
from typing import Any

from l2l_jax.convex import combine, convex_task
from l2l_jax.evaluate import Evaluation, Evaluator, evaluator
from l2l_jax.groups import partitioned
from l2l_jax.lazy import LazyState, lazy_updates
from l2l_jax.meta import (
    Episode,
    MetaState,
    inner_step,
    meta_gradient,
    meta_loss,
    meta_step,
    segment_weights,
    start_episode,
    unroll,
)
from l2l_jax.mutual import WeightsInState, weights_in_state
from l2l_jax.optimizers.dm import DMParams, DMState, dm_init, dm_transform
from l2l_jax.optimizers.learned import (
    Learned,
    learned_optimizer,
    load,
    load_pretrained,
    save,
)
from l2l_jax.optimizers.longrun import (
    LongrunParams,
    LongrunState,
    longrun_init,
    longrun_transform,
)
from l2l_jax.optimizers.ntm_bfgs import (
    NTMBFGSParams,
    NTMBFGSState,
    ntm_bfgs_init,
    ntm_bfgs_transform,
)
from l2l_jax.optimizers.rnnprop import (
    RNNpropParams,
    RNNpropState,
    rnnprop_init,
    rnnprop_transform,
)
from l2l_jax.random_scaling import random_scaling
from l2l_jax.sharding import state_sharding
from l2l_jax.tasks.quadratic import quadratic_task
from l2l_jax.trainer import MetaTrainer, meta_trainer
from l2l_jax.types import LearnedOptimizer, Task, no_batches

__version__ = "0.1.0"

__all__ = [
    "DMParams",
    "DMState",
    "Episode",
    "Evaluation",
    "Evaluator",
    "LazyState",
    "Learned",
    "LearnedOptimizer",
    "LongrunParams",
    "LongrunState",
    "MetaState",
    "MetaTrainer",
    "NTMBFGSParams",
    "NTMBFGSState",
    "RNNpropParams",
    "RNNpropState",
    "Task",
    "WeightsInState",
    "combine",
    "convex_task",
    "dm_init",
    "dm_transform",
    "evaluator",
    "inner_step",
    "lazy_updates",
    "learned_optimizer",
    "load",
    "load_pretrained",
    "longrun_init",
    "longrun_transform",
    "meta_gradient",
    "meta_loss",
    "meta_step",
    "meta_trainer",
    "no_batches",
    "ntm_bfgs_init",
    "ntm_bfgs_transform",
    "partitioned",
    "quadratic_task",
    "random_scaling",
    "rnnprop_init",
    "rnnprop_transform",
    "save",
    "segment_weights",
    "start_episode",
    "state_sharding",
    "unroll",
    "weights_in_state",
]

# They are imported when they are asked for.
_MODULES = ("baselines", "plotting", "probe", "runs")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
