"""Combination with a convex function, and of tasks in general."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from l2l_jax.checks import check_number, check_size, check_type
from l2l_jax.types import Task, no_batches


def convex_task(
    num_dims: int = 20,
    v_range: tuple[float, float] = (-1.0, 1.0),
    x_range: tuple[float, float] = (-1.0, 1.0),
    clip: float | None = None,
) -> Task:
    """The convex function of the RNNprop paper, with a random minimum.

    ::

        g(x) = 1/n·Σ_i (x_i - v_i)²,  v ~ U[v_range]^n and x_0 ~ U[x_range]^n an episode

    With `clip` = C it is the clipped square 1/n·Σ_i min((x_i - v_i)², C), no longer
    convex and flat far away.

    Args:
      num_dims: n, positive.
      v_range: interval of the coordinates of the minimum v.
      x_range: interval of the coordinates of the initial x; (0, 0) starts at 0.
      clip: C > 0, or None for the paper's function. The authors' program has C = 10 and
        starts at 0.

    Returns:
      The task; its params are one float32 array (n,), its minibatches empty.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> import jax
      >>> task = convex_task()
      >>> v = task.sample(jax.random.key(0))
      >>> float(task.loss(v + 0.5, (), v, None))
      0.25

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 4.2, equation 4; the ranges: section 5.
    """
    check_size("num_dims", num_dims)
    for name, interval in (("v_range", v_range), ("x_range", x_range)):
        check_number(f"{name}[0]", interval[0])
        check_number(f"{name}[1]", interval[1], interval[0])
    if clip is not None:
        check_number("clip", clip, 0, low_open=True)

    def uniform(key, interval):
        return jax.random.uniform(key, (num_dims,), jnp.float32, *interval)

    def loss(x, data, v, batch):
        squares = (x - v) ** 2
        return jnp.mean(squares if clip is None else jnp.clip(squares, 0, clip))

    return Task(
        data=(),
        sample=lambda key: uniform(key, v_range),
        init=lambda key, v: uniform(key, x_range),
        batches=no_batches,
        loss=loss,
    )


def combine(*tasks: Task, weights: Sequence[float] | None = None) -> Task:
    """The weighted sum of tasks on parameters side by side.

    ::

        F(θ_1, …, θ_k) = Σ_j w_j·f_j(θ_j)

    Args:
      *tasks: f_1 … f_k, at least one.
      weights: w_1 … w_k, finite; all 1 if not given.

    Returns:
      A task whose data, instances, params and minibatches are tuples of k.

    Raises:
      TypeError: one is not a `Task`.
      ValueError: no task, or not as many weights as tasks.

    Example:
      The combination with a convex function, each part with its own Random Scaling, as
      RNNprop is trained:

      >>> import jax
      >>> from l2l_jax import combine, convex_task, quadratic_task, random_scaling
      >>> f, g = quadratic_task(), convex_task()
      >>> task = combine(random_scaling(f, 3.0), random_scaling(g, 1.0))
      >>> key = jax.random.key(0)
      >>> jax.tree.map(jax.numpy.shape, task.init(key, task.sample(key)))
      ((10,), (20,))

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 4.2, equation 3.
    """
    if not tasks:
        raise ValueError("combine takes at least one task, got none")
    for index, task in enumerate(tasks):
        check_type(f"tasks[{index}]", task, Task)
    weights = (1.0,) * len(tasks) if weights is None else tuple(weights)
    if len(weights) != len(tasks):
        raise ValueError(
            f"weights must be as many as tasks, {len(tasks)}, got {len(weights)}"
        )
    for index, weight in enumerate(weights):
        check_number(f"weights[{index}]", weight)

    # What holds the functions does not hold the data with them.
    all_data = tuple(task.data for task in tasks)
    tasks = tuple(task._replace(data=None) for task in tasks)

    def split(key):
        return jax.random.split(key, len(tasks))

    def sample(key):
        return tuple(t.sample(k) for t, k in zip(tasks, split(key), strict=True))

    def init(key, instance):
        parts = zip(tasks, split(key), instance, strict=True)
        return tuple(t.init(k, i) for t, k, i in parts)

    def batches(key, data, instance, start, length):
        parts = zip(tasks, split(key), data, instance, strict=True)
        return tuple(t.batches(k, d, i, start, length) for t, k, d, i in parts)

    def loss(params, data, instance, batch):
        parts = zip(weights, tasks, params, data, instance, batch, strict=True)
        return sum(w * t.loss(p, d, i, b) for w, t, p, d, i, b in parts)

    return Task(all_data, sample, init, batches, loss)
