"""Estimators of the meta-gradient that need no derivative: weights are perturbed.

L is smoothed over weights near φ, and the smoothed one has a gradient that needs no
more than losses::

    ∇ E[L(φ + σε)] = E[ε·(L(φ + σε) - L(φ - σε))] / (2σ),   ε ~ N(0, 1)

Nothing is held constant and nothing explodes, however long the segment; the estimate is
noisy instead. `l2l_jax.estimators` has them all in one table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from l2l_jax.checks import check_number, check_size
from l2l_jax.meta import Episode, meta_loss, start_episode
from l2l_jax.types import Estimator, PyTree, Task, Transform


def evolution(sigma: float, pairs: int = 1) -> Estimator:
    r"""Evolution strategies on each segment by itself: smoothed, blind beyond it.

    With ε_i ~ N(0, 1) drawn anew for every segment, and N antithetic pairs that all
    start from the same θ and h::

        slope_k = 1/(2σN)·Σ_i ε_i·(L_k(φ + σε_i) - L_k(φ - σε_i))

    The next segment goes on from where φ + σε_1 ended.

    Args:
      sigma: σ > 0, how far from φ.
      pairs: N, pairs of rollouts an episode.

    Returns:
      An `Estimator`; its state is the `Episode`. With `log_loss`, differences are cut
      at 1, a rollout whose loss is not finite counts as the worse one, and the loss is
      the mean of the finite ones.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> import jax, optax
      >>> from l2l_jax import estimators, learned_optimizer, meta_trainer
      >>> from l2l_jax import quadratic_task
      >>> trainer = meta_trainer(
      ...     quadratic_task(),
      ...     learned_optimizer("longrun"),
      ...     optax.adam(1e-2),
      ...     estimator=estimators.evolution(0.1),
      ... )
      >>> state = trainer.init(jax.random.key(0))
      >>> state, _ = trainer.iterate(state, jax.random.key(1), num_segments=2)
      >>> bool((state.phi.factor != 0).all())
      True

    References:
      Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
      Learning <https://arxiv.org/abs/1703.03864>`_, 2017, section 2.
    """
    check_number("sigma", sigma, 0, low_open=True)
    check_size("pairs", pairs)

    def gradient(phi, transform, task, episode, weights, log_loss=False):
        loss = _perturbed_loss(phi, sigma, transform, task, weights, log_loss)
        pair = jax.vmap(loss, (0, None, None))
        epsilon = _draw(phi, episode.key, episode.step, pairs)
        if pairs == 1:  # An axis of length 1 would be the same but for rounding.
            losses, after = pair(_SIGNS, epsilon[0], episode)
        else:
            losses, after = jax.vmap(pair, (None, 0, None))(_SIGNS, epsilon, episode)
            after = jax.tree.map(lambda x: x[0], after)
        slope = _antithetic(phi, losses.reshape(pairs, 2), epsilon, sigma, log_loss)
        return (_mean(losses, log_loss), jax.tree.map(lambda x: x[0], after)), slope

    return Estimator(_start, gradient)


class Particles(NamedTuple):
    """Optimizees side by side in one episode, each with weights of its own near φ.

    Attributes:
      episode: key, instance and step are those of all; params and opt_state have
        leading axes over particles: (P,), or (N, 2) for N pairs, + before -.
      total: (P, D) or (N, D), the sum in units of σ of the perturbations that each
        particle, or pair, has seen since the episode began; D numbers are in φ.
    """

    episode: Episode
    total: jax.Array


# A NumPy array, so that nothing is computed when this is imported.
_SIGNS = np.array([1.0, -1.0], np.float32)
# The axes of an episode that run over particles, for vmap: numbers in arrays' places.
_OF_EACH = Episode._make((None, None, 0, 0, None))


def persistent_evolution(sigma: float, pairs: int = 1) -> Estimator:
    r"""Persistent evolution strategies: unbiased for the whole episode.

    Every particle has an optimizee of its own, which goes on where it ended under its
    own perturbations. With ε_{k,i} ~ N(0, 1) drawn anew for every segment k::

        ξ_{k,i} = Σ_{j<=k} ε_{j,i}
        slope_k = 1/(2σN)·Σ_i ξ_{k,i}·(L_k(φ + σε_{1..k,i}) - L_k(φ - σε_{1..k,i}))

    For one φ throughout, Σ_k slope_k has as its mean the gradient of E[Σ_k L_k], with
    φ + σε_{k,i} at work in segment k: the perturbations of earlier segments are kept
    in ξ, and so is their part in later losses. Its variance has a term `k·|∂L_k|²`,
    since all of ξ is multiplied by every difference: where each segment has a gradient
    of its own direction, the noise grows against the signal with the number of
    segments.

    Args:
      sigma: σ > 0, how far from φ.
      pairs: N, antithetic pairs an episode; there are 2N optimizees in memory.

    Returns:
      An `Estimator`; its state is `Particles`. `log_loss` as of `evolution`, of each
      segment: unbiased for Σ_k log L_k as long as no difference is cut.

    Raises:
      ValueError: an argument is out of range.

    References:
      Vicol, Metz, Sohl-Dickstein, `Unbiased Gradient Estimation in Unrolled Computation
      Graphs with Persistent Evolution Strategies <https://arxiv.org/abs/2112.13835>`_,
      2021, section 4.
    """
    return _pairs_of_particles(sigma, pairs, anew=True)


def single_perturbation(sigma: float, pairs: int = 1) -> Estimator:
    r"""ES-Single: `persistent_evolution` with one perturbation for the whole episode.

    With ε_i ~ N(0, 1) drawn once, when the episode begins::

        slope_k = 1/(2σN)·Σ_i ε_i·(L_k(φ + σε_i) - L_k(φ - σε_i))

    where both sides of a pair go on from their own θ and h. For one φ throughout Σ_k
    slope_k is to the letter the estimate by evolution strategies over the episode as
    one segment: unbiased for the gradient of E[Σ_k L_k(φ + σε)], and cutting it into
    more segments adds no variance.

    Args:
      sigma: σ > 0, how far from φ.
      pairs: N, antithetic pairs an episode; there are 2N optimizees in memory.

    Returns:
      An `Estimator`; its state is `Particles`. `log_loss` as of `persistent_evolution`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Vicol, Kolter, Swersky, `Low-Variance Gradient Estimation in Unrolled Computation
      Graphs with ES-Single <https://arxiv.org/abs/2304.11153>`_, 2023; found at the
      same time by Li et al., `Variance-Reduced Gradient Estimation via Noise-Reuse in
      Online Evolution Strategies <https://arxiv.org/abs/2304.12180>`_.
    """
    return _pairs_of_particles(sigma, pairs, anew=False)


def score_function(sigma: float, particles: int = 2) -> Estimator:
    r"""The score-function estimator: REINFORCE over weights, with a baseline.

    φ is the mean of a Gaussian policy that draws the weights of an episode, w ~ N(φ,
    σ²), and ∂ log p(w)/∂φ = ε/σ. P particles draw once, when the episode begins, and
    each is measured against the mean of the others, which leaves the mean of the
    estimate as it is and takes off what all losses have in common::

        slope_k = 1/(σP)·Σ_i ε_i·(L_k(φ + σε_i) - 1/(P-1)·Σ_{j≠i} L_k(φ + σε_j))

    It is for the smoothed loss of `single_perturbation`, and so unbiased for the whole
    episode. A policy over updates would draw as many noises as the optimizee has
    coordinates and steps, and have a variance in proportion; one over weights draws D.
    Without the baseline this is one-sided evolution strategies, whose variance has a
    term D·(L/σ)². Beside pairs, P rollouts look at P directions instead of P/2: where
    L is straight within σ the variance is `(D + 1)·|∂L|²/(P - 1)`, that of P/2 pairs
    `(D + 1)·|∂L|²/(P/2)`. But what is even in ε, the curvature of L, cancels in a pair
    and adds to the variance here.

    Args:
      sigma: σ > 0, how far from φ.
      particles: P, at least 2, rollouts an episode; as many optimizees are in memory.

    Returns:
      An `Estimator`; its state is `Particles`. With `log_loss` the P - 1 differences of
      each particle are cut at 1, one by one, as `evolution` cuts its own.

    Raises:
      ValueError: an argument is out of range.

    References:
      Williams, `Simple statistical gradient-following algorithms for connectionist
      reinforcement learning <https://doi.org/10.1007/BF00992696>`_, 1992; over weights:
      Sehnke et al., `Parameter-exploring policy gradients
      <https://doi.org/10.1016/j.neunet.2009.12.004>`_, 2010.
    """
    check_number("sigma", sigma, 0, low_open=True)
    check_size("particles", particles)
    if particles < 2:
        raise ValueError(f"particles must be at least 2, got {particles}")

    def start(phi, transform, task, key):
        return _start_particles(phi, transform, task, key, (particles,))

    def gradient(phi, transform, task, state, weights, log_loss=False):
        episode, epsilon = state
        loss = _perturbed_loss(phi, sigma, transform, task, weights, log_loss)
        each = jax.vmap(loss, (None, 0, _OF_EACH), (0, _OF_EACH))
        losses, episode = each(1.0, epsilon, episode)
        differences = _difference(losses[:, None], losses[None, :], log_loss)
        advantages = jnp.sum(differences, axis=1) / (particles - 1)
        slope = _weighted_mean(phi, advantages / sigma, epsilon)
        return (_mean(losses, log_loss), Particles(episode, epsilon)), slope

    return Estimator(start, gradient)


def _pairs_of_particles(sigma: float, pairs: int, anew: bool) -> Estimator:
    """Antithetic pairs, each side with its optimizee; `anew`: ε in every segment."""
    check_number("sigma", sigma, 0, low_open=True)
    check_size("pairs", pairs)

    def start(phi, transform, task, key):
        state = _start_particles(phi, transform, task, key, (pairs, 2))
        return state._replace(total=jnp.zeros_like(state.total)) if anew else state

    def gradient(phi, transform, task, state, weights, log_loss=False):
        episode, total = state
        epsilon = _draw(phi, episode.key, episode.step, pairs) if anew else total
        total = total + epsilon if anew else total
        loss = _perturbed_loss(phi, sigma, transform, task, weights, log_loss)
        pair = jax.vmap(loss, (0, None, _OF_EACH), (0, _OF_EACH))
        each = jax.vmap(pair, (None, 0, _OF_EACH), (0, _OF_EACH))
        losses, episode = each(_SIGNS, epsilon, episode)
        slope = _antithetic(phi, losses, total, sigma, log_loss)
        return (_mean(losses, log_loss), Particles(episode, total)), slope

    return Estimator(start, gradient)


def _start(phi, transform, task, key):
    return start_episode(task, transform(phi), key)


def _start_particles(phi, transform, task, key, shape):
    """Equal optimizees with these leading axes, and the first perturbations."""
    episode = _start(phi, transform, task, key)
    total = _draw(phi, episode.key, episode.step, shape[0])
    params, opt_state = jax.tree.map(
        lambda x: jnp.broadcast_to(x, shape + jnp.shape(x)),
        (episode.params, episode.opt_state),
    )
    return Particles(episode._replace(params=params, opt_state=opt_state), total)


def _draw(phi: PyTree, key: jax.Array, step: jax.Array, number: int) -> jax.Array:
    """ε (number, D), by the episode's key and step."""
    # Other streams of the key draw minibatches, by numbers of their own; those of
    # minibatch 0xE5 of a task that draws numbers are not independent of these.
    key = jax.random.fold_in(jax.random.fold_in(key, 0xE5), step)
    # One draw: XLA compiles a generator for each.
    vector, _ = jax.flatten_util.ravel_pytree(phi)
    return jax.random.normal(key, (number, vector.size), vector.dtype)


