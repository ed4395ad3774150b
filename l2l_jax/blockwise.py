"""The first-order meta-gradient of coordinatewise rules, block by block.

With every g_t held constant, θ_t = θ_0 + Σ_{s<t} Δθ_s and L = Σ_t w_t·f_t(θ_t) give::

    ∂L/∂Δθ_t = Σ_{s>t} w_s·g_s =: u_t

The forward pass has computed all g_t, so nothing is propagated back through the
optimizee, only through the rule (Δθ_t, h_{t+1}) = tx(g_t, h_t), from the last step to
the first::

    u_{T-1} = 0        λ_{T-1} = 0
    λ_t = (∂Δθ_t/∂h_t)^T·u_t + (∂h_{t+1}/∂h_t)^T·λ_{t+1}
    ∂L/∂φ = Σ_t (∂Δθ_t/∂φ)^T·u_t + (∂h_{t+1}/∂φ)^T·λ_{t+1}

The states h_t are kept on the way forward. A rule that treats every coordinate alike
and on its own can be differentiated for any block of coordinates alone: the λ of a
block stays in the processor's cache, and blocks may lie on different devices, with no
word between them but the sum of ∂L/∂φ.

`l2l_jax.meta.meta_gradient` is the definition; this is the same numbers, sooner.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from l2l_jax.meta import Episode, inner_step
from l2l_jax.types import PyTree, Task

AXIS = "coordinates"


def on_vector(task: Task, multiple: int = 1) -> Task:
    """The same task whose parameters are one vector.

    Args:
      task: any task.
      multiple: the vector is padded with zeros, on which nothing depends, until its
        length is a multiple of this.

    Returns:
      The task.

    Example:
      >>> import jax
      >>> from l2l_jax import convex_task
      >>> task = on_vector(convex_task(20), multiple=8)
      >>> task.init(jax.random.key(0), task.sample(jax.random.key(1))).shape
      (24,)
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key, jax.eval_shape(task.sample, key))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    vector, unravel = ravel_pytree(zeros)
    size = vector.size
    padding = -size % multiple

    def init(key, instance):
        return jnp.pad(ravel_pytree(task.init(key, instance))[0], (0, padding))

    def loss(params, data, instance, batch):
        return task.loss(unravel(params[:size]), data, instance, batch)

    return task._replace(init=init, loss=loss)


