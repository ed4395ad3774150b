"""Learned optimizers as outer optimizers: one trains another, or two each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2l_jax.types import PyTree


class WeightsInState(NamedTuple):
    """State of `weights_in_state`.

    Attributes:
      phi: φ, the weights by which the next update is made.
      inner: the optimizer's own state.
    """

    phi: PyTree
    inner: Any


def weights_in_state(
    transform: Callable[[PyTree], optax.GradientTransformation], phi: PyTree
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer whose weights lie in its state, where they can be replaced.

    ::

        Δθ_t, h_{t+1} = transform(φ)(g_t, h_t)        with (φ, h_t) the state

    A compiled program takes φ for an argument so, not for a constant: other weights do
    not compile again. That is what an outer optimizer needs which learns itself. Two
    that take turns, A the outer optimizer of B and B that of A, are two runs of one
    trainer, which before each iteration get each other's weights::

        φ_A ← φ_A + outer(∂L/∂φ_A; φ_B)        φ_B ← φ_B + outer(∂L/∂φ_B; φ_A)

    Args:
      transform: `transform(φ)`, as of a `LearnedOptimizer`.
      phi: the first φ, arrays. Others must have their shapes and dtypes.

    Returns:
      A transformation with a `WeightsInState`; `update` leaves φ as it is.

    Example:
      >>> import functools, jax
      >>> from l2l_jax import learned_optimizer, meta_trainer, quadratic_task
      >>> from l2l_jax import rnnprop_transform
      >>> small = {"hidden_sizes": (3,), "input_size": 3}
      >>> optimizer = learned_optimizer("rnnprop", small)
      >>> first = optimizer.init(jax.random.key(0))
      >>> outer = weights_in_state(
      ...     functools.partial(rnnprop_transform, step_size=1e-3), first
      ... )
      >>> trainer = meta_trainer(quadratic_task(), optimizer, outer)
      >>> def taught(state, teacher):
      ...     outer_state = state.outer_state._replace(phi=teacher.phi)
      ...     return state._replace(outer_state=outer_state)
      >>> a, b = (trainer.init(jax.random.key(seed)) for seed in (1, 2))
      >>> for key in jax.random.split(jax.random.key(3), 2):
      ...     a, _ = trainer.iterate(taught(a, b), key, num_segments=1)
      ...     b, _ = trainer.iterate(taught(b, a), key, num_segments=1)
      >>> int(a.step), int(b.step)
      (2, 2)

    References:
      Learned optimizers that train each other, by populations and from random weights:
      Metz et al., `Training Learned Optimizers with Randomly Initialized Learned
      Optimizers <https://arxiv.org/abs/2101.07367>`_, 2021. Here there are two, both
      learn by meta-gradients, and nobody is selected.
    """

    def init_fn(params):
        return WeightsInState(
            # Copies: a state that is donated takes nothing with it.
            jax.tree.map(jnp.array, phi),
            transform(phi).init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        tx = optax.with_extra_args_support(transform(state.phi))
        updates, inner = tx.update(updates, state.inner, params, **extra_args)
        return updates, WeightsInState(state.phi, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
