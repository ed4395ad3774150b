"""The contracts: an optimizee, an optimizer with weights, and how these are learned."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Task(NamedTuple):
    """An optimizee f(θ): what is minimised, from where, on which minibatches.

    Five fields, all of them data or pure functions, so that a transform of tasks
    (`random_scaling`, `combine`) is a function from `Task` to `Task`.

    Attributes:
      data: pytree of arrays that every episode shares (images as uint8, labels), `()`
        if there are none. An argument of compiled programs, never a constant in one.
      sample: `sample(key) -> instance`, the random constants of one episode, such as
        W and y of a quadratic or the scales c of Random Scaling; `()` if none.
      init: `init(key, instance) -> params`, the initial θ_0, any pytree of floating
        arrays.
      batches: `batches(key, data, instance, start, length) -> pytree` whose leaves have
        the leading axis `length` (static): the minibatches, or their indices, of steps
        `start` (an int32, traced) to `start + length - 1` of the episode that `key`
        names. The same key and step give the same minibatch however an episode is cut.
      loss: `loss(params, data, instance, batch) -> scalar`, f_d(θ) on one minibatch.

    Example:
      A parabola with a random centre:

      >>> import jax, jax.numpy as jnp
      >>> from l2l_jax import Task
      >>> task = Task(
      ...     data=(),
      ...     sample=lambda key: jax.random.normal(key, (3,)),
      ...     init=lambda key, centre: jnp.zeros(3),
      ...     batches=lambda key, data, centre, start, length: jnp.arange(length),
      ...     loss=lambda x, data, centre, batch: jnp.sum((x - centre) ** 2),
      ... )
      >>> centre = task.sample(jax.random.key(0))
      >>> float(task.loss(centre, task.data, centre, 0))
      0.0
    """

    data: PyTree
    sample: Callable[[jax.Array], PyTree]
    init: Callable[[jax.Array, PyTree], PyTree]
    batches: Callable[[jax.Array, PyTree, PyTree, jax.Array, int], PyTree]
    loss: Callable[[PyTree, PyTree, PyTree, PyTree], jax.Array]


def no_batches(key, data, instance, start, length):
    """The `batches` of a task without minibatches: arrays of no elements."""
    del key, data, instance, start
    return jnp.zeros((length, 0))


class LearnedOptimizer(NamedTuple):
    """A family of optimizers with weights φ.

    A hand-written optimizer needs only the second half: `transform` may be
    `optax.adam`, with its learning rate in the place of φ, and runs through the very
    same unroll.

    Attributes:
      init: `init(key) -> φ`, a pytree of arrays.
      transform: `transform(φ) -> optax.GradientTransformationExtraArgs`.
      coordinatewise: whether the update of a coordinate depends on that coordinate's
        gradients alone, by the same rule for all; meta-training then cuts the
        parameters as it likes, and is several times faster.
    """

    init: Callable[[jax.Array], PyTree]
    transform: Callable[[PyTree], optax.GradientTransformation]
    coordinatewise: bool = False


# Of a `LearnedOptimizer`.
Transform = Callable[[PyTree], optax.GradientTransformation]


class Estimator(NamedTuple):
    """How the meta-gradient of a segment is found, as pure functions.

    Attributes:
      start: `start(phi, transform, task, key) -> state`: an episode at its first step,
        with all that the estimator carries from segment to segment.
      gradient: `gradient(phi, transform, task, state, weights, log_loss) ->
        ((loss, state), slope)`: one segment. `weights` is w (T,) of the losses of its
        steps, or (K, T) for the mean of K such sums, where `several_losses`; `log_loss`
        says that the logarithm of the loss, or of each, is meant. `loss` is a scalar,
        `slope` a tree like φ.
      several_losses: whether `weights` may be (K, T).
      blockwise: None, or `blockwise(block, sharded) -> Estimator` of the same numbers,
        if the optimizer is coordinatewise and the parameters of the task a vector, see
        `l2l_jax.blockwise.blockwise_meta_gradient`.
    """

    start: Callable[[PyTree, Transform, Task, jax.Array], Any]
    gradient: Callable[..., tuple[tuple[jax.Array, Any], PyTree]]
    several_losses: bool = True
    blockwise: Callable[[int, bool], "Estimator"] | None = None
