r"""Global averaging cells: units through which all coordinates know of each other.

Of every LSTM layer, with its state (c, h) at each of the n coordinates of the whole
tree, the first k units are averaging ones. They work like any other, but what goes out
of them is averaged, at every step and before anything uses it::

    c_t(i), a_t(i) = cell(x_t(i), c_{t-1}(i), h_{t-1}(i))       at every coordinate i
    h_t(i)[j] = 1/n·Σ_l a_t(l)[j]    for j < k
    h_t(i)[j] = a_t(i)[j]            for j >= k

What goes out of an LSTM cell is its h, so h_t is what the layer above gets, or the
read-out, and what comes back to the layer itself at the next step, the state's h; c
stays each coordinate's own. A mean of squares is the gradient's norm, so that such a
network can express clipping by it, which one without cannot.

References:
  Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
  <https://arxiv.org/abs/1606.04474>`_, first version, 2016, appendix on information
  sharing between coordinates.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2l_jax.checks import check_state
from l2l_jax.fused import fused_cell
from l2l_jax.lstm import (
    LSTMState,
    LSTMWeights,
    column,
    dense,
    lstm_cell,
    lstm_layers,
)
from l2l_jax.optimizers.coordinatewise import (
    Rule,
    compute_dtype,
    map_all_leaves,
    map_leaves,
    stays_finite,
    step_leaf,
    where_good,
)
from l2l_jax.sharding import auto_within_all
from l2l_jax.types import PyTree


def check_averaged_units(
    units: Any, layers: tuple[LSTMWeights, ...], implementation: str
) -> None:
    """Refuses a number of averaged units that the layers have not.

    Args:
      units: None, or a whole number from 0 to the smallest layer's size.
      layers: weights of the LSTM layers; their sizes count.
      implementation: not "kernel" if there are such units.

    Raises:
      ValueError: they are not so.
    """
    if units is None:
        return
    smallest = min(layer.bias.shape[0] // 4 for layer in layers)
    if isinstance(units, jax.Array):
        raise ValueError(
            "averaged_units must be a whole number, got an array (one of the"
            " static_args of optax.inject_hyperparams?)"
        )
    whole = isinstance(units, int) and not isinstance(units, bool)
    if not (whole and 0 <= units <= smallest):
        raise ValueError(
            "averaged_units must be None or a whole number from 0 to the smallest"
            f" layer's size {smallest}, got {units!r}"
        )
    if units and implementation == "kernel":
        raise ValueError(
            "implementation must be 'auto', 'fused' or 'plain' with averaged_units,"
            " got 'kernel', which sees a block of coordinates at a time"
        )


def step_tree(
    rule: Rule,
    weights: PyTree,
    scalars: Callable[[jax.Array], tuple],
    updates: PyTree,
    moments: tuple[PyTree, ...],
    lstm: tuple[LSTMState, ...],
    averaged_units: int | None,
    implementation: str,
    skip_nonfinite: bool,
) -> tuple[PyTree, tuple[PyTree, ...], tuple[LSTMState, ...]]:
    """One step of a rule on a tree, with global averaging cells or without.

    With them a step takes all leaves layer by layer, whole; no leaf is flattened or
    joined with another, and of sharded ones only the k sums travel. The mean is that of
    the coordinates in the tree: those that `optax.masked` leaves out have no part in
    it, and neither have those that `skip_nonfinite` leaves alone at this step, whose h
    stays as it was. Without `skip_nonfinite` one NaN makes all coordinates NaN. Within
    `jax.shard_map` a device takes the mean of its own part.

    Args:
      rule: what is done.
      weights: φ, with `lstm` and `output`.
      scalars: `scalars(g)`, those of the rule for a leaf with the gradient g.
      updates: tree of gradients.
      moments: trees like `updates`.
      lstm: one `LSTMState` of two such trees a layer, leaves (H, *S); any floating
        dtype. The mean is one of the arithmetic's dtype, not of the state's.
      averaged_units: k; None or 0: `step_leaf` at every leaf.
      implementation: as of `step_leaf`; with k > 0 "plain" or, for "fused" and "auto",
        the fused cell of whole leaves.
      skip_nonfinite: as of `step_leaf`.

    Returns:
      The updates, and the new moments and LSTM states.

    Raises:
      ValueError: the state was made for other gradients, or by other weights.
    """
    if len(lstm) != len(weights.lstm):
        raise ValueError(
            f"the state must have {len(weights.lstm)} LSTM layers, as the weights have,"
            f" got {len(lstm)}"
        )
    for name, tree in zip("mv", moments, strict=False):
        check_state(updates, tree, name)
    for i, (layer, cells) in enumerate(zip(weights.lstm, lstm, strict=True)):
        check_state(updates, cells.h, f"lstm[{i}].h", (layer.bias.shape[0] // 4,))
    if not averaged_units:

        def one_leaf(g, moments, cells):
            return step_leaf(
                *(rule, weights, scalars(g), g, moments, cells),
                *(implementation, skip_nonfinite),
            )

        return map_leaves(one_leaf, updates, moments, lstm)

    cell = lstm_cell if implementation == "plain" else fused_cell
    step = functools.partial(_step_all, rule, averaged_units, cell, skip_nonfinite)

    def all_leaves(rows):
        gs = [g for g, _, _ in rows]
        shared = [scalars(g) for g in gs], weights
        states = [(moments, cells) for _, moments, cells in rows]
        found = zip(*auto_within_all(step)(shared, gs, states), strict=True)
        return [(update, moments, cells) for update, (moments, cells) in found]

    return map_all_leaves(all_leaves, updates, moments, lstm)


def averaging_cell(
    cell: Callable[..., LSTMState], units: int, goods: list[jax.Array | None]
) -> Callable[..., Any]:
    """The cell of a layer at all leaves at once, for `lstm_layers`.

    Args:
      cell: at one leaf, such as `lstm_cell`.
      units: k, whose h is averaged.
      goods: for each leaf of shape S which coordinates take part, bool S; None: all.

    Returns:
      `cell(weights, states, xs, precision)` of lists, one entry a leaf; the new state
      is an `LSTMState` of two lists.
    """

    def on_lists(layers, states, xs, precision):
        new = [cell(*z, precision) for z in zip(layers, states, xs, strict=True)]
        return _averaged(new, goods, units)

    return on_lists


class _Leaf(NamedTuple):
    """What a step works with at one leaf of shape S, in the dtype of its arithmetic.

    Attributes:
      weights: φ.
      scalars: of the rule.
      inputs: of the network, each of shape S.
      moments: the new ones.
      cells: the old ones.
      good: bool, S: which coordinates take part; None: all.
    """

    weights: PyTree
    scalars: tuple
    inputs: tuple[jax.Array, ...]
    moments: tuple[jax.Array, ...]
    cells: tuple[LSTMState, ...]
    good: jax.Array | None


def _step_all(rule, units, cell, skip_nonfinite, shared, gs, states):
    """The step on lists, one entry a leaf; `shared` is (their scalars, weights)."""
    leaves = [
        _begin(rule, skip_nonfinite, shared[1], *of_leaf)
        for of_leaf in zip(shared[0], gs, states, strict=True)
    ]

    hs, layers = lstm_layers(
        list(zip(*(leaf.weights.lstm for leaf in leaves), strict=True)),
        list(zip(*(leaf.cells for leaf in leaves), strict=True)),
        [rule.enter(leaf.weights, jnp.stack(leaf.inputs)) for leaf in leaves],
        rule.precision,
        averaging_cell(cell, units, [leaf.good for leaf in leaves]),
    )
    cells = [
        tuple(LSTMState(layer.c[i], layer.h[i]) for layer in layers)
        for i in range(len(leaves))
    ]
    ends = map(functools.partial(_end, rule), leaves, hs, cells, gs, states)
    updates, states = zip(*ends, strict=True)
    return list(updates), list(states)


def _begin(rule, skip_nonfinite, weights, scalars, g, state):
    """What comes before the LSTM."""
    dtype = compute_dtype(g)
    moments, cells = state
    scalars = tuple(jnp.asarray(x, dtype) for x in scalars)
    weights, cells = jax.tree.map(lambda x: x.astype(dtype), (weights, cells))
    good = stays_finite(rule.see, scalars, g, moments) if skip_nonfinite else None
    # In the place of a NaN, or the derivative of what is not taken would be NaN.
    seen = g if good is None else jnp.where(good, g, 0)
    inputs, moments = rule.see(scalars, seen.astype(dtype), moments)
    return _Leaf(weights, scalars, inputs, moments, cells, good)


def _end(rule, leaf, h, cells, g, state):
    """What comes after: the update and the new state, in their dtypes."""
    x_out = dense(leaf.weights.output, h, rule.precision)[0]
    update = rule.move(leaf.scalars, x_out, leaf.inputs).astype(g.dtype)
    cells = jax.tree.map(lambda new, old: new.astype(old.dtype), cells, state[1])
    new = update, (leaf.moments, cells)
    if leaf.good is None:
        return new
    return where_good(leaf.good, new, (jnp.zeros_like(g), state))


def _averaged(states, goods, units):
    """States of one layer at all leaves, as lists, the first units' h averaged."""
    dtype = jnp.result_type(*(state.h for state in states))
    total, count = jnp.zeros(units, dtype), jnp.zeros([], dtype)
    for (_, h), good in zip(states, goods, strict=True):
        a, coordinates = h[:units].astype(dtype), tuple(range(1, h.ndim))
        if good is None:
            count += h[0].size
        else:
            a = jnp.where(jnp.broadcast_to(good, a.shape), a, 0)
            count += jnp.sum(good, dtype=jnp.int32).astype(dtype)
        total += jnp.sum(a, coordinates)
    # No coordinate may be left: none uses the mean then, but its derivative would be
    # NaN.
    mean = total / jnp.maximum(count, 1)

    def with_mean(h):
        hidden = h.shape[0]
        spread = column(jnp.pad(mean, (0, hidden - units)).astype(h.dtype), h)
        first = column(jnp.arange(hidden) < units, h)
        return jnp.where(first, spread, h)

    cs: Any = [state.c for state in states]
    hs: Any = [with_mean(state.h) for state in states]
    return LSTMState(cs, hs)
