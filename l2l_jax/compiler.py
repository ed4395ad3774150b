"""What XLA has to be told, beside the program, to make a fast one of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def compiled_once(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, compiled where it is called outside of a compiled program.

    Operation by operation, its loops and calls would be compiled again each time.
    Within a compiled program it is part of that, as if it were not wrapped.

    Args:
      f: a function of trees of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> double = compiled_once(lambda x: 2 * x)
      >>> float(double(jnp.float32(3))), float(jax.jit(double)(jnp.float32(3)))
      (6.0, 6.0)
    """
    return jax.jit(f, inline=True)


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
