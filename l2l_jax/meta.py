"""Meta-training, from top to bottom: how the weights φ of an optimizer are learned.

An episode is one training of an optimizee from θ_0 on. It is cut into segments; each is
unrolled in one `lax.scan`, its meta-loss differentiated with respect to φ, φ updated,
and the next segment goes on from where this one ended, with no gradient across the cut:
truncated back-propagation through time. The functions stand in the order in which data
flow, each uses only those above it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax.checks import check_floating
from l2l_jax.trees import all_finite
from l2l_jax.types import PyTree, Task


class Episode(NamedTuple):
    """An optimizee on its way.

    Attributes:
      key: names the episode's minibatches.
      instance: the episode's random constants, from `Task.sample`.
      params: θ_t.
      opt_state: state of the transformation.
      step: int32 scalar, t.
    """

    key: jax.Array
    instance: PyTree
    params: PyTree
    opt_state: PyTree
    step: jax.Array


class MetaState(NamedTuple):
    """What meta-training carries from iteration to iteration.

    Attributes:
      phi: φ, the weights of the learned optimizer.
      outer_state: state of the outer optimizer, which updates φ.
      step: int32 scalar, episodes (iterations) done.
    """

    phi: PyTree
    outer_state: PyTree
    step: jax.Array


def start_episode(
    task: Task, tx: optax.GradientTransformation, key: jax.Array
) -> Episode:
    """A new episode: its constants and θ_0 drawn, the optimizer's state fresh.

    Args:
      task: the optimizee.
      tx: the transformation that will optimize it.
      key: all the randomness of the episode; equal keys give the same instance, θ_0 and
        minibatches whatever `tx` is.

    Returns:
      The episode at step 0.
    """
    instance_key, init_key, batch_key = jax.random.split(key, 3)
    instance = task.sample(instance_key)
    params = task.init(init_key, instance)
    return Episode(
        batch_key, instance, params, tx.init(params), jnp.zeros([], jnp.int32)
    )


@jax.custom_jvp
def _with_slope(params: PyTree, loss: jax.Array, g: PyTree) -> jax.Array:
    """The loss, g being its derivative with respect to the parameters."""
    del params, g
    return loss


@_with_slope.defjvp
def _with_slope_jvp(primals, tangents):
    _, loss, g = primals
    return loss, optax.tree.vdot(g, tangents[0]).astype(loss.dtype)


def inner_step(
    task: Task,
    tx: optax.GradientTransformation,
    episode: Episode,
    batch: PyTree,
    second_order: bool = False,
) -> tuple[Episode, jax.Array, PyTree]:
    """One step of the optimizee, and the only place where derivatives are stopped.

    ::

        g_t = ∇f_t(θ_t)
        Δθ_t, h_{t+1} = tx(g_t, h_t)
        θ_{t+1} = θ_t + Δθ_t

    Args:
      task: the optimizee.
      tx: the transformation; one with extra arguments gets the loss as `value`.
      episode: at step t.
      batch: minibatch of step t.
      second_order: whether g_t depends on θ_t for the meta-gradient. If not, g_t is a
        constant, as in both papers.

    Returns:
      The episode at step t + 1, f_t(θ_t), the loss before the update, and g_t.
    """

    def f(params):
        return task.loss(params, task.data, episode.instance, batch)

    with_value = optax.with_extra_args_support(tx)

    def update(g, value, opt_state, params):
        updates, opt_state = with_value.update(g, opt_state, params, value=value)
        return optax.apply_updates(params, updates), opt_state

    # To first order the loss is differentiated here and never again: no second pass
    # back through the optimizee, and nothing of it to be kept.
    params = episode.params
    loss, g = jax.value_and_grad(f)(
        params if second_order else jax.lax.stop_gradient(params)
    )
    if not second_order:
        loss = _with_slope(params, loss, g)
    value = jax.lax.stop_gradient(loss)
    # Recomputing the LSTM's gates on the way back is faster than storing them: the
    # unroll is bound by memory.
    params, opt_state = jax.checkpoint(update, prevent_cse=False)(
        g, value, episode.opt_state, episode.params
    )
    after = episode._replace(params=params, opt_state=opt_state, step=episode.step + 1)
    return after, loss, g


def unroll(
    task: Task,
    tx: optax.GradientTransformation,
    episode: Episode,
    length: int,
    second_order: bool = False,
) -> tuple[Episode, jax.Array]:
    """A segment: `length` steps in one `lax.scan`.

    Args:
      task: the optimizee.
      tx: the transformation.
      episode: where the segment starts.
      length: number of steps, static.
      second_order: as in `inner_step`.

    Returns:
      The episode after the segment, and the losses (length,), each before its update.

    Example:
      Learned or not, every transformation runs through this:

      >>> import jax, optax
      >>> from l2l_jax import quadratic_task, start_episode, unroll
      >>> task, tx = quadratic_task(), optax.sgd(0.01)
      >>> episode = start_episode(task, tx, jax.random.key(0))
      >>> episode, losses = unroll(task, tx, episode, 50)
      >>> losses.shape, bool(losses[-1] < losses[0]), int(episode.step)
      ((50,), True, 50)
    """
    batches = task.batches(
        episode.key, task.data, episode.instance, episode.step, length
    )

    def step(episode, batch):
        episode, loss, _ = inner_step(task, tx, episode, batch, second_order)
        return episode, loss

    return jax.lax.scan(step, episode, batches, length)


# Of an episode, for which the meta-loss "octaves" has a part each.
OCTAVES = 5


def segment_weights(weights: str | Sequence[float], length: int) -> np.ndarray:
    """The weights w_t of the losses of one segment in the meta-loss.

    Args:
      weights: "last" (w_T = 1, all others 0: RNNprop), "mean" (w_t = 1/T: DMoptimizer),
        "half" (the mean of the last T/2, rounded up), "octaves" (five means at once, of
        the steps T/2 to T, T/4 to T/2, and so on), or the numbers themselves.
      length: T, steps of a segment; for "octaves" at least 32.

    Returns:
      Float array (T,); (5, T) for "octaves".

    Raises:
      ValueError: an unknown word, too few steps for it, or not T finite numbers of
        which one is not 0.

    Example:
      >>> segment_weights("last", 3).tolist()
      [0.0, 0.0, 1.0]
      >>> (segment_weights("octaves", 64) > 0).sum(1).tolist()
      [32, 16, 8, 4, 2]
    """
    if isinstance(weights, str):
        if weights == "last":
            return np.eye(length)[-1]
        if weights == "mean":
            return np.full(length, 1 / length)
        if weights == "half":
            second = np.arange(length) >= length // 2
            return second / second.sum()
        if weights == "octaves" and length >= 2**OCTAVES:
            ends = np.array([length // 2**k for k in range(OCTAVES + 1)])
            steps = np.arange(length)
            inside = (steps >= ends[1:, None]) & (steps < ends[:-1, None])
            return inside / inside.sum(1, keepdims=True)
    else:
        array = np.asarray(weights, float)
        if array.shape == (length,) and np.isfinite(array).all() and array.any():
            return array
    raise ValueError(
        f"weights must be 'last', 'mean', 'half', 'octaves' of at least {2**OCTAVES}"
        f" steps or {length} finite numbers, not all 0, got {weights!r}"
    )


def meta_loss(
    phi: PyTree,
    transform: Callable[[PyTree], optax.GradientTransformation],
    task: Task,
    episode: Episode,
    weights: jax.Array | np.ndarray,
    second_order: bool = False,
) -> tuple[jax.Array, Episode]:
    """Meta-loss of one segment, L(φ) = Σ_t w_t·f_t(θ_t).

    Args:
      phi: φ.
      transform: `transform(φ)` is the transformation.
      task: the optimizee.
      episode: where the segment starts. It does not depend on φ here: the truncation is
        that the caller hands in a constant.
      weights: w (T,), as many as the segment has steps; (K, T) for K sums at once.
      second_order: as in `inner_step`.

    Returns:
      L, () or (K,), and the episode after the segment.
    """
    after, losses = unroll(
        task, transform(phi), episode, jnp.shape(weights)[-1], second_order=second_order
    )
    weights = jnp.asarray(weights, losses.dtype)
    return jnp.matmul(weights, losses, precision="highest"), after


def meta_gradient(
    phi: PyTree,
    transform: Callable[[PyTree], optax.GradientTransformation],
    task: Task,
    episode: Episode,
    weights: jax.Array | np.ndarray,
    second_order: bool = False,
) -> tuple[tuple[jax.Array, Episode], PyTree]:
    """The meta-loss of one segment and its gradient; arguments as of `meta_loss`.

    Returns:
      ((L, the episode after the segment), ∂L/∂φ).
    """
    return jax.value_and_grad(meta_loss, has_aux=True)(
        phi, transform, task, episode, weights, second_order
    )


class SegmentMetrics(NamedTuple):
    """Scalars of one update of φ.

    Attributes:
      loss: L(φ) before the update.
      gradient_norm: Euclidean norm of ∂L/∂φ.
      update_norm: Euclidean norm of φ's change, 0 if it was skipped.
      skipped: bool, whether L, ∂L/∂φ or the change held a NaN or an infinity, and φ and
        the outer state were left as they were.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    update_norm: jax.Array
    skipped: jax.Array


