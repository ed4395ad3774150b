"""What a rule does: its step as a function of the gradients that it has seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax.checks import check_number, check_size


class Response(NamedTuple):
    """The step of a coordinatewise rule at one age.

    Attributes:
      mean: float (N,), mean of the gradients before, in their root mean square.
      now: float (M,), the gradient of the step, in the same unit.
      step: float (M, N), Δθ.
    """

    mean: np.ndarray
    now: np.ndarray
    step: np.ndarray


def step_response(
    tx: optax.GradientTransformation,
    age: int,
    *,
    scale: float = 1.0,
    reach: float = 2.0,
    points: int = 41,
    draws: int = 16,
    seed: int = 0,
) -> Response:
    r"""The step that a rule makes after gradients of a given mean, by the gradient now.

    Each point (μ, γ) is a coordinate of its own, with the gradients::

        g_s = scale·(μ + sqrt(1 - μ²)·σ_s)   for s < age,  σ_s = ±1 at random
        g_age = scale·γ

    whose root mean square is `scale` whatever μ is, so that m̃ of RNNprop, and the
    direction of Adam, is about μ. What is returned is Δθ_age, averaged over draws of σ.

    Args:
      tx: a coordinatewise transformation, learned or not; it starts at θ = 0. Another
        one, such as Longrun, sees all points of all draws as the coordinates of one θ.
      age: t, number of gradients seen before, at least 0.
      scale: of all gradients, above 0. Relative rules do not see it.
      reach: γ goes from -reach to reach.
      points: of μ and of γ.
      draws: of σ.
      seed: of σ.

    Returns:
      A `Response`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      The step of SGD is what it is, whatever came before:

      >>> import optax
      >>> response = step_response(optax.sgd(0.1), age=3, points=5)
      >>> [round(float(step), 2) for step in response.step[:, 0]]
      [0.2, 0.1, -0.0, -0.1, -0.2]
    """
    check_number("age", age, 0)
    check_number("scale", scale, 0, low_open=True)
    check_number("reach", reach, 0, low_open=True)
    check_size("points", points)
    check_size("draws", draws)
    tx = optax.with_extra_args_support(tx)
    mean = np.linspace(-1, 1, points)
    now = np.linspace(-reach, reach, points)

    def advance(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params, value=jnp.float32(1.0))
        return (optax.apply_updates(params, updates), state), updates

    @jax.jit
    def run(mean, now, signs):
        mean, now = jnp.broadcast_arrays(mean[None, None, :], now[None, :, None])
        mean, now = (jnp.tile(x, (draws, 1, 1)) for x in (mean, now))
        zeros = jnp.zeros_like(mean)

        def past(carry, sign):
            wave = jnp.sqrt(1 - mean**2) * sign[:, None, None]
            return advance(carry, scale * (mean + wave))

        carry, _ = jax.lax.scan(past, (zeros, tx.init(zeros)), signs)
        return jnp.mean(advance(carry, scale * now)[1], axis=0)

    signs = jax.random.rademacher(jax.random.key(seed), (int(age), draws), jnp.float32)
    step = run(jnp.float32(mean), jnp.float32(now), signs)
    return Response(mean, now, np.asarray(step))
