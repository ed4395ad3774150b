"""The network of one coordinate: dense layers and LSTM cells, sizes from shapes.

Everything here is about a single coordinate; whoever has many maps over them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dense(NamedTuple):
    """Weights of a fully-connected layer: kernel (inputs, outputs), bias (outputs,)."""

    kernel: jax.Array
    bias: jax.Array


class LSTMWeights(NamedTuple):
    """Weights of one LSTM layer with H hidden units.

    Attributes:
      kernel: (inputs + H, 4·H). Rows: the inputs, then the hidden values of the step
        before; columns: the gates i, j, f, o of H each.
      bias: (4·H,).
    """

    kernel: jax.Array
    bias: jax.Array


class LSTMState(NamedTuple):
    """Cell value c and hidden value h of one layer, each (H,)."""

    c: jax.Array
    h: jax.Array


def dense_init(
    key: jax.Array, inputs: int, outputs: int, std: float = 0.1, dtype=jnp.float32
) -> Dense:
    """Kernel from a normal distribution of deviation `std` cut at 2·std; bias 0."""
    kernel = std * jax.random.truncated_normal(key, -2, 2, (inputs, outputs), dtype)
    return Dense(kernel, jnp.zeros(outputs, dtype))


def lstm_init(
    key: jax.Array, inputs: int, hidden: int, dtype=jnp.float32
) -> LSTMWeights:
    """Kernel from U(-r, r), r = sqrt(3 / rows), rows = inputs + hidden; bias 0."""
    rows = inputs + hidden
    r = math.sqrt(3 / rows)
    kernel = jax.random.uniform(key, (rows, 4 * hidden), dtype, -r, r)
    return LSTMWeights(kernel, jnp.zeros(4 * hidden, dtype))


def stack_init(
    key: jax.Array, inputs: int, hidden_sizes: tuple[int, ...], dtype=jnp.float32
) -> tuple[LSTMWeights, ...]:
    """Weights of LSTM layers on top of each other, the lowest first."""
    sizes = zip((inputs, *hidden_sizes[:-1]), hidden_sizes, strict=True)
    keys = jax.random.split(key, len(hidden_sizes))
    return tuple(
        lstm_init(k, i, h, dtype) for k, (i, h) in zip(keys, sizes, strict=True)
    )


def dense(weights: Dense, x: jax.Array, precision: str = "highest") -> jax.Array:
    """Kernel^T·x + bias; x is (inputs,), the result (outputs,)."""
    return jnp.matmul(weights.kernel.T, x, precision=precision) + weights.bias


def lstm_cell(
    weights: LSTMWeights, state: LSTMState, x: jax.Array, precision: str = "highest"
) -> LSTMState:
    """One step of an LSTM layer.

    The recursion::

        (i, j, f, o) = kernel^T·[x, h] + bias
        c' = σ(f + 1)·c + σ(i)·tanh(j)
        h' = σ(o)·tanh(c')

    The forget bias 1 is added here, it is not part of the weights.

    Args:
      weights: of the layer, for inputs of x's size.
      state: of the coordinate.
      x: (inputs,).
      precision: of the matrix product, as in `jax.numpy.matmul`.

    Returns:
      The new state, in the dtype of the arguments.

    References:
      `BasicLSTMCell` of TensorFlow 0.12, which both papers used.
    """
    # Two products instead of one of the concatenation: nothing is copied.
    inputs = x.shape[0]
    gates = (
        jnp.matmul(weights.kernel[:inputs].T, x, precision=precision)
        + jnp.matmul(weights.kernel[inputs:].T, state.h, precision=precision)
        + weights.bias
    )
    i, j, f, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f + 1) * state.c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return LSTMState(c, jax.nn.sigmoid(o) * jnp.tanh(c))


def lstm_network(
    layers: tuple[LSTMWeights, ...],
    output: Dense,
    states: tuple[LSTMState, ...],
    x: jax.Array,
    precision: str = "highest",
) -> tuple[jax.Array, tuple[LSTMState, ...]]:
    """LSTM layers on top of each other and a linear read-out of the last.

    Args:
      layers: weights, the lowest layer first.
      output: read-out, (H_last, 1).
      states: one a layer.
      x: (inputs,).
      precision: of the matrix products.

    Returns:
      The output, a scalar, and the new states.
    """
    new_states = []
    for weights, state in zip(layers, states, strict=True):
        new_states.append(lstm_cell(weights, state, x, precision))
        x = new_states[-1].h
    return dense(output, x, precision)[0], tuple(new_states)
