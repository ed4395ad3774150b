"""DMoptimizer: an LSTM that sees the logarithm and the sign of a gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import (
    check_choice,
    check_floating,
    check_number,
    check_sizes,
    check_type,
)
from l2l_jax.compiler import compiled_once
from l2l_jax.lstm import (
    Dense,
    LSTMState,
    LSTMWeights,
    dense_init,
    stack_init,
)
from l2l_jax.optimizers.averaging import check_averaged_units, step_tree
from l2l_jax.optimizers.coordinatewise import (
    Rule,
    check_network,
    check_platform,
    init_cells,
)
from l2l_jax.preprocess import log_and_sign


class DMParams(NamedTuple):
    """Weights φ of DMoptimizer.

    Attributes:
      lstm: one `LSTMWeights` a layer, the lowest (with 2 inputs) first.
      output: dense layer H_last -> 1.
    """

    lstm: tuple[LSTMWeights, ...]
    output: Dense


def dm_init(
    key: jax.Array,
    hidden_sizes: tuple[int, ...] = (20, 20),
    dtype: Any = jnp.float32,
) -> DMParams:
    """Random initial weights φ of DMoptimizer.

    The dense kernel from a truncated normal distribution of deviation 0.1, LSTM kernels
    from U(-r, r) with r = sqrt(3 / rows), all biases 0, as in the RNNprop authors'
    program.

    Args:
      key: randomness.
      hidden_sizes: hidden units of each LSTM layer, the lowest first.
      dtype: floating dtype of φ.

    Returns:
      φ; 5,141 numbers with the default sizes.

    Raises:
      ValueError: a size is not a positive int.

    Example:
      >>> import jax
      >>> phi = dm_init(jax.random.key(0))
      >>> phi.lstm[0].kernel.shape, sum(x.size for x in jax.tree.leaves(phi))
      ((22, 80), 5141)
    """
    sizes = check_sizes("hidden_sizes", hidden_sizes)
    lstm_key, output_key = jax.random.split(key)
    return DMParams(
        lstm=stack_init(lstm_key, 2, sizes, dtype),
        output=dense_init(output_key, sizes[-1], 1, dtype=dtype),
    )


def dm_sizes(params: DMParams) -> dict[str, Any]:
    """The arguments of `dm_init` that give weights of the same shapes."""
    return {"hidden_sizes": [layer.bias.shape[0] // 4 for layer in params.lstm]}


class DMState(NamedTuple):
    """State of `dm_transform`.

    Attributes:
      lstm: for each layer an `LSTMState` of two trees like the parameters, whose leaves
        have shape `(H, *S)`.
    """

    lstm: tuple[LSTMState, ...]


def dm_rule(form: str = "clip", precision: str = "highest") -> Rule:
    """The rule of `dm_transform`; scalars: α, p."""
    return Rule(functools.partial(_see, form), lambda weights, x: x, _move, precision)


def _see(form, scalars, g, moments):
    return log_and_sign(g, scalars[1], form), moments


def _move(scalars, x_out, inputs):
    del inputs
    return scalars[0] * x_out


def dm_transform(
    params: DMParams,
    *,
    step_size: float = 0.1,
    p: float = 10.0,
    form: str = "clip",
    state_dtype: str | None = None,
    precision: str = "highest",
    implementation: str = "auto",
    skip_nonfinite: bool = False,
    averaged_units: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The DMoptimizer as an optax transformation.

    At every coordinate, with the LSTM's state 0 before the first step::

        z_t = ( max(log|g_t|, -p) / p,  clip(e^p·g_t, -1, 1) )
        x_out, h_t = LSTM(z_t, h_{t-1})
        Δθ_t = α·x_out

    All coordinates share φ = `params`; each has its own state, with two layers of 20
    units 80 values: 320 bytes a float32 parameter. Nothing bounds Δθ.

    The defaults α = 0.1, p = 10 are those of the RNNprop authors; the program of the
    2016 paper had α = 0.01, p = 5.

    Args:
      params: the learned weights φ, as `dm_init` or `load` give them. Their shapes give
        the sizes.
      step_size: α, at least 0.
      p: in (0, 87]; gradients below e^-p in size are seen on a linear scale. Beyond 87
        that is no float32.
      form: of the preprocessing, "clip" (RNNprop authors) or "cases" (2016 paper), see
        `l2l_jax.preprocess.log_and_sign`.
      state_dtype: dtype in which the LSTM's state is stored ("bfloat16", "float32",
        "float64"); None: float32, or float64 for float64 parameters. Arithmetic is in
        promote_types(float32, parameter's dtype) all the same.
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
        infinite: the update is 0 and the LSTM's state stays as it is. False is the
        paper's rule, in which a NaN makes the state NaN from then on.
        (`optax.apply_if_finite` leaves out the whole step.)
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
      TypeError: `params` is not a `DMParams`; at init or update, a leaf is not
        floating, or the state is another optimizer's; the message has its path.
      ValueError: a shape or a hyper-parameter is out of range; at update, gradients
        are not like the parameters that init saw.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = dm_transform(dm_init(jax.random.key(0)))
      >>> theta = jnp.ones(3)
      >>> updates, state = tx.update(theta, tx.init(theta))
      >>> updates.shape, state.lstm[0].h.shape
      ((3,), (20, 3))

    References:
      Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
      <https://arxiv.org/abs/1606.04474>`_, 2016, section 2.1 and appendix A.
    """
    check_number("step_size", step_size, 0)
    check_number("p", p, 0, 87, low_open=True)
    check_choice("form", form, ("clip", "cases"))
    phi = params
    how = implementation, skip_nonfinite
    check_network(phi, DMParams, state_dtype, precision, *how)
    check_averaged_units(averaged_units, phi.lstm, implementation)

    rule = dm_rule(form, precision)

    def init_fn(params):
        lstm = init_cells(phi.lstm, params, state_dtype)
        check_platform(implementation, params)
        return DMState(lstm)

    @compiled_once
    def advance(updates, state):
        updates, _, lstm = step_tree(
            *(rule, phi, lambda g: (step_size, p), updates, (), state.lstm),
            *(averaged_units, *how),
        )
        return updates, DMState(lstm)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        check_type("the state in update(updates, state)", state, DMState)
        check_floating(updates)
        return advance(updates, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
