"""The traditional optimizers to compare with, and their learning rates."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from l2l_jax.checks import check_choice, check_size
from l2l_jax.evaluate import Evaluator

# Their other hyper-parameters are the defaults of TensorFlow 0.12, as in the RNNprop
# paper; optax's defaults differ in several.
BASELINES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.1, eps=0.0),
    "adadelta": lambda rate: optax.adadelta(rate, rho=0.95, eps=1e-8),
    # The mean square starts at 1, and ε stands inside the root.
    "rmsprop": lambda rate: optax.rmsprop(
        rate, decay=0.9, eps=1e-10, initial_scale=1.0, eps_in_sqrt=True
    ),
    "adam": lambda rate: optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8),
}


def _cosine(rule: Callable[..., optax.GradientTransformation]):
    def scheduled(rate, num_steps):
        return rule(optax.cosine_decay_schedule(rate, num_steps))

    return scheduled


# Those that know the horizon: their rate falls from its peak to 0 over it, as half a
# wave of cosine.
SCHEDULED: dict[str, Callable[[Any, int], optax.GradientTransformation]] = {
    "adam_cosine": _cosine(optax.adam),
    "adamw_cosine": _cosine(optax.adamw),
}

# 2^(-k/2). Adaptive rules want about the step they take as a rate, the others more.
EXPONENTS = {
    "sgd": range(-8, 9),
    "momentum": range(-4, 13),
    "adagrad": range(-4, 13),
    "adadelta": range(-24, -3),
    "rmsprop": range(2, 19),
    "adam": range(2, 19),
    "adam_cosine": range(2, 19),
    "adamw_cosine": range(2, 19),
}


def baseline(
    name: str, num_steps: int
) -> Callable[[Any], optax.GradientTransformation]:
    """A traditional optimizer as a function of its rate, constant or peak.

    Args:
      name: a key of `BASELINES` or `SCHEDULED`.
      num_steps: the horizon, for those that use it.

    Returns:
      `make(rate) -> optax.GradientTransformation`.

    Raises:
      ValueError: the name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = baseline("adam_cosine", num_steps=100)(0.01)
      >>> update, _ = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
      >>> round(float(update), 4)
      -0.01
    """
    check_choice("name", name, (*BASELINES, *SCHEDULED))
    if name in BASELINES:
        return BASELINES[name]
    return lambda rate: SCHEDULED[name](rate, num_steps)


class Tuning(NamedTuple):
    """Learning rates of one optimizer on one task, tried on a grid.

    Attributes:
      name: of the optimizer.
      best_rate: rate with the lowest mean final loss; None if all diverged.
      edge: whether it is the lowest or the highest rate that was tried.
      table: for each rate, ascending, its `Evaluation.summary` and "rate".
    """

    name: str
    best_rate: float | None
    edge: bool
    table: list[dict[str, Any]]


def tune(
    name: str,
    evaluation: Evaluator,
    key: jax.Array,
    *,
    num_steps: int = 100,
    num_runs: int = 20,
    exponents: Sequence[int] | None = None,
    stride: int = 2,
    beyond: int = 0,
) -> Tuning:
    """Finds the best learning rate, constant or peak, of a baseline on a grid.

    The grid is 2^(-k/2). First every `stride`-th k is tried, then all k nearer than
    `stride` to the best of those. A rate with a run whose final loss is not finite
    cannot win.

    Args:
      name: of the optimizer, a key of `BASELINES` or `SCHEDULED`.
      evaluation: `evaluator(task, baseline(name, num_steps))`.
      key: all rates get the same initial parameters and minibatches.
      num_steps: T, steps of a run.
      num_runs: runs of each rate.
      exponents: the k to try; default: `EXPONENTS[name]`.
      stride: of the first pass, at least 1; with 1 all k are tried.
      beyond: how often the grid may go on by `stride` at an end that is the best, at
        least 0.

    Returns:
      A `Tuning`.

    Raises:
      ValueError: the name is unknown, `stride` is not positive, `beyond` is negative,
        or there are no exponents.

    Example:
      >>> import jax
      >>> from l2l_jax import evaluator, quadratic_task
      >>> adam = evaluator(quadratic_task(), BASELINES["adam"])
      >>> result = tune("adam", adam, jax.random.key(0), num_steps=20, num_runs=4)
      >>> 0.05 < result.best_rate < 0.8
      True

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 5.
    """
    check_choice("name", name, (*BASELINES, *SCHEDULED))
    check_size("stride", stride)
    if beyond != 0:
        check_size("beyond", beyond)
    grid = sorted(EXPONENTS[name] if exponents is None else exponents)
    if not grid:
        raise ValueError("exponents must be at least one number, got none")
    table: dict[int, dict[str, Any]] = {}

    def score(k: int) -> float:
        return math.inf if table[k]["not_finite"] else table[k]["mean"]

    def best_of(chosen: Sequence[int]) -> int:
        for k in chosen:
            if k not in table:
                rate = 2.0 ** (-k / 2)
                result = evaluation.evaluate(rate, key, num_steps, num_runs)
                table[k] = {"rate": rate, **result.summary()}
        return min(chosen, key=score)

    tried = grid[::stride]
    near = best_of(tried)
    for _ in range(beyond):
        way = {tried[0]: -1, tried[-1]: 1}.get(near, 0)
        if not way or math.isinf(score(near)):
            break
        next_one = near + way * stride
        tried = sorted([*tried, next_one])
        grid = sorted({*grid, *range(near, next_one + way, way)})
        near = best_of([near, next_one])
    best = best_of([k for k in grid if abs(k - near) < stride])
    return Tuning(
        name,
        table[best]["rate"] if math.isfinite(score(best)) else None,
        best in (grid[0], grid[-1]),
        [table[k] for k in sorted(table, reverse=True)],
    )
