"""Meta-training as one compiled program an iteration."""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax import processes
from l2l_jax.blockwise import AXIS, my_part, on_vector
from l2l_jax.checks import check_size, check_type
from l2l_jax.estimators import bptt
from l2l_jax.meta import (
    MetaState,
    SegmentMetrics,
    check_task,
    meta_step,
    segment_weights,
)
from l2l_jax.trees import over_episodes
from l2l_jax.types import Estimator, LearnedOptimizer, PyTree, Task

EPISODES = "episodes"


class MetaTrainer(NamedTuple):
    """Meta-training as pure functions.

    Attributes:
      init: `init(key) -> MetaState`.
      iterate: `iterate(state, key, num_segments) -> (MetaState, metrics)`, compiled:
        one episode (or `meta_batch` at once) of `num_segments` segments, φ updated
        after each. `num_segments`, a positive int or an array, may change without a new
        compilation. `metrics` is a dict of scalars: "train_loss", "gradient_norm",
        "update_norm" are means over the segments that were not skipped (NaN if none was
        left), "skipped" counts the others.
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
    log_loss: bool = False,
    estimator: Estimator | None = None,
    meta_batch: int = 1,
    meta_seeds: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    block: int | None = None,
) -> MetaTrainer:
    """Meta-training of an optimizer on a task, φ updated after every segment.

    Args:
      task: the optimizee, with Random Scaling and convex parts already in it.
      optimizer: whose φ is learned.
      outer: any optax transformation; both papers: Adam with rate 1e-4. A learned one
        too, `load_pretrained("rnnprop").transform(step_size=1e-2)`; one that learns
        itself is `weights_in_state`.
      segment_length: T, steps between two updates of φ.
      weights: of the losses of a segment, as in `segment_weights`; "octaves" for an
        estimator of `several_losses`.
      log_loss: whether the meta-loss is log L, so that a segment late in an episode,
        where losses are small, counts as much as an early one. L must be positive; a
        segment where it is not is skipped.
      estimator: of the meta-gradient, one of `l2l_jax.estimators`; None: `bptt()`,
        truncated back-propagation to first order, as both papers. Those without
        derivatives want a large `meta_batch`, and allow long segments.
      meta_batch: number of episodes at once, their meta-losses averaged.
      meta_seeds: None, or how many trainings there are at once, each with its own φ,
        in one vmapped program, which a large GPU has room for. `init` and `iterate`
        then take as many keys (S,); states, metrics and, if it is an array,
        `num_segments` have that leading axis.
      devices: among which the work is divided; default: the first one. D devices are
        gcd(meta_batch, D) groups of neighbours, each with as many of the episodes as
        any other; the devices of a group divide the coordinates. So where D divides
        meta_batch each device has episodes of its own, and where meta_batch is 1 all
        divide the coordinates of one. D changes only the rounding. The devices may be
        those of several processes (`jax.distributed`): then each process makes the
        same trainer, from the same data, and calls it alike. For a CPU,
        `jax.config.update("jax_num_cpu_devices", n)` at the start of a program makes n
        of its cores devices: the fastest way to use them.
      block: coordinates differentiated together in that case, at most; default: as
        many as stay in a processor's cache on a CPU, all elsewhere. Changes only the
        rounding.

    Returns:
      A `MetaTrainer`.

    Raises:
      ValueError: an argument is out of range; the coordinates would have to be divided,
        but the optimizer is not coordinatewise, or the estimator not `bptt()`; or the
        task's data are not the same in all processes.
      TypeError: the task does not keep its contract, or an argument is not of its
        type.

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
    check_type("task", task, Task)
    a_family = "a LearnedOptimizer, as learned_optimizer gives"
    check_type("optimizer", optimizer, LearnedOptimizer, a_family)
    a_transformation = "an optax.GradientTransformation, such as optax.adam(1e-3)"
    check_type("outer", outer, optax.GradientTransformation, a_transformation)
    check_size("segment_length", segment_length)
    check_size("meta_batch", meta_batch)
    if meta_seeds is not None:
        check_size("meta_seeds", meta_seeds)
    of_steps = segment_weights(weights, segment_length)
    estimator = bptt() if estimator is None else estimator
    if not isinstance(estimator, Estimator):
        raise TypeError(
            f"estimator must be one of l2l_jax.estimators, got {estimator!r}"
        )
    if of_steps.ndim > 1 and not estimator.several_losses:
        raise ValueError(
            f"weights {weights!r} are several losses, which back-propagation does not"
            " take"
        )
    check_task(task)

    if devices is not None:
        _check_devices(devices)
    home = devices[0] if devices else None
    devices = list(devices or jax.local_devices()[:1])
    block = block or (1024 if devices[0].platform == "cpu" else sys.maxsize)
    blockwise = estimator.blockwise if optimizer.coordinatewise else None
    groups = math.gcd(meta_batch, len(devices))
    parts = len(devices) // groups
    if blockwise is not None:
        estimator = blockwise(block, parts > 1)
    elif parts > 1:
        raise ValueError(
            f"the number of devices must divide meta_batch={meta_batch}, got"
            f" {len(devices)}: coordinates are divided only if the optimizer is"
            " coordinatewise and the estimator bptt() to first order"
        )
    if optimizer.coordinatewise:
        task = on_vector(task, parts)

    def init(key: jax.Array) -> MetaState:
        phi = optimizer.init(key)
        return MetaState(phi, outer.init(phi), jnp.zeros([], jnp.int32))

    # The data are an argument, or they would be compiled in as a constant.
    def iteration(
        data: PyTree, state: MetaState, key: jax.Array, num_segments: jax.Array
    ) -> tuple[MetaState, dict[str, Any]]:
        here = task._replace(data=data)

        def start(key):
            return estimator.start(state.phi, optimizer.transform, here, key)

        def gradient(phi, episode):
            return estimator.gradient(
                phi, optimizer.transform, here, episode, of_steps, log_loss
            )

        if meta_batch > 1:
            key = jax.random.split(key, meta_batch)
        if groups > 1:
            key = my_part(key, EPISODES)
        if meta_batch > groups:
            # One after the other: vmapped, random draws compile twice as long.
            start = functools.partial(jax.lax.map, start)
            gradient = _mean_over_episodes(gradient)
        elif meta_batch > 1:
            key = key[0]
        if groups > 1:
            gradient = _mean_over_groups(gradient)

        def segment(_, carry):
            state, episodes, sums = carry
            (loss, episodes), slope = gradient(state.phi, episodes)
            state, metrics = meta_step(outer, state, loss, slope)
            return state, episodes, _add_good(sums, metrics)

        zero = jnp.zeros([])
        zeros = SegmentMetrics(zero, zero, zero, jnp.zeros([], int))
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

    if meta_seeds is not None:
        init = jax.vmap(init)
        iteration = jax.vmap(iteration, in_axes=(None, 0, 0, 0))

    placement: Any = home
    if len(devices) > 1:
        if len(set(devices)) < len(devices):
            raise ValueError(f"devices must be different ones, got {devices}")
        # Neighbours, of one host if it has as many, divide the coordinates: they talk
        # at every step, the groups once a segment.
        mesh = jax.sharding.Mesh(
            np.array(devices).reshape(groups, parts), (EPISODES, AXIS)
        )
        everywhere = jax.sharding.PartitionSpec()
        iteration = jax.shard_map(
            iteration,
            mesh=mesh,
            in_specs=everywhere,
            out_specs=everywhere,
            check_vma=False,
        )
        placement = jax.sharding.NamedSharding(mesh, everywhere)

    shared = any(device.process_index != jax.process_index() for device in devices)
    put = processes.replicate if shared else jax.device_put
    if shared:
        processes.check_same("the task's data", task.data)
    data = put(task.data, placement)
    compiled = jax.jit(iteration, compiler_options=_options(devices[0]))

    def iterate(state: MetaState, key: jax.Array, num_segments: int):
        if not hasattr(num_segments, "dtype"):
            check_size("num_segments", num_segments)
        # A state that lies elsewhere, as the first one does, would compile for itself.
        number = jnp.asarray(num_segments, jnp.int32)
        if meta_seeds is not None:
            number = jnp.broadcast_to(number, meta_seeds)
        args = state, key, number
        return compiled(data, *put(args, placement))

    return MetaTrainer(init, iterate, compiled)