def _perturbed_loss(
    phi: PyTree,
    sigma: float,
    transform: Transform,
    task: Task,
    weights: np.ndarray,
    log_loss: bool,
) -> Callable[[Any, jax.Array, Episode], tuple[jax.Array, Episode]]:
    """`loss(sign, ε, episode) -> (L, episode)` of a segment under φ ± σε, ε (D,)."""
    unravel = jax.flatten_util.ravel_pytree(phi)[1]

    def loss(sign, epsilon, episode):
        step = jnp.asarray(sign, epsilon.dtype) * sigma
        perturbed = jax.tree.map(lambda w, e: w + step * e, phi, unravel(epsilon))
        losses, after = meta_loss(perturbed, transform, task, episode, weights)
        return jnp.mean(jnp.log(losses) if log_loss else losses), after

    return loss


def _difference(a: jax.Array, b: jax.Array, log_loss: bool) -> jax.Array:
    """How much worse a is; of logarithms cut at 1, what is not finite being worst."""
    if not log_loss:
        return a - b
    a, b = (jnp.where(jnp.isfinite(x), x, jnp.inf) for x in (a, b))
    # Neither is finite: inf - inf is no number, and says nothing.
    return jnp.nan_to_num(jnp.clip(a - b, -1, 1))


def _mean(losses: jax.Array, log_loss: bool) -> jax.Array:
    """Of logarithms the finite ones' only: the others have their part in the slope."""
    return jnp.mean(losses, where=jnp.isfinite(losses) if log_loss else None)


def _antithetic(phi, losses, total, sigma, log_loss):
    """The slope from the losses (N, 2) of pairs."""
    differences = _difference(losses[:, 0], losses[:, 1], log_loss)
    return _weighted_mean(phi, differences / (2 * sigma), total)


def _weighted_mean(phi, factors: jax.Array, vectors: jax.Array) -> PyTree:
    """The mean over particles of factors (N,) times vectors (N, D), a tree like φ."""
    unravel = jax.flatten_util.ravel_pytree(phi)[1]
    # A loss may have a wider dtype than φ.
    factors = factors.astype(vectors.dtype)

    def mean(x):
        return jnp.mean(jax.vmap(jnp.multiply)(factors, x), axis=0)

    # Leaf by leaf, as it was when the weights that ship were learned.
    return jax.tree.map(mean, jax.vmap(unravel)(vectors))
