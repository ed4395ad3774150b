"""Lazy updates: an optimizer asked now and then, its last step repeated between."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import check_number, check_size
from l2l_jax.types import PyTree

# Decays of the two averages of the loss that are compared, and the steps from which on
# the slow one has seen enough.
FAST, SLOW = 0.9, 0.99
SEEN = 100


class LazyState(NamedTuple):
    """State of `lazy_updates`.

    Attributes:
      age: int32 scalar, steps since the optimizer was asked last.
      asked: int32 scalar, how often it was.
      averages: two scalars, moving averages of the log loss, 0 without `tolerance`.
      count: int32 scalar, steps done.
      last: the last updates, a tree like the parameters.
      inner: the optimizer's own state.
    """

    age: jax.Array
    asked: jax.Array
    averages: tuple[jax.Array, jax.Array]
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    last: PyTree
    inner: Any


def lazy_updates(
    inner: optax.GradientTransformation, every: int, *, tolerance: float | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Asks an optimizer at every k-th step and repeats its last updates in between.

    With t = 0, 1, …, and h the state of the optimizer::

        Δθ_t, h_{t+1} = inner(g_t, h_t)   if k steps have passed since it was asked last
        Δθ_t, h_{t+1} = Δθ_{t-1}, h_t     otherwise

    That spares k - 1 of k evaluations of its network, and the gradients of those steps
    are not looked at. k = 1 is the optimizer itself. A step repeated k times is one of
    k times the length, so rates are best divided by about k.

    With `tolerance` ρ it is lazy only while the loss has stopped to fall, by moving
    averages of the log losses (decays .9 and .99, corrected for their bias)::

        lazy at t  if  t >= 100 and average_.9 > average_.99 + log(1 - ρ)

    Args:
      inner: any optax transformation.
      every: k, at least 1.
      tolerance: ρ in [0, 1), relative; None: always lazy. `update` then needs the
        current loss as `value`, a scalar; one that is not positive ends all laziness.

    Returns:
      A transformation whose `update` takes what that of `inner` takes. Under
      `jax.vmap` both branches are computed, and nothing is spared.

    Raises:
      ValueError: an argument is out of range; at update, `value` is missing.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = lazy_updates(optax.sgd(0.1), every=2)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 5.0, 2.0):
      ...     updates, state = tx.update(jnp.full(1, g), state)
      ...     print(round(float(updates[0]), 3), int(state.asked))
      -0.1 1
      -0.1 1
      -0.2 2
    """
    check_size("every", every)
    if tolerance is not None:
        check_number("tolerance", tolerance, 0, 1, high_open=True)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        # One array each: a buffer cannot be donated twice. The age is as if it had been
        # long ago: the first step asks.
        age, asked, count = (jnp.asarray(x, jnp.int32) for x in (every, 0, 0))
        averages = (jnp.zeros([]), jnp.zeros([]))
        last = jax.tree.map(jnp.zeros_like, params)
        return LazyState(age, asked, averages, count, last, inner.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        count = optax.safe_increment(state.count)
        averages, due = state.averages, state.age >= every
        if tolerance is not None:
            if extra_args.get("value") is None:
                raise ValueError(
                    "lazy_updates with a tolerance needs update(…, value=)"
                )
            value = jnp.log(jnp.asarray(extra_args["value"], jnp.float32))
            decays = (FAST, SLOW)
            averages = tuple(
                decay * old + (1 - decay) * value
                for decay, old in zip(decays, averages, strict=True)
            )
            fast, slow = (
                x / (1 - decay**count)
                for x, decay in zip(averages, decays, strict=True)
            )
            # Not "<=", which is false where a loss is no number.
            due |= (count <= SEEN) | ~(fast > slow + math.log1p(-tolerance))

        # What is returned has the gradients' dtypes, what is kept the parameters'.
        def ask(updates, last, inner_state):
            new, inner_state = inner.update(updates, inner_state, params, **extra_args)
            return _as(new, updates), _as(new, last), inner_state

        def repeat(updates, last, inner_state):
            return _as(last, updates), last, inner_state

        new, last, inner_state = jax.lax.cond(
            due, ask, repeat, updates, state.last, state.inner
        )
        age = jnp.where(due, 1, state.age + 1)
        asked = state.asked + due
        return new, LazyState(age, asked, averages, count, last, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _as(tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of another."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)
