"""Estimates of the inverse Hessian as a memory: how one is read, and written into."""

import jax
import jax.numpy as jnp


def read_memory(scale: jax.Array, memory: jax.Array, r: jax.Array) -> jax.Array:
    """M·r for M = γ·I + memory; r is (…, n), and a memory of (0, 0) counts as 0."""
    if not memory.size:
        return scale * r
    return scale * r + jnp.matmul(r, memory, precision="highest")


def write_memory(memory: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """The memory with the symmetric parts of outer products added.

    ::

        M + Σ_k (a_k·b_k^T + b_k·a_k^T) / 2

    Args:
      memory: M (n, n), symmetric; (0, 0) stays as it is.
      left: a, (W, n).
      right: b, (W, n).

    Example:
      Three make the update of BFGS (with u = M·y; y^T·u = 2 and s^T·y = 1 here):

      >>> import jax.numpy as jnp
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
      >>> basis = secant_basis(s, y, u=y)
      >>> sign = jnp.array([[1.0], [-1.0], [1.0]])
      >>> memory = write_memory(jnp.eye(2), basis, sign * basis)
      >>> jnp.round(memory @ y, 5).tolist()  # the secant equation: it is s
      [1.0, 0.0]
    """
    if not memory.size:
        return memory
    product = jnp.matmul(left.T, right, precision="highest")
    return memory + (product + product.T) / 2


def secant_basis(s: jax.Array, y: jax.Array, u: jax.Array) -> jax.Array:
    """The vectors of which quasi-Newton updates are made, (3, n): ŝ, û and v.

    ::

        ŝ = s / (s^T·y)^(1/2)
        û = u / (y^T·u)^(1/2),  u = M·y
        v = (y^T·u / s^T·y)^(1/2)·ŝ - û

    All have the unit of M^(1/2). M + ŝŝ^T - ûû^T is the update of DFP, and with vv^T
    added that of BFGS. Where s^T·y or y^T·u is not positive all are 0.

    Args:
      s: the last step, (n,).
      y: the difference of the gradients, (n,).
      u: M·y, (n,).

    References:
      Nocedal, Wright, Numerical Optimization, 2nd edition, 2006, equations 6.15 and
      6.17.
    """
    sy, yu = jnp.vdot(s, y), jnp.vdot(y, u)
    # At the end of a descent both are rounding errors.
    least = jnp.finfo(s.dtype).eps * jnp.sqrt(jnp.vdot(s, s) * jnp.vdot(y, y))
    good = (sy > least) & (yu > 0)
    sy, yu = jnp.where(good, sy, 1), jnp.where(good, yu, 1)
    s_hat, u_hat = s / jnp.sqrt(sy), u / jnp.sqrt(yu)
    basis = jnp.stack([s_hat, u_hat, jnp.sqrt(yu / sy) * s_hat - u_hat])
    return jnp.where(good, basis, 0)