def on_this_device(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """A coordinatewise rule on a vector, each device of `AXIS` computing its part."""

    def init(params):
        return tx.init(my_part(params))

    def update(updates, state, params=None):
        del params
        updates, state = tx.update(my_part(updates), state)
        return jax.lax.all_gather(updates, AXIS, tiled=True), state

    return optax.GradientTransformation(init, update)


def my_part(x: jax.Array, name: str = AXIS) -> jax.Array:
    """The slice of the last axis that belongs to this device of a mesh's axis."""
    size = x.shape[-1] // jax.lax.axis_size(name)
    begin = jax.lax.axis_index(name) * size
    return jax.lax.dynamic_slice_in_dim(x, begin, size, axis=-1)


def blockwise_meta_gradient(
    phi: PyTree,
    transform: Callable[[PyTree], optax.GradientTransformation],
    task: Task,
    episode: Episode,
    weights: np.ndarray,
    block: int,
    sharded: bool = False,
) -> tuple[tuple[jax.Array, Episode], PyTree]:
    """`meta_gradient` to first order, for a coordinatewise rule on a vector.

    Args:
      phi: φ.
      transform: `transform(φ)`, coordinatewise: what it does to a coordinate depends on
        that coordinate's gradients alone.
      task: its parameters are one vector, see `on_vector`.
      episode: where the segment starts.
      weights: w (T,).
      block: coordinates that are differentiated together, at most; at least 1.
      sharded: whether this runs on each device of `AXIS`, under `jax.shard_map`, the
        episode's optimizer state being that of `on_this_device`.

    Returns:
      ((L, the episode after the segment), ∂L/∂φ).
    """
    tx = transform(phi)
    here = on_this_device(tx) if sharded else tx
    batches = task.batches(
        episode.key, task.data, episode.instance, episode.step, len(weights)
    )

    def step(episode, batch):
        state = episode.opt_state
        episode, loss, g = inner_step(task, here, episode, batch)
        return episode, (loss, state, my_part(g) if sharded else g)

    after, (losses, states, gradients) = jax.lax.scan(step, episode, batches)
    later = np.triu(np.ones((len(weights),) * 2), 1) * np.asarray(weights)[None, :]
    cotangents = jnp.matmul(
        jnp.asarray(later, gradients.dtype), gradients, precision="highest"
    )
    slope = _slope(phi, transform, states, gradients, cotangents, block)
    if sharded:
        slope = jax.lax.psum(slope, AXIS)
    loss = jnp.vdot(jnp.asarray(weights, losses.dtype), losses)
    return (loss, after), slope


def _slope(phi, transform, states, gradients, cotangents, block):
    """∂L/∂φ from the states, gradients and cotangents (T, n) of all steps."""
    # No loss of the segment is evaluated after its last update: u_{T-1} is 0.
    gradients, cotangents = gradients[:-1], cotangents[:-1]
    length, size = gradients.shape
    block = math.ceil(size / math.ceil(size / block))
    # The last block begins where it still fits; what it shares with the one before is
    # counted there.
    firsts = jnp.arange(0, size, block)
    begins = jnp.minimum(firsts, size - block)
    axes = _coordinate_axes(transform(phi), gradients.dtype)

    def block_of_states(t, begin):
        cut = functools.partial(_cut, t=t, begin=begin, block=block)
        return jax.tree.map(cut, states, axes)

    def add_block(slope, where):
        first, begin = where
        g, u = (
            jax.lax.dynamic_slice_in_dim(x, begin, block, 1)
            for x in (gradients, cotangents)
        )
        new = begin + jnp.arange(block) >= first
        u = jnp.where(jnp.broadcast_to(new, u.shape), u, 0)

        def step_back(carry, signals):
            (slope, later), (t, g, u) = carry, signals
            state = block_of_states(t, begin)

            def rule(phi, values):
                update, after = transform(phi).update(g, _with_floating(state, values))
                return update, _floating(after)

            _, pull = jax.vjp(rule, phi, _floating(state))
            part, earlier = pull((u, later))
            return (jax.tree.map(jnp.add, slope, part), earlier), None

        none = jax.tree.map(jnp.zeros_like, _floating(block_of_states(0, begin)))
        steps = (jnp.arange(length), g, u)
        (slope, _), _ = jax.lax.scan(step_back, (slope, none), steps, reverse=True)
        return slope, None

    zero = jax.tree.map(jnp.zeros_like, phi)
    return jax.lax.scan(add_block, zero, (firsts, begins))[0]


def _cut(x, axis, t, begin, block):
    """Step t of a stack of all steps, and of it one block of coordinates."""
    starts, sizes = [t] + [0] * (x.ndim - 1), [1, *x.shape[1:]]
    if axis >= 0:
        starts[axis + 1], sizes[axis + 1] = begin, block
    return jnp.squeeze(jax.lax.dynamic_slice(x, starts, sizes), 0)


def _is_floating(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _floating(tree):
    """The leaves that can be differentiated."""
    return [x for x in jax.tree.leaves(tree) if _is_floating(x)]


def _with_floating(tree, values):
    """The tree with other values for those leaves."""
    values = iter(values)
    return jax.tree.map(lambda x: next(values) if _is_floating(x) else x, tree)


def _coordinate_axes(tx: optax.GradientTransformation, dtype) -> PyTree:
    """For every leaf of the state the axis that runs over coordinates; -1 for none.

    Raises:
      ValueError: a leaf has more than one, so the rule is not coordinatewise.
    """
    one, other = (
        jax.eval_shape(tx.init, jax.ShapeDtypeStruct((size,), dtype)) for size in (2, 3)
    )

    def axis(x, y):
        pairs = enumerate(zip(x.shape, y.shape, strict=True))
        differing = [i for i, (a, b) in pairs if a != b]
        if len(differing) > 1:
            raise ValueError(
                "a coordinatewise rule has one axis of coordinates in each leaf of its"
                f" state, got shapes {x.shape} and {y.shape} for 2 and 3 coordinates"
            )
        return differing[0] if differing else -1

    return jax.tree.map(axis, one, other)
