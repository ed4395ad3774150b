"""What the processes of one program, on several hosts, tell each other.

`jax.distributed.initialize` makes of several processes one: all run the same program,
each computes on its own devices. The first one, process 0, writes; the others hold the
same values. With one process nothing here communicates.
"""

import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from l2l_jax.types import PyTree


def is_first() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def from_first(data: np.ndarray) -> np.ndarray:
    """The bytes that process 0 has, in all processes.

    Args:
      data: uint8, of the same shape in all processes, each of which calls this.

    Returns:
      The bytes of process 0.

    Example:
      >>> import numpy as np
      >>> from_first(np.arange(3, dtype=np.uint8))
      array([0, 1, 2], dtype=uint8)
    """
    return np.asarray(multihost_utils.broadcast_one_to_all(data))


def largest(number: int) -> int:
    """The largest of the numbers (int32) that the processes give; all wait for it.

    Example:
      >>> largest(3)
      3
    """
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def wait() -> None:
    """Returns when all processes have called this."""
    largest(0)


def check_same(what: str, tree: PyTree) -> None:
    """Refuses arrays that are not the same in all processes, each of which calls this.

    Args:
      what: their name in the message.
      tree: a pytree of arrays, compared by a checksum.

    Raises:
      ValueError: in all processes, if they are not.

    Example:
      >>> import numpy as np
      >>> check_same("the numbers", [np.ones(2), np.zeros((3, 4))])
    """
    if jax.process_count() == 1:
        return
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    found = multihost_utils.process_allgather(np.uint32(checksum)).tolist()
    if len(set(found)) > 1:
        raise ValueError(
            f"{what} must be the same in all processes, but the checksums in processes"
            f" 0, 1, ... are {', '.join(f'{x:08x}' for x in found)}"
        )


def replicate(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Arrays on devices of several processes, from the copies that each process has.

    Args:
      tree: a pytree of arrays, of the same values in all processes.
      sharding: that of the result, whose every device holds the whole array.

    Returns:
      The tree; arrays that lie there already are not touched.
    """

    def place(x):
        # device_put would compare the copies every time, and refuses keys.
        if getattr(x, "sharding", None) == sharding:
            return x
        return jax.make_array_from_callback(x.shape, sharding, lambda _: x)

    return jax.tree.map(place, tree)


def here(tree: PyTree) -> PyTree:
    """This process's copies of arrays that lie on devices of several processes."""

    def copy(x: Any) -> Any:
        elsewhere = isinstance(x, jax.Array) and not x.is_fully_addressable
        return x.addressable_data(0) if elsewhere else x

    return jax.tree.map(copy, tree)
