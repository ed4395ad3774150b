"""Random Scaling: a task seen through randomly stretched coordinates."""

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import check_choice, check_number, check_type
from l2l_jax.types import PyTree, Task


def random_scaling(
    task: Task,
    bound: float,
    *,
    of: str = "coordinates",
    distribution: str = "log-uniform",
    dropped: float = 0.0,
) -> Task:
    """The task f_c(θ) = f(c·θ) with random scales c, drawn once an episode.

    ::

        u_i ~ U[-L, L] for every coordinate i,  c = exp(u)
        θ_0 = c^-1·θ_0^f
        f_c(θ) = f(c·θ),  so that  ∇f_c(θ) = c·∇f(c·θ)

    Training on it forces an optimizer to find the right step sizes rather than to know
    them. L = 0 is the task itself.

    The other arguments are variants. One factor for all coordinates is a random factor
    of every step. One for the function, f_c(θ) = c·f(θ), scales the gradients and
    nothing else; optimizers whose inputs are relative do not see it. Dropped
    coordinates have c_i = 0 and start at 0: f sees 0 there, and their gradient is 0.

    Args:
      task: f, with any pytree of floating parameters.
      bound: L, at least 0; the RNNprop paper takes 3 for a network and 1 for the convex
        function.
      of: what is scaled: "coordinates", each by its own factor, "parameters", all by
        the same, or "function".
      distribution: of c: "log-uniform", as above, or "uniform", c ~ U[exp(-L), exp(L)].
      dropped: in [0, 1), the probability with which a coordinate is dropped for an
        episode; coordinates only.

    Returns:
      The scaled task. Its instances are pairs (instance of `task`, c).

    Raises:
      TypeError: `task` is not a `Task`.
      ValueError: an argument is none of these, or coordinates are to be dropped of what
        has none.

    Example:
      >>> import jax
      >>> from l2l_jax import quadratic_task
      >>> task = random_scaling(quadratic_task(num_dims=10), bound=3.0)
      >>> _, c = task.sample(jax.random.key(0))
      >>> c.shape
      (10,)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 4.1, equation 2; the distribution: section 5. Its section 4.1 begins
      with one factor; the other variants are not in it.
    """
    check_type("task", task, Task)
    check_number("bound", bound, 0)
    check_choice("of", of, ("coordinates", "parameters", "function"))
    check_choice("distribution", distribution, ("log-uniform", "uniform"))
    check_number("dropped", dropped, 0, 1, high_open=True)
    if dropped and of != "coordinates":
        raise ValueError(f"dropped must be 0 where {of!r} are scaled, got {dropped}")

    # What holds the functions does not hold the data with them.
    all_data, task = task.data, task._replace(data=None)

    def draw(key, shape=(), dtype=jnp.float32):
        uniform = jax.random.uniform
        if distribution == "uniform":
            low, high = jnp.exp(jnp.array([-bound, bound], dtype))
            return uniform(key, shape, dtype, low, high)
        return jnp.exp(uniform(key, shape, dtype, -bound, bound))

    def kept(key, shape, dtype):
        return jax.random.bernoulli(key, 1 - dropped, shape).astype(dtype)

    def sample(key: jax.Array) -> PyTree:
        instance_key, scale_key = jax.random.split(key)
        instance = task.sample(instance_key)
        if of == "function":
            return instance, draw(scale_key)
        shapes = jax.eval_shape(task.init, instance_key, instance)
        if of == "parameters":
            c = draw(scale_key)
            return instance, jax.tree.map(lambda x: c.astype(x.dtype), shapes)
        scales = optax.tree.random_like(scale_key, shapes, draw)
        if dropped:
            drop_key = jax.random.fold_in(scale_key, 1)
            mask = optax.tree.random_like(drop_key, shapes, kept)
            scales = jax.tree.map(jnp.multiply, scales, mask)
        return instance, scales

    def stretch(theta, c):
        return jnp.where(c == 0, 0, theta / jnp.where(c == 0, 1, c))

    def init(key: jax.Array, instance: PyTree) -> PyTree:
        inner, scales = instance
        theta = task.init(key, inner)
        return theta if of == "function" else jax.tree.map(stretch, theta, scales)

    def batches(key, data, instance, start, length):
        return task.batches(key, data, instance[0], start, length)

    def loss(params, data, instance, batch):
        inner, scales = instance
        if of == "function":
            return scales * task.loss(params, data, inner, batch)
        return task.loss(jax.tree.map(jnp.multiply, params, scales), data, inner, batch)

    return Task(all_data, sample, init, batches, loss)
