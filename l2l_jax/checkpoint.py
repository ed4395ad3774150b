"""Checkpoints of a run: a pytree of arrays and its iteration, written by Orbax.

A checkpoint is the folder `DIRECTORY/checkpoints/ITERATION`. Orbax fills it under a
temporary name and renames it, so a run killed while it saves leaves the older
checkpoints whole and nothing that looks like a newer one.

The folder holds `layout` (JSON: a list with name, shape and dtype of each leaf; any
other value is of a newer format) and `data`: the bytes of all leaves, one after the
other, and four of a CRC-32. One array, because Orbax takes three times as long over
sixty, refuses arrays without elements, does not notice every changed byte, and if it
cannot read one of several closes its event loop under the others.

Orbax (the extra `experiments` of the package) is imported by the first call.
"""

import contextlib
import json
import logging
import math
import warnings
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax import processes
from l2l_jax.files import naming

_KEEP = 2  # the newest, and the one before it should the newest be damaged


def save(
    directory: str | Path, iteration: int, state: Any, *, keep: Collection[int] = ()
) -> None:
    """Writes a checkpoint and deletes all but the two newest.

    The call returns when the checkpoint is on the disk.

    Args:
      directory: the directory of the run; `checkpoints/` in it is made if need be.
      iteration: how many iterations led to `state`, >= 0.
      state: a pytree of jax or NumPy arrays (typed PRNG keys too) of any shapes and
        dtypes.
      keep: iterations whose checkpoints are to be spared.

    Raises:
      TypeError: if a leaf of `state` is not an array.
      FileExistsError: if that iteration has a checkpoint already.
      OSError: if it cannot be written; the older checkpoints are then intact.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save(directory, 7, {"w": jnp.arange(3.0)})
      ...     restore(directory, {"w": jnp.zeros(3)})
      (7, {'w': Array([0., 1., 2.], dtype=float32)})
    """
    layout, data = _pack(state)
    path = _folder(directory) / str(iteration)
    try:
        with naming(path), _manager(directory, create=True) as (ocp, manager):
            if iteration in manager.all_steps():
                raise FileExistsError(f"{path} exists; a checkpoint is never replaced")
            items = {
                "layout": ocp.args.JsonSave(layout),
                "data": ocp.args.ArraySave(data),
            }
            manager.save(iteration, args=ocp.args.Composite(**items))
            for old in sorted(manager.all_steps())[:-_KEEP]:
                if old not in keep:
                    manager.delete(old)
    except OSError:
        raise
    except Exception as error:  # tensorstore has its own kinds of I/O errors
        raise OSError(f"cannot write checkpoint {path}: {_cause(error)}") from error


def iterations(directory: str | Path) -> tuple[int, ...]:
    """Returns the iterations that have a checkpoint, in rising order.

    Args:
      directory: the directory of the run.

    Returns:
      Their numbers; `()` if there is none, or no such directory.

    Example:
      >>> iterations("no_such_run")
      ()
    """
    if not _folder(directory).is_dir():
        return ()
    with _manager(directory) as (_, manager):
        return tuple(sorted(manager.all_steps()))


def restore(directory: str | Path, example: Any) -> tuple[int, Any]:
    """Reads the newest checkpoint.

    Args:
      directory: the directory of the run.
      example: a pytree like the state that was saved. Its leaves are arrays, whose
        values are not read, or `jax.ShapeDtypeStruct`s.

    Returns:
      The iteration and the state: the very bits that were saved, in the tree of
      `example` (its named tuples and optax states), NumPy arrays where it has NumPy
      arrays, else jax arrays with its shardings.

    Raises:
      FileNotFoundError: if the directory has no checkpoint.
      ValueError: if the checkpoint is damaged, foreign or of a newer format, or if its
        leaves have other names, shapes or dtypes than those of `example`.

    Example: see `save`.
    """
    saved = iterations(directory)
    if not saved:
        raise FileNotFoundError(f"{_folder(directory)} holds no checkpoint")
    path = _folder(directory) / str(saved[-1])
    try:
        with _manager(directory) as (ocp, manager):
            items = {"layout": ocp.args.JsonRestore(), "data": ocp.args.ArrayRestore()}
            item = manager.restore(saved[-1], args=ocp.args.Composite(**items))
        arrays = _unpack(item.layout, item.data)
    except Exception as error:
        older = f" ({path.parent / str(saved[-2])})" if len(saved) > 1 else ""
        raise ValueError(
            f"checkpoint {path} is damaged, or was not written by this version of "
            f"l2l_jax: {_cause(error)}. Move it away to go on from the one before it"
            f"{older}"
        ) from error
    _check(path, arrays, example)
    return saved[-1], _rebuild(example, arrays)


