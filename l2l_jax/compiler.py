"""What XLA has to be told, beside the program, to make a fast one of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(f: Callable[..., Any], static_argnums: tuple[int, ...] = ()) -> Callable:
    """`f` as a call that XLA's CPU backend does not inline.

    So nothing of f is fused with what is before or behind it, where it might be
    computed again for each use, or in another order of axes. On other devices f itself.
    Once differentiated it may be inlined: only speed is lost.

    Args:
      f: a function of arrays.
      static_argnums: which of its arguments are none, as of `jax.jit`.

    Example:
      >>> import jax.numpy as jnp
      >>> apart(jnp.transpose, (1,))(jnp.ones((2, 3)), (1, 0)).shape
      (3, 2)
    """
    called = jax.jit(f, static_argnums=static_argnums)

    @functools.wraps(f)
    def call(*args):
        if jax.default_backend() != "cpu":
            return f(*args)
        with set_xla_metadata(inlineable="false"):
            return called(*args)

    return call


# Bytes of an episode from which on a CPU's caches do not hold several.
LARGE = 2**20


def over_episodes(f: Callable[..., Any]) -> Callable:
    """`jax.vmap` of f, but on a CPU one after another where episodes are large.

    Side by side, what a step makes of all of them goes through memory, and matrix
    products want their axes in another order.

    Args:
      f: a function of an episode, or anything else whose size counts, and more.

    Example:
      >>> import jax.numpy as jnp
      >>> over_episodes(lambda x, y: x @ y)(jnp.ones((3, 2)), jnp.ones((3, 2)))
      Array([2., 2., 2.], dtype=float32)
    """

    def run(episodes, *more):
        leaves = jax.tree.leaves(episodes)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / len(leaves[0])
        if jax.default_backend() == "cpu" and size >= LARGE:
            return jax.lax.map(lambda args: f(*args), (episodes, *more))
        return jax.vmap(f)(episodes, *more)

    return run
