"""Longrun: averaged iterates as the nominal rule, a small LSTM as what is learned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import check_number, check_sizes
from l2l_jax.lstm import (
    Dense,
    LSTMState,
    LSTMWeights,
    lstm_network,
    stack_init,
)
from l2l_jax.optimizers.coordinatewise import (
    Rule,
    check_network,
    compute_dtype,
    init_cells,
    init_moments,
    map_leaves,
    relative_scalars,
    see_relative,
    step_leaf,
)
from l2l_jax.trees import map_unzip
from l2l_jax.types import PyTree

# Ages that the network tells apart: it sees tanh(t / age) of each.
AGES = (10.0, 100.0, 1000.0)
# Of the logarithm of what is learned to multiply a step by.
BOUND = 3.0


class LongrunParams(NamedTuple):
    """Weights φ of the learned part of Longrun.

    Attributes:
      age: (3, 4·H_1), what the step number adds to the first layer's bias.
      lstm: one `LSTMWeights` a layer, the lowest (with 2 inputs) first.
      output: dense layer H_last -> 1.
    """

    age: jax.Array
    lstm: tuple[LSTMWeights, ...]
    output: Dense


def longrun_init(
    key: jax.Array,
    hidden_sizes: tuple[int, ...] = (5,),
    dtype: Any = jnp.float32,
) -> LongrunParams:
    """Initial weights φ of Longrun, with which it is its nominal rule.

    LSTM kernels from U(-r, r) with r = sqrt(3 / rows), all else 0.

    Args:
      key: randomness.
      hidden_sizes: hidden units of each LSTM layer, the lowest first.
      dtype: floating dtype of φ.

    Returns:
      φ; 226 numbers with the default size.

    Raises:
      ValueError: a size is not a positive int.

    Example:
      >>> import jax
      >>> phi = longrun_init(jax.random.key(0))
      >>> phi.lstm[0].kernel.shape, sum(x.size for x in jax.tree.leaves(phi))
      ((7, 20), 226)
    """
    sizes = check_sizes("hidden_sizes", hidden_sizes)
    return LongrunParams(
        age=jnp.zeros((len(AGES), 4 * sizes[0]), dtype),
        lstm=stack_init(key, 2, sizes, dtype),
        output=Dense(jnp.zeros((sizes[-1], 1), dtype), jnp.zeros(1, dtype)),
    )


def longrun_sizes(params: LongrunParams) -> dict[str, Any]:
    """The arguments of `longrun_init` that give weights of the same shapes."""
    return {"hidden_sizes": [layer.bias.shape[0] // 4 for layer in params.lstm]}


class LongrunState(NamedTuple):
    """State of `longrun_transform`.

    Attributes:
      count: int32 scalar, steps done.
      offset: δ, how far the fast iterate is from the parameters, a tree like them, at
        least float32.
      m: first moments, likewise.
      v: second moments, likewise.
      lstm: for each layer an `LSTMState` of two such trees with leaves (H, *S).
    """

    count: jax.Array  # type: ignore[assignment]  # not tuple.count
    offset: PyTree
    m: PyTree
    v: PyTree
    lstm: tuple[LSTMState, ...]


def longrun_rule(precision: str = "highest") -> Rule:
    """The step of the fast iterate; scalars as of RNNprop, with α_t for α."""

    def network(weights, states, x, cell):
        return lstm_network(weights.lstm, weights.output, states, x, precision, cell)

    return Rule(see_relative, network, _move, precision)


def _move(scalars, x_out, inputs):
    return -scalars[0] * jnp.exp(jnp.clip(x_out, -BOUND, BOUND)) * inputs[0]


def longrun_transform(
    params: LongrunParams,
    *,
    step_size: float = 0.03,
    decay_steps: float = 1000.0,
    decay_power: float = 0.25,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    averaging: float = 0.9,
    averaging_power: float = 2.0,
    learned_scale: float = 1.0,
    fade_steps: float = 1e4,
    state_dtype: str | None = None,
    precision: str = "highest",
    implementation: str = "auto",
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""The Longrun optimizer as an optax transformation.

    Two iterates: a fast one, z, takes steps that hardly anneal, and x averages it,
    later steps counting more. Gradients are taken at the parameters, θ = (1 - B)·z +
    B·x, which so follow the average: its noise falls as 1/t, whatever the horizon. The
    steps are those of RMSprop, each longer or shorter as a small LSTM has learned. At
    every coordinate, with t = 1, 2, …, the moments as in `rnnprop_transform`, and
    δ = z - θ and the LSTM's state 0 before the first step::

        g̃_t = g_t / (v̂_t^(1/2) + ε)           m̃_t = m̂_t / (v̂_t^(1/2) + ε)
        τ_t = (tanh(t/10), tanh(t/100), tanh(t/1000))
        x_out, h_t = LSTM([g̃_t, m̃_t], h_{t-1}), A^T·τ_t added to the bias of its gates
        α_t = α·(1 + t / T_α)^(-p)            λ_t = λ / (1 + t / T_λ)
        s_t = -α_t·exp(clip(λ_t·x_out, -3, 3))·g̃_t
        c_t = (r + 1) / (t + r)
        Δθ_t = c_t·δ_{t-1} + (1 - B·(1 - c_t))·s_t
        δ_t = (1 - c_t)·(δ_{t-1} + B·s_t)

    The last two lines are z_t = z_{t-1} + s_t, x_t = (1 - c_t)·x_{t-1} + c_t·z_t and
    θ = (1 - B)·z + B·x, with x and z eliminated. For φ of `longrun_init`, or λ = 0, the
    factor is 1: that is the nominal rule, Schedule-Free RMSprop.

    Args:
      params: the learned weights φ, as `longrun_init` or `load` give them. Their shapes
        give the sizes.
      step_size: α, at least 0.
      decay_steps: T_α > 0.
      decay_power: p, at least 0.
      b1: β1 in [0, 1), decay of the first moment.
      b2: β2 in [0, 1), decay of the second moment.
      eps: ε, at least 0, in the unit of the gradient.
      averaging: B in [0, 1]; 0: no averaging, θ is z.
      averaging_power: r, at least 0: the average weights z_t by about t^r.
      learned_scale: λ; 0 is the nominal rule.
      fade_steps: T_λ > 0: beyond that many steps the nominal rule takes over.
      state_dtype: as in `rnnprop_transform`; δ, m and v are at least float32.
      precision: as in `rnnprop_transform`.
      implementation: as in `rnnprop_transform`.
      skip_nonfinite: as in `rnnprop_transform`; a coordinate that is left alone still
        moves with its average.

    Returns:
      An `optax.GradientTransformationExtraArgs` for any pytree of floating arrays.
      Updates have the gradients' dtypes and are to be ADDED, the sign is in them.
      `update` needs no `params`.

    Raises:
      TypeError: `params` is not a `LongrunParams`; at init or update, a leaf is not
        floating; the message has its path.
      ValueError: a shape or a hyper-parameter is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = longrun_transform(longrun_init(jax.random.key(0)))
      >>> theta = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
      >>> updates, state = tx.update(theta, tx.init(theta))
      >>> jax.tree.map(jnp.shape, optax.apply_updates(theta, updates))
      {'b': (2,), 'w': (3, 2)}

    References:
      The nominal rule: Defazio et al., `The Road Less Scheduled
      <https://arxiv.org/abs/2405.15682>`_, 2024. The inputs: `rnnprop_transform`.
    """
    check_number("step_size", step_size, 0)
    check_number("decay_steps", decay_steps, 0, low_open=True)
    check_number("decay_power", decay_power, 0)
    check_number("b1", b1, 0, 1, high_open=True)
    check_number("b2", b2, 0, 1, high_open=True)
    check_number("eps", eps, 0)
    check_number("averaging", averaging, 0, 1)
    check_number("averaging_power", averaging_power, 0)
    check_number("learned_scale", learned_scale)
    check_number("fade_steps", fade_steps, 0, low_open=True)
    phi = params
    how = implementation, skip_nonfinite
    check_network(phi, LongrunParams, state_dtype, precision, *how)
    if phi.age.shape != (len(AGES), *phi.lstm[0].bias.shape):
        raise ValueError(
            f"age must have shape {(len(AGES), *phi.lstm[0].bias.shape)}, got"
            f" {phi.age.shape}"
        )
    rule = longrun_rule(precision)

    def init_fn(params):
        # First, because it refuses leaves of other kinds.
        lstm = init_cells(phi.lstm, params, state_dtype)
        return LongrunState(
            count=jnp.zeros([], jnp.int32),
            offset=init_moments(params),
            m=init_moments(params),
            v=init_moments(params),
            lstm=lstm,
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        count = optax.safe_increment(state.count)

        def step_fast(g, moments, cells):
            t = count.astype(compute_dtype(g))
            alpha = step_size * (1 + t / decay_steps) ** -decay_power
            scalars = relative_scalars(g, alpha, b1, b2, eps, count)
            weights = _at_age(phi, t, learned_scale / (1 + t / fade_steps))
            return step_leaf(rule, weights, scalars, g, moments, cells, *how)

        def follow(step, offset):
            t, s = count.astype(offset.dtype), step.astype(offset.dtype)
            c = (averaging_power + 1) / (t + averaging_power)
            update = c * offset + (1 - averaging * (1 - c)) * s
            return update.astype(step.dtype), (1 - c) * (offset + averaging * s)

        steps, (m, v), lstm = map_leaves(
            step_fast, updates, (state.m, state.v), state.lstm
        )
        updates, offset = map_unzip(follow, steps, state.offset)
        return updates, LongrunState(count, offset, m, v, lstm)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _at_age(phi: LongrunParams, t: jax.Array, scale: jax.Array) -> LongrunParams:
    """The weights of step t: the age in the first bias, the scale in the read-out."""
    ages = jnp.tanh(t / jnp.asarray(AGES, t.dtype))
    first = phi.lstm[0]
    bias = first.bias + jnp.matmul(ages, phi.age, precision="highest")
    output = jax.tree.map(lambda w: scale * w, phi.output)
    return phi._replace(lstm=(first._replace(bias=bias), *phi.lstm[1:]), output=output)
