"""Weights set by hand, with which the learned optimizers are ones that all know.

In both networks a signal passes one LSTM unit whose gates stand open and which forgets
all. It is made so small that every tanh on its way is the identity to the last bit,
and powers of two make it small and large again without rounding.
"""

import jax.numpy as jnp

from l2l_jax import (
    DMParams,
    RNNpropParams,
    dm_transform,
    rnnprop_transform,
)
from l2l_jax.lstm import Dense, LSTMWeights

_SMALL = 2.0**-30
_OPEN = 100.0  # σ(100) is 1 and σ(-100) next to nothing


def _unit(inputs, seen, size):
    """One unit whose hidden value is `size` times its input number `seen`."""
    kernel = jnp.zeros((inputs + 1, 4)).at[seen, 1].set(size)
    return (LSTMWeights(kernel, jnp.array([_OPEN, 0.0, -_OPEN, _OPEN])),)


def _read(size):
    return Dense(jnp.full((1, 1), size), jnp.zeros(1))


SQUASH = 2.0**-12
PHI = {
    # x_out = SQUASH·m̃, so Δθ = -α·tanh(SQUASH·m̃), which is Adam's for α = lr/SQUASH.
    "rnnprop": RNNpropParams(
        Dense(jnp.array([[0.0], [_SMALL]]), jnp.zeros(1)),
        _unit(1, 0, 1.0),
        _read(SQUASH / _SMALL),
    ),
    # Δθ = -α·clip(e^p·g, -1, 1)
    "dm": DMParams(_unit(2, 1, _SMALL), _read(-1 / _SMALL)),
}


def adam(rule, learning_rate, b1=0.95, b2=0.95, **options):
    """RNNprop as Adam; DMoptimizer as descent by the sign, clipped near the minimum."""
    if rule == "dm":
        return dm_transform(PHI["dm"], step_size=learning_rate, p=1.0, **options)
    return rnnprop_transform(
        PHI["rnnprop"], step_size=learning_rate / SQUASH, b1=b1, b2=b2, **options
    )


def sgd(rule, learning_rate):
    """Gradient descent, to the last bit, for gradients of a size of up to 1."""
    if rule == "dm":
        return dm_transform(PHI["dm"], step_size=learning_rate, p=_SMALL)
    eps = 2.0**40  # g/(|g| + ε) is g/ε
    return rnnprop_transform(
        PHI["rnnprop"], step_size=learning_rate * eps / SQUASH, b1=0, b2=0, eps=eps
    )
