"""Random Scaling: a task seen through randomly stretched coordinates."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import check_number
from l2l_jax.types import PyTree, Task


def random_scaling(task: Task, bound: float, *, shared: bool = False) -> Task:
    """The task f_c(θ) = f(c·θ) with random scales c, drawn once an episode.

    ::

        u_i ~ U[-L, L] for every coordinate i,  c = exp(u)
        θ_0 = c^-1·θ_0^f
        f_c(θ) = f(c·θ),  so that  ∇f_c(θ) = c·∇f(c·θ)

    Training on it forces an optimizer to find the right step sizes rather than to know
    them. L = 0 is the task itself. With `shared` there is one u for all coordinates,
    which is a random factor of every step.

    Args:
      task: f, with any pytree of floating parameters.
      bound: L, at least 0; the RNNprop paper takes 3 for a network and 1 for the convex
        function.
      shared: whether all coordinates have the same scale.

    Returns:
      The scaled task. Its instances are pairs (instance of `task`, c).

    Raises:
      ValueError: `bound` is negative or not finite.

    Example:
      >>> import jax
      >>> from l2l_jax import quadratic_task
      >>> task = random_scaling(quadratic_task(num_dims=10), bound=3.0)
      >>> _, c = task.sample(jax.random.key(0))
      >>> c.shape
      (10,)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 4.1, equation 2; the distribution: section 5. `shared` is not in it.
    """
    check_number("bound", bound, 0)

    def sample(key: jax.Array) -> PyTree:
        instance_key, scale_key = jax.random.split(key)
        instance = task.sample(instance_key)
        shapes = jax.eval_shape(task.init, instance_key, instance)
        draw = partial(jax.random.uniform, minval=-bound, maxval=bound)
        if shared:
            log = draw(scale_key)
            logs = jax.tree.map(lambda x: log.astype(x.dtype), shapes)
        else:
            logs = optax.tree.random_like(scale_key, shapes, draw)
        return instance, jax.tree.map(jnp.exp, logs)

    def init(key: jax.Array, instance: PyTree) -> PyTree:
        inner, scales = instance
        return jax.tree.map(jnp.divide, task.init(key, inner), scales)

    def batches(key, data, instance, start, length):
        return task.batches(key, data, instance[0], start, length)

    def loss(params, data, instance, batch):
        inner, scales = instance
        return task.loss(jax.tree.map(jnp.multiply, params, scales), data, inner, batch)

    return Task(task.data, sample, init, batches, loss)
