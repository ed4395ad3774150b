"""RNNprop: an LSTM that sees a gradient relative to its own history."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import (
    check_floating,
    check_number,
    check_size,
    check_sizes,
    check_type,
)
from l2l_jax.compiler import compiled_once
from l2l_jax.fused import elu
from l2l_jax.lstm import (
    Dense,
    LSTMState,
    LSTMWeights,
    dense,
    dense_init,
    stack_init,
)
from l2l_jax.optimizers.averaging import check_averaged_units, step_tree
from l2l_jax.optimizers.coordinatewise import (
    Rule,
    check_network,
    check_platform,
    init_cells,
    init_moments,
    relative_scalars,
    see_relative,
)
from l2l_jax.types import PyTree


class RNNpropParams(NamedTuple):
    """Weights φ of RNNprop.

    Attributes:
      input: dense layer 2 -> input_size.
      lstm: one `LSTMWeights` a layer, the lowest first.
      output: dense layer H_last -> 1.
    """

    input: Dense
    lstm: tuple[LSTMWeights, ...]
    output: Dense


def rnnprop_init(
    key: jax.Array,
    hidden_sizes: tuple[int, ...] = (20, 20),
    input_size: int = 20,
    dtype: Any = jnp.float32,
) -> RNNpropParams:
    """Random initial weights φ of RNNprop.

    Dense kernels from a truncated normal distribution of deviation 0.1, LSTM kernels
    from U(-r, r) with r = sqrt(3 / rows), all biases 0, as in the authors' program.

    Args:
      key: randomness.
      hidden_sizes: hidden units of each LSTM layer, the lowest first.
      input_size: outputs of the dense layer in front of the LSTM.
      dtype: floating dtype of φ.

    Returns:
      φ; 6,641 numbers with the default sizes.

    Raises:
      ValueError: a size is not a positive int.

    Example:
      >>> import jax
      >>> phi = rnnprop_init(jax.random.key(0))
      >>> phi.lstm[0].kernel.shape, sum(x.size for x in jax.tree.leaves(phi))
      ((40, 80), 6641)
    """
    sizes = check_sizes("hidden_sizes", hidden_sizes)
    check_size("input_size", input_size)
    input_key, lstm_key, output_key = jax.random.split(key, 3)
    return RNNpropParams(
        input=dense_init(input_key, 2, input_size, dtype=dtype),
        lstm=stack_init(lstm_key, input_size, sizes, dtype),
        output=dense_init(output_key, sizes[-1], 1, dtype=dtype),
    )


def rnnprop_sizes(params: RNNpropParams) -> dict[str, Any]:
    """The arguments of `rnnprop_init` that give weights of the same shapes."""
    return {
        "hidden_sizes": [layer.bias.shape[0] // 4 for layer in params.lstm],
        "input_size": params.input.bias.shape[0],
    }


class RNNpropState(NamedTuple):
    """State of `rnnprop_transform`.

    Attributes:
      count: int32 scalar, steps done.
      m: first moments, a tree like the parameters, at least float32.
      v: second moments, likewise.
      lstm: for each layer an `LSTMState` of two such trees with leaves `(H, *S)`.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    m: PyTree
    v: PyTree
    lstm: tuple[LSTMState, ...]


def rnnprop_rule(precision: str = "highest") -> Rule:
    """The rule of `rnnprop_transform`; scalars: α, β1, β2, ε, 1 - β1^t, 1 - β2^t."""

    def enter(weights, x):
        return elu(dense(weights.input, x, precision))

    return Rule(see_relative, enter, _move, precision)


def _move(scalars, x_out, inputs):
    del inputs
    # The authors' program subtracts what optax adds, hence the minus.
    return -scalars[0] * jnp.tanh(x_out)


