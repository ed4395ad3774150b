"""A step on many coordinates chunk by chunk, on fewer along one axis of them."""

import functools

import jax
import jax.numpy as jnp

from l2l_jax.compiler import apart
from l2l_jax.sharding import Step, is_one_part, partitioned

# Coordinates in a chunk: what stays in the caches of a CPU; elsewhere a gigabyte of
# work space for two layers of 20 units in float32.
ON_CPU, ELSEWHERE = 2**13, 2**20
# Coordinates from which on they are brought into a row: with fewer nothing is gained.
IN_A_ROW_FROM = 2**10


def in_chunks(step: Step, on_cpu: int = ON_CPU, elsewhere: int = ELSEWHERE) -> Step:
    """A coordinatewise step that works on a chunk of the coordinates at a time.

    Where the arrays of the state are donated they are changed in place, so that only
    the update and the work space of one chunk are new. The numbers are the same.

    Args:
      step: `step(shared, g, state) -> (update, state)`; g and update have shape S, the
        leaves of the state end with S, and what it does to a coordinate depends on
        `shared` and on that coordinate alone.
      on_cpu: coordinates in a chunk at most, on a CPU; arrays of up to four times as
        many stay whole, and have one axis in the program of one device.
      elsewhere: the same on other devices.

    Returns:
      The same function. Its reverse-mode derivative is that of `step` itself, which
      takes all coordinates at once.
    """

    @jax.custom_vjp
    @partitioned
    def chunked(*args):
        return jax.lax.platform_dependent(
            *args,
            cpu=functools.partial(_run, step, on_cpu),
            default=functools.partial(_run, step, elsewhere),
        )

    chunked.defvjp(
        lambda *args: jax.vjp(step, *args), lambda pull, slopes: pull(slopes)
    )

    def choose(shared, g, state):
        if g.size > 4 * min(on_cpu, elsewhere):
            return chunked(shared, g, state)
        # Where several devices may divide an axis, axes stay as they are.
        if g.ndim > 1 and g.size >= IN_A_ROW_FROM and is_one_part():
            return _in_a_row(apart(step))(shared, g, state)
        return step(shared, g, state)

    return choose


def _in_a_row(step: Step) -> Step:
    """The step on one axis of coordinates instead of those of S.

    The last axis of S is often narrow, and on a CPU it is the one that is vectorized.
    """

    def run(shared, g, state):
        def flat(x):
            return x.reshape(*x.shape[: x.ndim - g.ndim], g.size)

        new = step(shared, flat(g), jax.tree.map(flat, state))
        return jax.tree.map(lambda x, like: x.reshape(like.shape), new, (g, state))

    return run


def _run(step, size, shared, g, state):
    whole = step if g.size <= 4 * size else functools.partial(_loop, step, size)
    return _in_a_row(whole)(shared, g, state)


def _loop(step, size, shared, signal, state):
    """The step on vectors, chunk by chunk."""
    total = signal.size
    size, count = _divide(total, size)

    def cut(x, begin):
        return jax.lax.dynamic_slice_in_dim(x, begin, size, -1)

    def body(i, whole):
        # The last chunk begins where it still fits; what it shares with the one before
        # is done already.
        begin = jnp.minimum(i * size, total - size)
        old = jax.tree.map(lambda x: cut(x, begin), whole)

        def advance():
            new = step(shared, cut(signal, begin), old[1])
            if size * count == total:
                return new
            mine = begin + jnp.arange(size) >= i * size
            return jax.tree.map(
                lambda new, old: jnp.where(jnp.broadcast_to(mine, new.shape), new, old),
                new,
                old,
            )

        # Always taken. XLA computes what two results share once for each where it may
        # fuse it with reading and writing, and then has to copy the whole arrays at
        # every turn; it does not fuse across the border of a branch.
        new = jax.lax.cond(i < count, advance, lambda: old)
        return jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, begin, -1),
            whole,
            new,
        )

    return jax.lax.fori_loop(0, count, body, (jnp.zeros_like(signal), state))


def _divide(total: int, size: int) -> tuple[int, int]:
    """Size and number of the chunks: without a remainder if one near does it."""
    least = -(-total // size)
    exact = (n for n in range(least, 2 * least) if total % n == 0)
    count = next(exact, least)
    return -(-total // count), count