def meta_step(
    outer: optax.GradientTransformation,
    state: MetaState,
    loss: jax.Array,
    gradient: PyTree,
) -> tuple[MetaState, SegmentMetrics]:
    """Updates φ with the outer optimizer, unless something is not finite.

    Args:
      outer: any optax transformation.
      state: before the update; its `step` counts episodes and stays.
      loss: the meta-loss L.
      gradient: ∂L/∂φ.

    Returns:
      The state after the update and what there is to log.
    """
    updates, outer_state = outer.update(gradient, state.outer_state, state.phi)
    good = all_finite(loss, gradient, updates)
    phi = optax.apply_updates(state.phi, updates)
    norm = optax.tree.norm
    metrics = SegmentMetrics(
        loss, norm(gradient), jnp.where(good, norm(updates), 0), jnp.logical_not(good)
    )
    phi, outer_state = optax.tree.where(
        good, (phi, outer_state), (state.phi, state.outer_state)
    )
    return MetaState(phi, outer_state, state.step), metrics


def check_task(task: Task) -> None:
    """Refuses a task that does not keep its contract, on shapes alone.

    Raises:
      TypeError: a field fails, the loss is not a real floating scalar, the parameters
        are not floating arrays, or minibatches lack the leading axis; the message says
        which.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = jax.ShapeDtypeStruct((), jnp.int32)
    instance = jax.eval_shape(task.sample, key)
    params = jax.eval_shape(task.init, key, instance)
    check_floating(params, "task.init must return")
    batches = jax.eval_shape(
        lambda k, d, i, s: task.batches(k, d, i, s, 2), key, task.data, instance, start
    )
    for leaf in jax.tree.leaves(batches):
        if leaf.shape[:1] != (2,):
            raise TypeError(
                "task.batches must return arrays whose leading axis is length: with"
                f" length=2 it returned shape {leaf.shape}"
            )
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches
    )
    loss: Any = jax.eval_shape(task.loss, params, task.data, instance, batch)
    shape, dtype = getattr(loss, "shape", None), getattr(loss, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "task.loss must return a real floating scalar, got"
            f" {dtype} of shape {shape}"
        )
