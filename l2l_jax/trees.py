"""Trees: maps with several results, over coordinates, over episodes; finiteness."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from l2l_jax.types import PyTree


def map_unzip(f: Callable[..., tuple], tree: PyTree, *rest: PyTree) -> tuple:
    """`jax.tree.map` for an `f` that returns as many values as it takes.

    Args:
      f: takes a leaf of `tree` and the subtree of each of `rest` at its place, returns
        a tuple of new ones.
      tree: pytree whose structure every tree of `rest` begins with.
      *rest: further pytrees.

    Returns:
      A tuple of 1 + len(rest) trees.

    Example:
      >>> map_unzip(lambda x, y: (x + y, x * y), {"a": 2}, {"a": 3})
      ({'a': 5}, {'a': 6})
    """
    return map_rows(lambda rows: [f(*row) for row in rows], tree, *rest)


def map_rows(f: Callable[..., Sequence[tuple]], tree: PyTree, *rest: PyTree) -> tuple:
    """`map_unzip` for an `f` that sees all leaves at once.

    Args:
      f: takes a list, for each leaf the tuple of what `map_unzip`'s takes, and returns
        such a list of new ones. Not called if there are no leaves.
      tree: as of `map_unzip`.
      *rest: likewise.

    Returns:
      A tuple of 1 + len(rest) trees.
    """
    leaves = jax.tree.leaves(tree)
    structure: Any = jax.tree.structure(tree)
    if not leaves:
        return tree, *rest
    columns = [leaves, *(structure.flatten_up_to(other) for other in rest)]
    rows = f(list(zip(*columns, strict=True)))
    return tuple(structure.unflatten(column) for column in zip(*rows, strict=True))


def over_coordinates(
    f: Callable[..., Any], ndim: int, in_axes: Any = -1
) -> Callable[..., Any]:
    """Maps a function of one coordinate over `ndim` trailing axes of its arguments.

    Hidden values lead and coordinates trail, so that a parameter of shape S has state
    of shape (H, *S): it needs no padding of H, and keeps the parameter's sharding.
    One vmap an axis, because reshaping S to a vector would gather a sharded leaf.

    Args:
      f: function of arrays without the coordinate axes; returns a pytree of arrays.
      ndim: number of axes of the parameter, at least 0.
      in_axes: as of `jax.vmap`, made of -1 (has coordinate axes) and None (has none).

    Returns:
      The function of arrays with the coordinate axes last.
    """
    for _ in range(ndim):
        f = jax.vmap(f, in_axes=in_axes, out_axes=-1)
    return f


def all_finite(*trees: PyTree) -> jax.Array:
    """Whether no leaf of any tree holds a NaN or an infinity; a bool scalar."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)


# Bytes of an episode; several of this size are too much for the caches of a CPU.
LARGE = 2**20


def over_episodes(f: Callable[..., Any]) -> Callable:
    """`jax.vmap` of f, but on a CPU one after another where episodes are large.

    Side by side, what a step makes of all of them goes through memory, and matrix
    products want their axes in another order.

    Args:
      f: a function of an episode, or anything else whose size counts, and more.

    Returns:
      The function that takes and gives stacks of these.

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
