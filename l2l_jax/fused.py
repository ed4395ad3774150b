"""The LSTM cell for arrays of coordinates, with its derivative by hand, and ELU.

`l2l_jax.lstm.lstm_cell` is the definition; this is the same function, sooner: all gates
take one pass of tanh, σ(x) being ½ + ½·tanh(x/2), and the way back takes one product
for all of them. It is given what the way forward made: a step is differentiated at
once, or computed again by `jax.checkpoint`, so nothing of it is kept for many steps.
"""

import functools

import jax
import jax.numpy as jnp

from l2l_jax.lstm import LSTMState, LSTMWeights, column, contract


@jax.custom_jvp
def elu(x: jax.Array) -> jax.Array:
    """`jax.nn.elu`, e^x - 1 for x < 0, through tanh: twice as fast on CPUs."""
    t = jnp.tanh(jnp.minimum(x, 0) / 2)
    return jnp.where(x > 0, x, 2 * t / (1 - t))


@elu.defjvp
def _elu_jvp(primals, tangents):
    z = elu(*primals)
    return z, tangents[0] * jnp.where(primals[0] > 0, 1, z + 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused_cell(
    weights: LSTMWeights, state: LSTMState, x: jax.Array, precision: str = "highest"
) -> LSTMState:
    """`l2l_jax.lstm.lstm_cell`; reverse-mode differentiation only."""
    c, h, _ = _forward(weights, state, x, precision)
    return LSTMState(c, h)


def _forward(weights, state, x, precision):
    """The new c and h, and what the way back needs besides."""
    # Each barrier keeps the compiler from computing the tanh before it again in every
    # place that uses it.
    barrier = jax.lax.optimization_barrier
    seen = barrier(jnp.concatenate([x, state.h]))
    hidden = state.c.shape[0]
    # Rows of i, f, o hold σ, those of j tanh; f is shifted by its bias of 1.
    j = (jnp.arange(4 * hidden) // hidden) == 1
    f = (jnp.arange(4 * hidden) // hidden) == 2
    scale = column(jnp.where(j, 1, 0.5).astype(x.dtype), x)
    shift = column(jnp.where(f, 0.5, 0).astype(x.dtype), x)
    gates = contract(weights.kernel, seen, precision) + column(weights.bias, x)
    open_ = barrier(jnp.tanh(gates * scale + shift) * scale + (1 - scale))
    i, j, f, o = jnp.split(open_, 4)
    c = barrier(f * state.c + i * j)
    squashed = barrier(jnp.tanh(c))
    return c, barrier(o * squashed), (seen, open_, squashed)


def _forward_rule(weights, state, x, precision):
    c, h, made = _forward(weights, state, x, precision)
    return LSTMState(c, h), (weights.kernel, state.c, made)


def _backward_rule(precision, kept, slope):
    kernel, old_c, (seen, open_, squashed) = kept
    i, j, f, o = jnp.split(open_, 4)
    dc = slope.c + slope.h * o * (1 - squashed**2)
    d_gates = jnp.concatenate(
        [
            dc * j * i * (1 - i),
            dc * i * (1 - j**2),
            dc * old_c * f * (1 - f),
            slope.h * squashed * o * (1 - o),
        ]
    )
    coordinates = tuple(range(1, seen.ndim))
    d_kernel = jax.lax.dot_general(
        d_gates, seen, ((coordinates, coordinates), ((), ())), precision=precision
    ).T
    d_seen = jnp.tensordot(kernel, d_gates, 1, precision=precision)
    d_x, d_h = jnp.split(d_seen, [len(d_seen) - len(old_c)])
    d_weights = LSTMWeights(d_kernel, jnp.sum(d_gates, coordinates))
    return d_weights, LSTMState(dc * f, d_h), d_x


fused_cell.defvjp(_forward_rule, _backward_rule)
