"""Final losses and loss curves of many runs of any optimizer on a task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax.checks import check_size, check_type
from l2l_jax.meta import Episode, check_task, start_episode, unroll
from l2l_jax.trees import over_episodes
from l2l_jax.types import PyTree, Task


class Evaluation(NamedTuple):
    """What R runs of T steps gave.

    Attributes:
      final: float (R,), final loss of each run: θ_T frozen, the loss averaged over all
        T minibatches that the run met.
      curves: float (R, T), loss of each step, before its update.
      params: final parameters θ_T, a tree of NumPy arrays with leading axis R.
    """

    final: np.ndarray
    curves: np.ndarray
    params: PyTree

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


# They know nothing of the optimizer: all evaluators of a task share what is compiled.
# A task without its data is a tuple of functions, and so can be a static argument.


@functools.partial(jax.jit, static_argnums=(0, 3))
def _start(functions: Task, data: PyTree, key: jax.Array, num_runs: int) -> Episode:
    """Episodes at step 0, their optimizer's state still empty."""
    begin = functools.partial(
        start_episode, functions._replace(data=data), optax.identity()
    )
    # Run by run: side by side, random draws compile twice as long and run no sooner.
    return jax.lax.map(begin, jax.random.split(key, num_runs))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _batches(
    functions: Task, data: PyTree, episodes: Episode, begin: jax.Array, length: int
) -> PyTree:
    """The minibatches of each run in the steps from `begin` on."""
    return jax.lax.map(
        lambda e: functions.batches(e.key, data, e.instance, begin, length), episodes
    )


@functools.partial(jax.jit, static_argnums=0)
def _frozen_loss(
    functions: Task, data: PyTree, episodes: Episode, batches: PyTree
) -> jax.Array:
    """Sum of the losses of each run's parameters on its minibatches."""

    def one(episode: Episode, batches: PyTree) -> jax.Array:
        instance = episode.instance
        losses = jax.lax.map(
            lambda batch: functions.loss(episode.params, data, instance, batch), batches
        )
        return jnp.sum(losses)

    return jax.vmap(one)(episodes, batches)


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
      TypeError: an argument is not of its type, or the task does not keep its contract.
      ValueError: an argument is not positive.

    Example:
      >>> import jax, optax
      >>> from l2l_jax import evaluator, quadratic_task
      >>> sgd = evaluator(quadratic_task(), optax.sgd)
      >>> result = sgd.evaluate(0.01, jax.random.key(0), num_steps=100, num_runs=5)
      >>> result.final.shape, result.curves.shape, result.summary()["diverged"]
      ((5,), (5, 100), 0)
      >>> result.params.shape  # θ_T of each run
      (5, 10)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, caption of figure 3.
    """
    check_type("task", task, Task)
    if not callable(transform):
        raise TypeError(
            "transform must be a function of weights or of a rate, such as optax.adam"
            " or learned_optimizer(…).transform; of a transformation tx make it"
            f" `lambda _: tx`, got {type(transform).__name__}"
        )
    check_size("segment_length", segment_length)
    check_task(task)

    functions = task._replace(data=None)

    @functools.partial(jax.jit, static_argnums=4, donate_argnums=2)
    def advance(data, weights, episodes, batches, length):
        tx = transform(weights)

        def one(episode, drawn):
            here = task._replace(data=data, batches=lambda *_: drawn)
            return unroll(here, tx, episode, length)

        return over_episodes(one)(episodes, batches)

    @jax.jit
    def init_states(weights, params):
        return jax.vmap(transform(weights).init)(params)

    def evaluate(weights, key, num_steps, num_runs):
        check_size("num_steps", num_steps)
        check_size("num_runs", num_runs)
        # Without a dtype, a Python number would be weakly typed and compile again.
        weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), weights)
        whole, rest = divmod(num_steps, segment_length)
        lengths = [segment_length] * whole + [rest] * (rest > 0)
        begins = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
        fresh = _start(functions, task.data, key, num_runs)

        def batches(begin, length):
            return _batches(functions, task.data, fresh, begin, length)

        states = init_states(weights, fresh.params)
        # A copy, because `advance` takes its argument's memory over.
        episodes = jax.tree.map(jnp.copy, fresh)._replace(opt_state=states)
        curves = []
        for begin, length in zip(begins, lengths, strict=True):
            episodes, losses = advance(
                task.data, weights, episodes, batches(begin, length), length
            )
            curves.append(np.asarray(losses))
        frozen = fresh._replace(params=episodes.params)
        total = np.zeros(num_runs)
        for begin, length in zip(begins, lengths, strict=True):
            drawn = batches(begin, length)
            total += np.asarray(_frozen_loss(functions, task.data, frozen, drawn))
        return Evaluation(
            total / num_steps,
            np.concatenate(curves, axis=1),
            jax.tree.map(np.asarray, episodes.params),
        )

    return Evaluator(evaluate)
