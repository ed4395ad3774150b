"""Estimators of the meta-gradient: back-propagation, and four that need losses only.

An episode is cut into segments with meta-losses L_1, …, L_K. φ at work in segment j has
a part in the losses of all segments k >= j, and the meta-gradient of the whole episode,
at one φ throughout, is Σ_k ∂L_k/∂φ through all of them. After each segment an estimator
gives one term of that sum:

======================  ==================  ============  =============
estimator               segments before k   noise         derivatives
======================  ==================  ============  =============
`bptt`                  are left out        none          of optimizee and optimizer
`evolution`             are left out        constant      none
`persistent_evolution`  count               grows with k  none
`single_perturbation`   count               constant      none
`score_function`        count               constant      none
======================  ==================  ============  =============

Those without derivatives look at weights a distance σ around φ, at a smoothed L, so
that nothing explodes however long the segment; their noise is averaged away by many
episodes (`meta_batch`) and, side by side in one `jax.vmap`, many particles of each.
"""

import jax
import jax.numpy as jnp

from l2l_jax.blockwise import blockwise_meta_gradient, on_this_device
from l2l_jax.evolution import (
    evolution,
    persistent_evolution,
    score_function,
    single_perturbation,
)
from l2l_jax.meta import meta_gradient, start_episode
from l2l_jax.types import Estimator

__all__ = [
    "Estimator",
    "bptt",
    "evolution",
    "persistent_evolution",
    "score_function",
    "single_perturbation",
]


def bptt(second_order: bool = False) -> Estimator:
    r"""Truncated back-propagation through time: no noise, and blind beyond a segment.

    ::

        slope_k = ∂L_k(φ; θ, h at the start of segment k) / ∂φ

    Args:
      second_order: whether g_t depends on θ_t, and so on φ. If not, it is a constant,
        as in both papers, and the second derivatives of the optimizee are left out.

    Returns:
      An `Estimator`; its state is the `Episode`. To first order, and of a
      coordinatewise optimizer, the meta-gradient is found block by block of coordinates
      and can be divided among devices, see `l2l_jax.blockwise`.

    Example:
      >>> import jax, optax
      >>> from l2l_jax import LearnedOptimizer, estimators, meta_trainer, quadratic_task
      >>> rate = LearnedOptimizer(lambda key: -5.0, lambda phi: optax.sgd(jnp.exp(phi)))
      >>> trainer = meta_trainer(
      ...     quadratic_task(),
      ...     rate,
      ...     optax.adam(0.1),
      ...     estimator=estimators.bptt(second_order=True),
      ... )
      >>> state = trainer.init(jax.random.key(0))
      >>> state, _ = trainer.iterate(state, jax.random.key(1), num_segments=2)
      >>> bool(state.phi != -5)
      True

    References:
      Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
      <https://arxiv.org/abs/1606.04474>`_, 2016, section 2.
    """

    def start(phi, transform, task, key):
        return start_episode(task, transform(phi), key)

    def gradient(phi, transform, task, episode, weights, log_loss=False):
        found = meta_gradient(phi, transform, task, episode, weights, second_order)
        return _of_logarithm(found) if log_loss else found

    return Estimator(start, gradient, False, None if second_order else _blockwise)


def _blockwise(block: int, sharded: bool) -> Estimator:
    """`bptt()` for a coordinatewise rule on a vector."""

    def start(phi, transform, task, key):
        tx = transform(phi)
        return start_episode(task, on_this_device(tx) if sharded else tx, key)

    def gradient(phi, transform, task, episode, weights, log_loss=False):
        found = blockwise_meta_gradient(
            phi, transform, task, episode, weights, block, sharded
        )
        return _of_logarithm(found) if log_loss else found

    return Estimator(start, gradient, False)


def _of_logarithm(found):
    """Of what `gradient` gives for L, what it gives for log L."""
    (loss, after), slope = found
    return (jnp.log(loss), after), jax.tree.map(lambda x: x / loss, slope)
