"""The network of one coordinate: dense layers and LSTM cells, sizes from shapes.

The shapes in the docstrings are those of a single coordinate. Any axes of coordinates
may follow them, in all arrays but the weights: `(H, *S)` for (H,).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


def contract(kernel: jax.Array, x: jax.Array, precision: str) -> jax.Array:
    """Kernel^T·x over the first axis of both; axes of coordinates stay behind."""
    dimensions = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(kernel, x, dimensions, precision=precision)


def column(bias: jax.Array, x: jax.Array) -> jax.Array:
    """The bias as a column beside the coordinates of x."""
    return bias.reshape(bias.shape + (1,) * (x.ndim - 1))


def dense(weights: Dense, x: jax.Array, precision: str = "highest") -> jax.Array:
    """Kernel^T·x + bias; x is (inputs,), the result (outputs,)."""
    return contract(weights.kernel, x, precision) + column(weights.bias, x)


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
    seen = jnp.concatenate([x, state.h])
    gates = contract(weights.kernel, seen, precision) + column(weights.bias, x)
    i, j, f, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f + 1) * state.c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return LSTMState(c, jax.nn.sigmoid(o) * jnp.tanh(c))


def lstm_layers(
    layers: Sequence[Any],
    states: Sequence[Any],
    x: Any,
    precision: str = "highest",
    cell: Callable[..., Any] = lstm_cell,
) -> tuple[Any, tuple[Any, ...]]:
    """LSTM layers on top of each other.

    Args:
      layers: weights, the lowest layer first.
      states: one a layer.
      x: (inputs,).
      precision: of the matrix products.
      cell: `lstm_cell`, or what computes the same; the one place that looks into
        `layers`, `states` and `x`, so they may be of any kind that it takes.

    Returns:
      The last layer's h, and the new states.
    """
    new_states = []
    for weights, state in zip(layers, states, strict=True):
        new_states.append(cell(weights, state, x, precision))
        x = new_states[-1].h
    return x, tuple(new_states)


def lstm_network(
    layers: tuple[LSTMWeights, ...],
    output: Dense,
    states: tuple[LSTMState, ...],
    x: jax.Array,
    precision: str = "highest",
    cell: Callable[..., LSTMState] = lstm_cell,
) -> tuple[jax.Array, tuple[LSTMState, ...]]:
    """LSTM layers on top of each other and a linear read-out of the last.

    Args:
      layers: weights, the lowest layer first.
      output: read-out, (H_last, 1).
      states: one a layer.
      x: (inputs,).
      precision: of the matrix products.
      cell: `lstm_cell`, or what computes the same.

    Returns:
      The output, a scalar, and the new states.
    """
    x, new_states = lstm_layers(layers, states, x, precision, cell)
    return dense(output, x, precision)[0], new_states
