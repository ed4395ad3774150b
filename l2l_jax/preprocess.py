"""What the two learned optimizers see of a gradient, coordinate by coordinate."""

import jax
import jax.numpy as jnp


def log_and_sign(
    g: jax.Array, p: float = 10.0, form: str = "clip"
) -> tuple[jax.Array, jax.Array]:
    """Log-and-sign preprocessing of DMoptimizer.

    The form that the RNNprop authors trained, "clip"::

        ( max(log|g|, -p) / p,  clip(e^p·g, -1, 1) )

    and the one that the 2016 paper writes, "cases"::

        ( log|g| / p, sgn(g) )   if |g| >= e^-p
        ( -1,         e^p·g )    otherwise

    They are the same function; only the rounding at the border `|g| = e^-p` differs.

    Args:
      g: gradient, any shape, floating. Zeros are allowed: they give (-1, 0), and the
        derivatives there are finite.
      p: the positive number that fixes the border, e^-p.
      form: "clip" or "cases".

    Returns:
      The two inputs, each of g's shape and dtype.

    Example:
      >>> a, b = log_and_sign(jnp.array([1.0, -1.0, 0.0]), p=10.0)
      >>> a.tolist(), b.tolist()
      ([0.0, 0.0, -1.0], [1.0, -1.0, 0.0])

    References:
      Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
      <https://arxiv.org/abs/1606.04474>`_, 2016, appendix A.
    """
    size = jnp.abs(g)
    # The logarithm's derivative at 0 is infinite, and 0 times it NaN, so the branch not
    # taken gets a harmless argument. Tiny but non-zero |g| keep their exact logarithm.
    is_zero = size == 0
    log = jnp.where(is_zero, -jnp.inf, jnp.log(jnp.where(is_zero, 1, size)))
    e_p = jnp.exp(jnp.asarray(p, g.dtype))
    if form == "clip":
        return jnp.maximum(log, -p) / p, jnp.clip(e_p * g, -1, 1)
    large = size >= 1 / e_p
    return jnp.where(large, log / p, -1), jnp.where(large, jnp.sign(g), e_p * g)


def relative_gradients(
    g: jax.Array, m_hat: jax.Array, v_hat: jax.Array, eps: float = 1e-8
) -> tuple[jax.Array, jax.Array]:
    """The two inputs of RNNprop.

    With the bias-corrected moments m̂ and v̂ of Adam::

        g̃ = g / (v̂^(1/2) + ε)
        m̃ = m̂ / (v̂^(1/2) + ε)

    Args:
      g: gradient, any shape, floating.
      m_hat: bias-corrected first moment, same shape.
      v_hat: bias-corrected second moment, same shape, not negative. Where it is 0, so
        far only zero gradients were seen: both inputs are 0 and so are their
        derivatives with respect to v̂.
      eps: added outside of the root.

    Returns:
      (g̃, m̃), in the order in which the network takes them.

    Example:
      >>> one = jnp.array([1.0])
      >>> [float(x[0]) for x in relative_gradients(2 * one, one, 4 * one, eps=0.0)]
      [1.0, 0.5]

    References:
      Lv, Jiang, Li, `Learning Gradient Descent: Better Generalization and Longer
      Horizons <https://arxiv.org/abs/1703.03633>`_, 2017, equations 8 and 9.
    """
    seen = v_hat > 0
    # The root's derivative at 0 is infinite: keep 0 out of it, not only out of the
    # result, or the chain rule multiplies 0 by infinity.
    root = jnp.where(seen, jnp.sqrt(jnp.where(seen, v_hat, 1)), 0)
    size = root + eps
    nonzero = size > 0  # ε may be 0
    scale = jnp.where(nonzero, 1 / jnp.where(nonzero, size, 1), 0)
    return g * scale, m_hat * scale