def from_first(iteration: int, state: Any) -> tuple[int, Any]:
    """The iteration and the state of process 0, in all processes that call this.

    Args:
      iteration: how many iterations led to `state`.
      state: as for `save`; of the same structure, shapes and dtypes in all processes.

    Returns:
      Both, the state bit by bit.

    Raises:
      ValueError: in a process whose state has other shapes or dtypes.

    Example:
      >>> from_first(7, {"w": np.arange(3.0)})
      (7, {'w': array([0., 1., 2.])})
    """
    if jax.process_count() == 1:
        return iteration, state
    mine = np.int64(iteration), state
    layout, data = _pack(mine)
    iteration, state = _rebuild(mine, _unpack(layout, processes.from_first(data)))
    return int(iteration), state


def _folder(directory: str | Path) -> Path:
    return Path(directory).absolute() / "checkpoints"


@contextlib.contextmanager
def _manager(
    directory: str | Path, *, create: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Yields orbax.checkpoint and a manager, both kept quiet."""
    absl, root, silence = logging.getLogger("absl"), logging.root, logging.NullHandler()
    disabled = absl.disabled
    # absl configures the root logger for good if it finds it without a handler.
    root.addHandler(silence)
    absl.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import orbax.checkpoint as ocp

            if create:
                _folder(directory).mkdir(parents=True, exist_ok=True)
            # Orbax would wait for all processes, of which one calls this.
            alone = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"process_{jax.process_index()}",
            )
            options = ocp.CheckpointManagerOptions(
                create=False,  # which it does not do for one process of several
                cleanup_tmp_directories=create,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            )
            with ocp.CheckpointManager(_folder(directory), options=options) as manager:
                yield ocp, manager
    finally:
        absl.disabled = disabled
        root.removeHandler(silence)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        ("state" + jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    """What is stored of an array, as far as shape and dtype go."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        number = leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)
        return number and leaf.dtype.isnative
    return isinstance(leaf, jax.Array)


def _pack(state: Any) -> tuple[list[dict[str, Any]], np.ndarray]:
    layout, parts = [], []
    for name, leaf in _named_leaves(state):
        if not _is_array(leaf):
            raise TypeError(
                f"{name} is {leaf!r} of type {type(leaf).__name__}; the leaves of a "
                "state are jax or NumPy arrays of numbers"
            )
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        layout.append(
            {"name": name, "shape": [*array.shape], "dtype": array.dtype.name}
        )
        parts.append(array.tobytes())
    data = b"".join(parts)
    return layout, np.frombuffer(data + _checksum(layout, data), np.uint8)


def _unpack(layout: list[dict[str, Any]], packed: np.ndarray) -> dict[str, np.ndarray]:
    if not isinstance(layout, list):
        raise ValueError("its layout is no list; a newer l2l_jax may read it")
    data, checksum = packed[:-4].tobytes(), packed[-4:].tobytes()
    if checksum != _checksum(layout, data):
        raise ValueError("its checksum does not fit")
    arrays, begin = {}, 0
    for entry in layout:
        shape, dtype = entry["shape"], jnp.dtype(entry["dtype"])
        array = np.frombuffer(data, dtype, math.prod(shape), begin)
        begin += array.nbytes
        arrays[entry["name"]] = array.reshape(shape).copy()
    return arrays


def _checksum(layout: list[dict[str, Any]], data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(json.dumps(layout).encode())).to_bytes(4)


def _check(path: Path, arrays: dict[str, np.ndarray], example: Any) -> None:
    def describe(leaf: Any) -> str:
        return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"

    saved = {name: describe(array) for name, array in arrays.items()}
    expected = {name: describe(_data(leaf)) for name, leaf in _named_leaves(example)}
    wrong = [
        f"{name}: {saved.get(name, 'nothing')} saved, "
        f"{expected.get(name, 'nothing')} expected"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"checkpoint {path} is of another state: {'; '.join(wrong[:5])}{more}"
        )


def _rebuild(example: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The tree of `example` with the stored arrays in it."""
    leaves = [_like(leaf, arrays[name]) for name, leaf in _named_leaves(example)]
    return jax.tree.unflatten(jax.tree.structure(example), leaves)


def _like(leaf: Any, array: Any) -> Any:
    """Makes of the stored array what `leaf` is."""
    if isinstance(leaf, np.generic):
        return array[()]
    if isinstance(leaf, np.ndarray):
        return array
    if _is_key(leaf):
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
        array = jax.random.wrap_key_data(array, impl=impl)
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return jnp.asarray(array)
    return jax.device_put(array, leaf.sharding)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
