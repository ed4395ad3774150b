"""Multilayer perceptrons."""

import flax.linen as nn
import jax

from l2l_jax.checks import check_choice

ACTIVATIONS = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "tanh": jax.numpy.tanh,
}


class MLP(nn.Module):
    """A multilayer perceptron from images (or vectors) to logits.

    With the defaults and 28x28 images it is the base MLP of both papers, 784-20-10:
    15,910 parameters.

    Attributes:
      depth: number of hidden layers, at least 0.
      width: units of each.
      activation: a name of `ACTIVATIONS`.
      num_classes: number of logits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, key = jnp.zeros((1, 28, 28, 1)), jax.random.key(0)
      >>> params = jax.eval_shape(MLP().init, key, x)["params"]
      >>> sum(x.size for x in jax.tree.leaves(params))
      15910

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, sections 5, 5.2 and 5.3.
    """

    depth: int = 1
    width: int = 20
    activation: str = "sigmoid"
    num_classes: int = 10

    def __post_init__(self):
        """Refuses an unknown activation when the module is made."""
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        if self.depth < 0:
            raise ValueError(f"depth must be at least 0, got {self.depth}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, num_classes) of x (B, ...)."""
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.depth):
            x = ACTIVATIONS[self.activation](nn.Dense(self.width)(x))
        return nn.Dense(self.num_classes)(x)
