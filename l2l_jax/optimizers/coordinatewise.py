"""What both LSTM optimizers share: state a leaf, and the network over its coordinates.

State of a parameter of shape S and hidden size H has shape (H, *S), a leaf a parameter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from l2l_jax.checks import check_choice, check_floating
from l2l_jax.fused import fused_cell
from l2l_jax.lstm import LSTMState, LSTMWeights, lstm_cell
from l2l_jax.trees import map_unzip, over_coordinates
from l2l_jax.types import PyTree

STATE_DTYPES = (None, "bfloat16", "float32", "float64")
PRECISIONS = ("default", "high", "highest")
IMPLEMENTATIONS = ("auto", "fused", "plain")


def check_network(
    params: Any,
    kind: type,
    state_dtype: str | None,
    precision: str,
    implementation: str,
) -> None:
    """Refuses weights of another optimizer or whose shapes do not fit together.

    Args:
      params: the weights φ, to be a `kind` with fields `lstm` and `output` and
        perhaps `input`, a dense layer in front. Two numbers a coordinate come in.
      kind: the NamedTuple class of the weights.
      state_dtype: one of `STATE_DTYPES`.
      precision: one of `PRECISIONS`.
      implementation: one of `IMPLEMENTATIONS`.

    Raises:
      TypeError: `params` is not a `kind`.
      ValueError: a shape, or one of the other arguments, is not as it must be.
    """
    if not isinstance(params, kind):
        raise TypeError(f"params must be {kind.__name__}, got {type(params).__name__}")
    check_choice("state_dtype", state_dtype, STATE_DTYPES)
    check_choice("precision", precision, PRECISIONS)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    inputs, expected = 2, []
    for name, layer in _layers(params):
        gates = 4 if isinstance(layer, LSTMWeights) else 1
        hidden = layer.bias.size // gates
        rows = inputs + hidden if gates == 4 else inputs
        expected += [
            (f"{name}.kernel", layer.kernel.shape, (rows, gates * hidden)),
            (f"{name}.bias", layer.bias.shape, (gates * hidden,)),
        ]
        inputs = hidden
    expected.append(("output.bias", params.output.bias.shape, (1,)))
    for name, shape, wanted in expected:
        if shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {shape}")


def _layers(params: Any) -> list[tuple[str, Any]]:
    first = [("input", params.input)] if hasattr(params, "input") else []
    lstm = [(f"lstm[{i}]", layer) for i, layer in enumerate(params.lstm)]
    return [*first, *lstm, ("output", params.output)]


def compute_dtype(leaf: jax.Array) -> jnp.dtype:
    """The dtype of moments and of the cell's arithmetic: at least float32."""
    return jnp.promote_types(jnp.float32, jnp.result_type(leaf))


def init_moments(params: PyTree) -> PyTree:
    """Zeros of the parameters' shapes, in `compute_dtype`."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, compute_dtype(p)), params)


def init_cells(
    layers: tuple[LSTMWeights, ...], params: PyTree, state_dtype: str | None
) -> tuple[LSTMState, ...]:
    """LSTM states of every coordinate, all 0.

    Args:
      layers: weights of the LSTM layers; their sizes count, not their values.
      params: pytree of floating arrays, the parameters to optimize.
      state_dtype: dtype of the state; None stands for each leaf's `compute_dtype`.

    Returns:
      For every layer an `LSTMState` of two trees like `params`, whose leaves have
      shape (H, *leaf.shape).

    Raises:
      TypeError: a leaf is not real floating; the message has its path.
    """
    check_floating(params)

    def zeros(hidden: int) -> PyTree:
        return jax.tree.map(
            lambda p: jnp.zeros(
                (hidden, *jnp.shape(p)), state_dtype or compute_dtype(p)
            ),
            params,
        )

    return tuple(
        LSTMState(zeros(layer.bias.shape[0] // 4), zeros(layer.bias.shape[0] // 4))
        for layer in layers
    )


def step_cells(
    network: Callable[..., tuple[jax.Array, tuple[LSTMState, ...]]],
    weights: PyTree,
    inputs: tuple[jax.Array, ...],
    cells: tuple[LSTMState, ...],
    implementation: str = "plain",
) -> tuple[jax.Array, tuple[LSTMState, ...]]:
    """One step of the network at every coordinate of one leaf of shape S.

    Args:
      network: `network(weights, states, x, cell) -> (output, states)` of one
        coordinate, or of arrays of them; `cell` is `lstm_cell` or the like.
      weights: of the network; cast to the dtype of the inputs.
      inputs: arrays of shape S: what the network sees.
      cells: states with leaves (H, *S), of any floating dtype.
      implementation: "plain": `lstm_cell` mapped over the coordinates, "fused" or
        "auto": `fused_cell` of all.

    Returns:
      The output, of shape S and the inputs' dtype, and the new cells in their own.
    """
    shape, dtype = inputs[0].shape, inputs[0].dtype
    weights, states = jax.tree.map(lambda x: x.astype(dtype), (weights, cells))
    if implementation == "plain":
        # Where a mapped array meets an unmapped one element by element, vmap moves the
        # mapped axis to the front, a transposition of everything. So biases are mapped
        # too; the broadcast is fused away.
        axes = jax.tree.map(lambda w: -1 if w.ndim == 1 else None, weights)
        weights = jax.tree.map(
            lambda w: _spread(w, shape) if w.ndim == 1 else w, weights
        )
        run = over_coordinates(
            functools.partial(network, cell=lstm_cell), len(shape), (axes, -1, -1)
        )
    else:
        run = functools.partial(network, cell=fused_cell)
    output, states = run(weights, states, jnp.stack(inputs))
    return output, jax.tree.map(lambda new, old: new.astype(old.dtype), states, cells)


def _spread(bias: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.broadcast_in_dim(bias, (*bias.shape, *shape), (0,))


def map_leaves(
    f: Callable[..., tuple],
    updates: PyTree,
    moments: tuple[PyTree, ...],
    lstm: tuple[LSTMState, ...],
) -> tuple[PyTree, tuple[PyTree, ...], tuple[LSTMState, ...]]:
    """Applies `f(g, moments, cells) -> (update, moments, cells)` leaf by leaf.

    Args:
      f: works on one leaf: its gradient, a tuple of its moments, and a tuple of
        `LSTMState` of arrays, one a layer.
      updates: tree of gradients.
      moments: trees like `updates`.
      lstm: one `LSTMState` of two such trees a layer.

    Returns:
      The tree of updates, and the new moments and LSTM states as they came.
    """
    split = len(moments)

    def pairs(values: tuple) -> tuple[LSTMState, ...]:
        return tuple(map(LSTMState, values[::2], values[1::2]))

    def one_leaf(g, *values):
        update, new_moments, cells = f(g, values[:split], pairs(values[split:]))
        return update, *new_moments, *(value for cell in cells for value in cell)

    states = (tree for layer in lstm for tree in layer)
    updates, *values = map_unzip(one_leaf, updates, *moments, *states)
    return updates, tuple(values[:split]), pairs(values[split:])
