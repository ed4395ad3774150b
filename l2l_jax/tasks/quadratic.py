"""The random quadratics of the 2016 paper."""

import jax
import jax.numpy as jnp

from l2l_jax.checks import check_number, check_size
from l2l_jax.types import Task, no_batches


def quadratic_task(num_dims: int = 10, init_std: float = 0.1) -> Task:
    """Random quadratics f(θ) = ||W·θ - y||².

    Each episode draws W (n x n) and y (n) with independent N(0, 1) entries, and θ_0
    from N(0, init_std²).

    Args:
      num_dims: n, positive.
      init_std: deviation of the initial parameters, at least 0. 0.1 as all optimizees
        of the RNNprop paper; the program of the 2016 paper had 0.01.

    Returns:
      The task; its params are one float32 array (n,), its minibatches empty.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> task = quadratic_task()
      >>> w, y = task.sample(jax.random.key(0))
      >>> minimum = jnp.linalg.solve(w, y)
      >>> float(task.loss(minimum, (), (w, y), None)) < 1e-6
      True

    References:
      Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
      <https://arxiv.org/abs/1606.04474>`_, 2016, section 3.1.
    """
    check_size("num_dims", num_dims)
    check_number("init_std", init_std, 0)

    def sample(key):
        w_key, y_key = jax.random.split(key)
        w = jax.random.normal(w_key, (num_dims, num_dims))
        return w, jax.random.normal(y_key, (num_dims,))

    def init(key, instance):
        del instance
        return init_std * jax.random.normal(key, (num_dims,))

    def loss(theta, data, instance, batch):
        w, y = instance
        return jnp.sum((jnp.matmul(w, theta, precision="highest") - y) ** 2)

    return Task((), sample, init, no_batches, loss)