def rnnprop_transform(
    params: RNNpropParams,
    *,
    step_size: float = 0.1,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    state_dtype: str | None = None,
    precision: str = "highest",
    implementation: str = "auto",
    skip_nonfinite: bool = False,
    averaged_units: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The RNNprop optimizer as an optax transformation.

    At every coordinate, with the step number t = 1, 2, … and m, v and the LSTM's state
    0 before the first step::

        m_t = β1·m_{t-1} + (1 - β1)·g_t        m̂_t = m_t / (1 - β1^t)
        v_t = β2·v_{t-1} + (1 - β2)·g_t²       v̂_t = v_t / (1 - β2^t)
        g̃_t = g_t / (v̂_t^(1/2) + ε)           m̃_t = m̂_t / (v̂_t^(1/2) + ε)
        z_t = ELU(W^T·[g̃_t, m̃_t] + b)
        x_out, h_t = LSTM(z_t, h_{t-1})
        Δθ_t = -α·tanh(x_out)

    All coordinates share φ = `params`; each has its own state: 2 moments and, with the
    paper's two layers of 20 units, 80 values of the LSTM: 328 bytes a float32
    parameter.

    Args:
      params: the learned weights φ, as `rnnprop_init` or `load` give them. Their
        shapes give the sizes.
      step_size: α, at least 0: no coordinate moves further in a step.
      b1: β1 in [0, 1), decay of the first moment.
      b2: β2 in [0, 1), decay of the second moment.
      eps: ε, at least 0, in the unit of the gradient.
      state_dtype: dtype in which the LSTM's state is stored ("bfloat16", "float32",
        "float64"); None: float32, or float64 for float64 parameters. Arithmetic and m,
        v are in promote_types(float32, parameter's dtype) all the same.
      precision: of the matrix products, "highest", "high" or "default", as in
        `jax.numpy.matmul`. GPUs and TPUs compute in less than float32 below "highest".
      implementation: "plain", the LSTM as the papers have it, mapped over coordinates;
        "fused", the same numbers but for rounding, in less time and, of leaves of many
        parameters, in a bounded work space, reverse-mode derivatives only; "kernel", on
        GPUs, from jax 0.9.2 on and as long as it has Pallas's Triton backend, the same
        as one kernel for leaves up to float32 and layers of up to 32 units, "fused" for
        others; "auto", "kernel" for leaves of at least 65,536 coordinates where it can
        be had and JAX's one device is an NVIDIA GPU of compute capability 8 or more,
        else "fused".
      skip_nonfinite: whether a coordinate is left alone where its gradient is NaN or
        infinite, or so large that m or v would be: the update is 0 and m, v and the
        LSTM's state stay as they are. False is the paper's rule, in which they are NaN
        from then on, or v infinite. (`optax.apply_if_finite` leaves out the whole step,
        and lets gradients pass that are finite but too large.)
      averaged_units: k, up to the smallest layer's size: the first k units of every
        LSTM layer are global averaging cells, whose h is its mean over all coordinates,
        see `l2l_jax.optimizers.averaging`. None or 0: every coordinate on its own. Not
        with implementation "kernel". (`optax.inject_hyperparams` must be told that it
        is one of its `static_args`.)

    Returns:
      An `optax.GradientTransformationExtraArgs` for any pytree of floating arrays.
      Updates have the gradients' dtypes and are to be ADDED, the sign is in them.
      `update` needs no `params`.

    Raises:
      TypeError: `params` is not an `RNNpropParams`; at init or update, a leaf is not
        floating, or the state is another optimizer's; the message has its path.
      ValueError: a shape or a hyper-parameter is out of range; at update, gradients
        are not like the parameters that init saw.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> phi = rnnprop_init(jax.random.key(0))
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), rnnprop_transform(phi))
      >>> theta = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
      >>> updates, state = tx.update(theta, tx.init(theta))
      >>> jax.tree.map(jnp.shape, optax.apply_updates(theta, updates))
      {'b': (2,), 'w': (3, 2)}

    References:
      Lv, Jiang, Li, `Learning Gradient Descent: Better Generalization and Longer
      Horizons <https://arxiv.org/abs/1703.03633>`_, 2017, section 4.3, equations 5-9.
    """
    check_number("step_size", step_size, 0)
    check_number("b1", b1, 0, 1, high_open=True)
    check_number("b2", b2, 0, 1, high_open=True)
    check_number("eps", eps, 0)
    phi = params
    how = implementation, skip_nonfinite
    check_network(phi, RNNpropParams, state_dtype, precision, *how)
    check_averaged_units(averaged_units, phi.lstm, implementation)

    rule = rnnprop_rule(precision)

    def init_fn(params):
        # First, because it refuses leaves of other kinds.
        lstm = init_cells(phi.lstm, params, state_dtype)
        check_platform(implementation, params)
        return RNNpropState(
            count=jnp.zeros([], jnp.int32),
            m=init_moments(params),
            v=init_moments(params),
            lstm=lstm,
        )

    @compiled_once
    def advance(updates, state):
        count = optax.safe_increment(state.count)

        def scalars(g):
            return relative_scalars(g, step_size, b1, b2, eps, count)

        updates, (m, v), lstm = step_tree(
            *(rule, phi, scalars, updates, (state.m, state.v), state.lstm),
            *(averaged_units, *how),
        )
        return updates, RNNpropState(count, m, v, lstm)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        check_type("the state in update(updates, state)", state, RNNpropState)
        check_floating(updates)
        return advance(updates, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
