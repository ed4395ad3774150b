"""Final losses and loss curves of many runs of any optimizer on a task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax.checks import check_sizes
from l2l_jax.meta import Episode, start_episode, unroll
from l2l_jax.types import PyTree, Task


class Evaluation(NamedTuple):
    """What R runs of T steps gave.

    Attributes:
      final: float (R,), final loss of each run: θ_T frozen, the loss averaged over all
        T minibatches that the run met.
      curves: float (R, T), loss of each step, before its update.
    """

    final: np.ndarray
    curves: np.ndarray

    @property
    def diverged(self) -> np.ndarray:
        """Bool (R,): the final loss is not finite, or above that of the first step."""
        with np.errstate(invalid="ignore"):
            return ~(self.final <= self.curves[:, 0])

    def summary(self) -> dict[str, Any]:
        """Plain numbers: mean, stderr of the mean, median, runs, diverged, not_finite.

        Mean and standard error are those of the runs with a finite final loss; how many
        were not is in "not_finite". The median counts those as infinite.
        """
        finite = self.final[np.isfinite(self.final)]
        median = float(np.median(np.where(np.isfinite(self.final), self.final, np.inf)))
        return {
            "mean": float(finite.mean()) if finite.size else None,
            "stderr": float(finite.std(ddof=1) / finite.size**0.5)
            if finite.size > 1
            else None,
            "median": median if np.isfinite(median) else None,
            "runs": int(self.final.size),
            "diverged": int(self.diverged.sum()),
            "not_finite": int(self.final.size - finite.size),
        }


class Evaluator(NamedTuple):
    """Evaluates one family of optimizers on one task; compiled programs are reused.

    Attributes:
      evaluate: `evaluate(weights, key, num_steps, num_runs) -> Evaluation`. Equal keys
        give equal instances, initial parameters and minibatches, whatever the
        optimizer: comparisons are paired. Another `weights` or another `num_steps` does
        not compile again, as long as the latter keeps the remainder by the segment
        length.
    """

    evaluate: Callable[[PyTree, jax.Array, int, int], Evaluation]


def evaluator(
    task: Task,
    transform: Callable[[PyTree], optax.GradientTransformation],
    segment_length: int = 100,
) -> Evaluator:
    """Prepares the evaluation of `transform(weights)` on a task.

    Args:
      task: the optimizee.
      transform: gives a transformation; `weights` is φ for a learned one, a learning
        rate for `optax.adam`.
      segment_length: steps in one compiled program.

    Returns:
      An `Evaluator`.

    Raises:
      ValueError: an argument is not positive.

    Example:
      >>> import jax, optax
      >>> from l2l_jax import evaluator, quadratic_task
      >>> sgd = evaluator(quadratic_task(), optax.sgd)
      >>> result = sgd.evaluate(0.01, jax.random.key(0), num_steps=100, num_runs=5)
      >>> result.final.shape, result.curves.shape, result.summary()["diverged"]
      ((5,), (5, 100), 0)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, caption of figure 3.
    """
    check_sizes("segment_length", (segment_length,))

    # Coordinatewise or not, an optimizer sees the leaves as they are here.
    @functools.partial(jax.jit, static_argnums=3)
    def start(data, weights, key, num_runs):
        begin = functools.partial(start_episode, task._replace(data=data))
        return jax.vmap(lambda k: begin(transform(weights), k))(
            jax.random.split(key, num_runs)
        )

    @functools.partial(jax.jit, static_argnums=3, donate_argnums=2)
    def advance(data, weights, episodes, length):
        here = task._replace(data=data)
        return jax.vmap(lambda e: unroll(here, transform(weights), e, length))(episodes)

    @functools.partial(jax.jit, static_argnums=3)
    def frozen_loss(data, episodes, begin, length):
        def one(episode: Episode) -> jax.Array:
            batches = task.batches(episode.key, data, episode.instance, begin, length)
            losses = jax.lax.map(
                lambda b: task.loss(episode.params, data, episode.instance, b), batches
            )
            return jnp.sum(losses)

        return jax.vmap(one)(episodes)

    def evaluate(weights, key, num_steps, num_runs):
        check_sizes("num_steps", (num_steps,))
        check_sizes("num_runs", (num_runs,))
        whole, rest = divmod(num_steps, segment_length)
        lengths = [segment_length] * whole + [rest] * (rest > 0)
        episodes, curves = start(task.data, weights, key, num_runs), []
        for length in lengths:
            episodes, losses = advance(task.data, weights, episodes, length)
            curves.append(np.asarray(losses))
        total, begin = np.zeros(num_runs), 0
        for length in lengths:
            total += np.asarray(
                frozen_loss(task.data, episodes, jnp.int32(begin), length), float
            )
            begin += length
        return Evaluation(total / num_steps, np.concatenate(curves, axis=1))

    return Evaluator(evaluate)
