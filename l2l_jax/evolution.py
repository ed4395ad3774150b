"""The meta-gradient by evolution strategies: no derivative, whole rollouts.

L is smoothed over weights near φ, and the smoothed one has a gradient that needs no
more than losses::

    ∇ E[L(φ + σε)] = E[ε·(L(φ + σε) - L(φ - σε))] / (2σ),   ε ~ N(0, 1)

Nothing is held constant and nothing explodes, however long the segment; the estimate is
noisy instead, so many episodes are averaged.
"""

from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax.meta import Episode, meta_loss
from l2l_jax.types import PyTree, Task


def evolution_gradient(
    phi: PyTree,
    transform: Callable[[PyTree], optax.GradientTransformation],
    task: Task,
    episode: Episode,
    weights: np.ndarray,
    sigma: float,
    log_loss: bool = False,
) -> tuple[tuple[jax.Array, Episode], PyTree]:
    """An estimate of the meta-gradient of one segment from one pair of rollouts.

    Both have the episode's minibatches. ε is drawn by the episode's key and step.

    Args:
      phi: φ.
      transform: `transform(φ)`.
      task: the optimizee.
      episode: where the segment starts.
      weights: w (T,); of (K, T) the mean of the K losses, or of their logarithms.
      sigma: σ > 0, how far from φ.
      log_loss: of log L instead of L. Differences are then cut at 1, and a rollout
        whose loss is not finite counts as the worse one.

    Returns:
      ((the mean of both losses, the episode as φ + σε left it), the estimate).

    References:
      Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
      Learning <https://arxiv.org/abs/1703.03864>`_, 2017, section 2.
    """
    # Other streams of the key draw minibatches, by other numbers.
    key = jax.random.fold_in(jax.random.fold_in(episode.key, 0xE5), episode.step)
    # One draw: XLA compiles a generator for each.
    vector, unravel = jax.flatten_util.ravel_pytree(phi)
    epsilon = unravel(jax.random.normal(key, vector.shape, vector.dtype))

    def rollout(sign):
        perturbed = jax.tree.map(lambda w, e: w + sign * sigma * e, phi, epsilon)
        return meta_loss(perturbed, transform, task, episode, weights)

    losses, after = jax.vmap(rollout)(jnp.array([1.0, -1.0]))
    losses = jnp.log(losses) if log_loss else losses
    losses = jnp.mean(losses.reshape(2, -1), axis=1)
    if log_loss:
        ranked = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
        # Neither is finite: inf - inf is no number, and says nothing.
        difference = jnp.nan_to_num(jnp.clip(ranked[0] - ranked[1], -1, 1))
    else:
        difference = losses[0] - losses[1]
    slope = jax.tree.map(lambda e: difference / (2 * sigma) * e, epsilon)
    return (jnp.mean(losses), jax.tree.map(lambda x: x[0], after)), slope
