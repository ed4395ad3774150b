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

from l2l_jax.checks import check_floating, check_sizes
from l2l_jax.trees import all_finite
from l2l_jax.types import LearnedOptimizer, PyTree, Task


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
def _with_slope(value: jax.Array, slope: PyTree, at: PyTree) -> jax.Array:
    """`value`, whose derivative with respect to `at` is declared to be `slope`."""
    del slope, at
    return value


@_with_slope.defjvp
def _with_slope_jvp(primals, tangents):
    value, slope, _ = primals
    return value, optax.tree.vdot(slope, tangents[2]).astype(value.dtype)


def inner_step(
    task: Task,
    tx: optax.GradientTransformation,
    episode: Episode,
    batch: PyTree,
    second_order: bool = False,
) -> tuple[Episode, jax.Array]:
    """One step of the optimizee, and the only place where derivatives are stopped.

    ::

        g_t = ∇f_t(θ_t)
        Δθ_t, h_{t+1} = tx(g_t, h_t)
        θ_{t+1} = θ_t + Δθ_t

    Args:
      task: the optimizee.
      tx: the transformation.
      episode: at step t.
      batch: minibatch of step t.
      second_order: whether g_t depends on θ_t for the meta-gradient. If not, g_t is a
        constant, as in both papers, and ∂f_t/∂θ_t, which is g_t itself, is taken from
        the forward pass: nothing is propagated back through the optimizee.

    Returns:
      The episode at step t + 1 and f_t(θ_t), the loss before the update.
    """

    def f(params):
        return task.loss(params, task.data, episode.instance, batch)

    def update(g, opt_state, params):
        updates, opt_state = tx.update(g, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    if second_order:
        loss, g = jax.value_and_grad(f)(episode.params)
    else:
        at = jax.lax.stop_gradient(episode.params)
        value, g = jax.lax.stop_gradient(jax.value_and_grad(f)(at))
        loss = _with_slope(value, g, episode.params)
    # Recomputing the LSTM's gates on the way back is faster than storing them: the
    # unroll is bound by memory.
    params, opt_state = jax.checkpoint(update, prevent_cse=False)(
        g, episode.opt_state, episode.params
    )
    return episode._replace(
        params=params, opt_state=opt_state, step=episode.step + 1
    ), loss


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
        return inner_step(task, tx, episode, batch, second_order)

    return jax.lax.scan(step, episode, batches, length)


def segment_weights(weights: str | Sequence[float], length: int) -> np.ndarray:
    """The weights w_t of the losses of one segment in the meta-loss.

    Args:
      weights: "last" (w_T = 1, all others 0: RNNprop), "mean" (w_t = 1/T: DMoptimizer),
        or the numbers themselves.
      length: T, steps of a segment.

    Returns:
      Float array (T,).

    Raises:
      ValueError: an unknown word, or not T finite numbers of which one is not 0.

    Example:
      >>> segment_weights("last", 3).tolist()
      [0.0, 0.0, 1.0]
    """
    if isinstance(weights, str):
        if weights == "last":
            return np.eye(length)[-1]
        if weights == "mean":
            return np.full(length, 1 / length)
    else:
        array = np.asarray(weights, float)
        if array.shape == (length,) and np.isfinite(array).all() and array.any():
            return array
    raise ValueError(
        f"weights must be 'last', 'mean' or {length} finite numbers, not all 0, got"
        f" {weights!r}"
    )


def meta_loss(
    phi: PyTree,
    transform: Callable[[PyTree], optax.GradientTransformation],
    task: Task,
    episode: Episode,
    weights: jax.Array,
    second_order: bool = False,
) -> tuple[jax.Array, Episode]:
    """Meta-loss of one segment, L(φ) = Σ_t w_t·f_t(θ_t).

    Args:
      phi: φ.
      transform: `transform(φ)` is the transformation.
      task: the optimizee.
      episode: where the segment starts. It does not depend on φ here: the truncation is
        that the caller hands in a constant.
      weights: w (T,), as many as the segment has steps.
      second_order: as in `inner_step`.

    Returns:
      L, and the episode after the segment.
    """
    after, losses = unroll(
        task, transform(phi), episode, len(weights), second_order=second_order
    )
    return jnp.vdot(jnp.asarray(weights, losses.dtype), losses), after


def meta_gradient(
    phi: PyTree,
    transform: Callable[[PyTree], optax.GradientTransformation],
    task: Task,
    episode: Episode,
    weights: jax.Array,
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
      loss: L.
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


class MetaTrainer(NamedTuple):
    """Meta-training as pure functions.

    Attributes:
      init: `init(key) -> MetaState`.
      iterate: `iterate(state, key, num_segments) -> (MetaState, metrics)`, compiled:
        one episode (or `meta_batch` at once) of `num_segments` segments, φ updated
        after each. `num_segments` may change without a new compilation. `metrics` is a
        dict of scalars: "train_loss", "gradient_norm", "update_norm" are means over the
        segments that were not skipped (NaN if none was left), "skipped" counts the
        others.
      program: what `iterate` calls with the task's data in front, for those who want to
        lower it: `program(data, state, key, num_segments)`.
    """

    init: Callable[[jax.Array], MetaState]
    iterate: Callable[[MetaState, jax.Array, int], tuple[MetaState, dict[str, Any]]]
    program: Callable[..., tuple[MetaState, dict[str, Any]]]


def meta_trainer(
    task: Task,
    optimizer: LearnedOptimizer,
    outer: optax.GradientTransformation,
    *,
    segment_length: int = 20,
    weights: str | Sequence[float] = "last",
    meta_batch: int = 1,
    second_order: bool = False,
) -> MetaTrainer:
    """Meta-training of an optimizer on a task by truncated back-propagation.

    Args:
      task: the optimizee, with Random Scaling and convex parts already in it.
      optimizer: whose φ is learned.
      outer: any optax transformation; both papers: Adam with rate 1e-4.
      segment_length: T, steps between two updates of φ.
      weights: of the losses of a segment, as in `segment_weights`.
      meta_batch: number of episodes at once, their meta-losses averaged.
      second_order: whether second derivatives of the optimizee are kept.

    Returns:
      A `MetaTrainer`.

    Raises:
      ValueError: an argument is out of range.
      TypeError: the task does not keep its contract.

    Example:
      >>> import jax, optax
      >>> from l2l_jax import learned_optimizer, meta_trainer, quadratic_task
      >>> trainer = meta_trainer(
      ...     quadratic_task(), learned_optimizer("rnnprop"), optax.adam(1e-3)
      ... )
      >>> state = trainer.init(jax.random.key(0))
      >>> for key in jax.random.split(jax.random.key(1), 3):
      ...     state, metrics = trainer.iterate(state, key, num_segments=5)
      >>> int(state.step), sorted(metrics)
      (3, ['gradient_norm', 'skipped', 'train_loss', 'update_norm'])

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 5; Andrychowicz et al., `Learning to learn by gradient descent by
      gradient descent <https://arxiv.org/abs/1606.04474>`_, 2016, section 2.
    """
    check_sizes("segment_length", (segment_length,))
    check_sizes("meta_batch", (meta_batch,))
    weights = segment_weights(weights, segment_length)
    check_task(task)

    # The rule works coordinate by coordinate, so one long vector is the same as the
    # leaves one by one, and several times fewer and larger operations.
    def transform(phi):
        return optax.flatten(optimizer.transform(phi))

    def init(key: jax.Array) -> MetaState:
        phi = optimizer.init(key)
        return MetaState(phi, outer.init(phi), jnp.zeros([], jnp.int32))

    # The data are an argument, or they would be compiled in as a constant.
    def iteration(
        data: PyTree, state: MetaState, key: jax.Array, num_segments: jax.Array
    ) -> tuple[MetaState, dict[str, Any]]:
        here = task._replace(data=data)

        def start(key):
            return start_episode(here, transform(state.phi), key)

        def gradient(phi, episode):
            return meta_gradient(phi, transform, here, episode, weights, second_order)

        if meta_batch > 1:
            key = jax.random.split(key, meta_batch)
            start, gradient = jax.vmap(start), _mean_over_episodes(gradient)

        def segment(_, carry):
            state, episodes, sums = carry
            (loss, episodes), slope = gradient(state.phi, episodes)
            state, metrics = meta_step(outer, state, loss, slope)
            return state, episodes, _add_good(sums, metrics)

        zeros = SegmentMetrics(*(jnp.zeros([]) for _ in range(3)), jnp.zeros([], int))
        state, _, sums = jax.lax.fori_loop(
            0, num_segments, segment, (state, start(key), zeros)
        )
        good = num_segments - sums.skipped
        return state._replace(step=state.step + 1), {
            "train_loss": sums.loss / good,
            "gradient_norm": sums.gradient_norm / good,
            "update_norm": sums.update_norm / good,
            "skipped": sums.skipped,
        }

    compiled = jax.jit(iteration)

    def iterate(state: MetaState, key: jax.Array, num_segments: int):
        return compiled(task.data, state, key, jnp.asarray(num_segments, jnp.int32))

    return MetaTrainer(init, iterate, compiled)


def _mean_over_episodes(gradient: Callable) -> Callable:
    """`gradient(φ, episode)` for a batch of episodes, loss and slope averaged."""

    def mean_gradient(phi, episodes):
        (losses, after), slopes = jax.vmap(gradient, (None, 0))(phi, episodes)
        loss, slope = jax.tree.map(lambda x: jnp.mean(x, 0), (losses, slopes))
        return (loss, after), slope

    return mean_gradient


def _add_good(sums: SegmentMetrics, new: SegmentMetrics) -> SegmentMetrics:
    """Adds the numbers of a segment up, or only counts it if it was skipped."""
    kept = optax.tree.where(new.skipped, sums, jax.tree.map(jnp.add, sums, new))
    return kept._replace(skipped=sums.skipped + new.skipped)


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
    loss = jax.eval_shape(task.loss, params, task.data, instance, batch)
    shape, dtype = getattr(loss, "shape", None), getattr(loss, "dtype", None)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "task.loss must return a real floating scalar, got"
            f" {dtype} of shape {shape}"
        )
