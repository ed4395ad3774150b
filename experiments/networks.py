"""Small classifiers of the structures of today, none like those of the papers.

Each sees an image as its rows: as one vector, or as a sequence of rows.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2l_jax.tasks import MLP

CLASSES = 10


def _flat(images: jax.Array) -> jax.Array:
    return images.reshape(images.shape[0], -1)


def _rows(images: jax.Array) -> jax.Array:
    """(B, H, W, C) as a sequence of H rows (B, H, W·C)."""
    return images.reshape(*images.shape[:2], -1)


class Residual(nn.Module):
    """x + dense(relu(dense(x))) several times over."""

    width: int = 32
    blocks: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, 10) of images."""
        x = nn.Dense(self.width)(_flat(x))
        for _ in range(self.blocks):
            x = x + nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(x)))
        return nn.Dense(CLASSES)(nn.relu(x))


class Highway(nn.Module):
    """T·h(x) + (1 - T)·x with gates T that begin nearly shut (arXiv:1505.00387)."""

    width: int = 32
    layers: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, 10) of images."""
        x = nn.relu(nn.Dense(self.width)(_flat(x)))
        for _ in range(self.layers):
            shut = nn.initializers.constant(-2.0)
            gate = nn.sigmoid(nn.Dense(self.width, bias_init=shut)(x))
            x = gate * nn.relu(nn.Dense(self.width)(x)) + (1 - gate) * x
        return nn.Dense(CLASSES)(x)


class Recurrent(nn.Module):
    """Gated recurrent units that read an image row by row."""

    units: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, 10) of images."""
        outputs = nn.RNN(nn.GRUCell(self.units))(_rows(x))
        return nn.Dense(CLASSES)(outputs[:, -1])


class Attention(nn.Module):
    """A transformer whose tokens are the rows of an image, normalised before."""

    width: int = 32
    blocks: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, 10) of images."""
        x = nn.Dense(self.width)(_rows(x))
        places = nn.initializers.normal(0.02)
        x = x + self.param("places", places, (1, *x.shape[1:]))
        for _ in range(self.blocks):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(CLASSES)(jnp.mean(nn.LayerNorm()(x), axis=1))


class Normalised(nn.Module):
    """Dense layers, each normalised over its units before its ReLU."""

    width: int = 32
    layers: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, 10) of images."""
        x = _flat(x)
        for _ in range(self.layers):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        return nn.Dense(CLASSES)(x)


STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "highway": Highway,
    "recurrent": Recurrent,
    "attention": Attention,
    "normalised": Normalised,
}

# Wider, with the initializers that users have.
WIDE: dict[str, Callable[[], nn.Module]] = {
    "wide_mlp": lambda: MLP(width=256, depth=2, activation="relu"),
    "wide_residual": lambda: Residual(width=256),
    "wide_attention": lambda: Attention(width=128),
}