def _options(device: jax.Device) -> dict[str, str] | None:
    """Vectors as wide as the CPU has them: a quarter faster here.

    An option of XLA's is no promise: where it is not known, only speed is lost.
    """
    options = {"xla_cpu_prefer_vector_width": "512"}
    if device.platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def _mean_over_episodes(gradient: Callable) -> Callable:
    """`gradient(φ, episode)` for a batch of episodes, loss and slope averaged."""

    def mean_gradient(phi, episodes):
        of_phi = functools.partial(gradient, phi)
        (losses, after), slopes = over_episodes(of_phi)(episodes)
        loss, slope = jax.tree.map(lambda x: jnp.mean(x, 0), (losses, slopes))
        return (loss, after), slope

    return mean_gradient


def _mean_over_groups(gradient: Callable) -> Callable:
    """`gradient(φ, episode)` on each device of `EPISODES`, loss and slope averaged."""

    def mean_gradient(phi, episodes):
        (loss, after), slope = gradient(phi, episodes)
        loss, slope = jax.lax.pmean((loss, slope), EPISODES)
        return (loss, after), slope

    return mean_gradient


def _add_good(sums: SegmentMetrics, new: SegmentMetrics) -> SegmentMetrics:
    """Adds the numbers of a segment up, or only counts it if it was skipped."""
    kept = optax.tree.where(new.skipped, sums, jax.tree.map(jnp.add, sums, new))
    return kept._replace(skipped=sums.skipped + new.skipped)


def _check_devices(devices: Any) -> None:
    """Raises TypeError unless it is a list of devices."""
    if not isinstance(devices, (list, tuple)) or not all(
        isinstance(device, jax.Device) for device in devices
    ):
        raise TypeError(
            f"devices must be a list such as jax.local_devices()[:2], got {devices!r}"
        )
