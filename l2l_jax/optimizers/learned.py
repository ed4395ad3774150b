"""Learned optimizers with their weights, and the one small file that holds them."""

import importlib.resources
import inspect
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax.checks import check_choice, check_type
from l2l_jax.files import write_bytes
from l2l_jax.optimizers.dm import dm_init, dm_sizes, dm_transform
from l2l_jax.optimizers.longrun import longrun_init, longrun_sizes, longrun_transform
from l2l_jax.optimizers.ntm_bfgs import (
    ntm_bfgs_init,
    ntm_bfgs_sizes,
    ntm_bfgs_transform,
)
from l2l_jax.optimizers.rnnprop import rnnprop_init, rnnprop_sizes, rnnprop_transform
from l2l_jax.types import LearnedOptimizer, PyTree

FORMAT = "l2l_jax learned optimizer"
VERSION = 1
_METADATA = "metadata.json"
_LIMIT = 1 << 28  # bytes: far above any φ, far below what would hurt to allocate


class Kind(NamedTuple):
    """What a name such as "rnnprop" stands for.

    Attributes:
      init: `init(key, **sizes) -> φ`.
      transform: `transform(φ, **hyper_parameters)`, the optax transformation.
      sizes: `sizes(φ)`, the JSON-able arguments of `init` that give φ's shapes.
      coordinatewise: whether `transform(φ, **hyper_parameters)` treats every coordinate
        on its own, a function of the hyper-parameters.
    """

    init: Callable[..., PyTree]
    transform: Callable[..., optax.GradientTransformationExtraArgs]
    sizes: Callable[[PyTree], dict[str, Any]]
    coordinatewise: Callable[..., bool] = lambda **config: (
        not config.get("averaged_units")
    )


KINDS = {
    "rnnprop": Kind(rnnprop_init, rnnprop_transform, rnnprop_sizes),
    "dm": Kind(dm_init, dm_transform, dm_sizes),
    "longrun": Kind(
        longrun_init,
        longrun_transform,
        longrun_sizes,
        lambda **config: False,
    ),
    "ntm_bfgs": Kind(
        ntm_bfgs_init, ntm_bfgs_transform, ntm_bfgs_sizes, lambda **config: False
    ),
}


def learned_optimizer(
    kind: str, sizes: dict[str, Any] | None = None, **config: Any
) -> LearnedOptimizer:
    """The family of optimizers of one kind, to be meta-trained.

    Args:
      kind: "rnnprop", "dm", "longrun" or "ntm_bfgs".
      sizes: arguments of `rnnprop_init` and the like, such as `hidden_sizes`.
      **config: hyper-parameters of `rnnprop_transform` and the like.

    Returns:
      A `LearnedOptimizer`.

    Raises:
      ValueError: `kind`, or the name of a size or hyper-parameter, is unknown, or a
        value is out of range.

    Example:
      >>> import jax
      >>> small = learned_optimizer("rnnprop", {"hidden_sizes": (8,)}, step_size=0.05)
      >>> small.init(jax.random.key(0)).lstm[0].bias.shape
      (32,)
    """
    check_choice("kind", kind, tuple(KINDS))
    found = KINDS[kind]
    sizes = sizes or {}
    check_type("sizes", sizes, dict)
    _check_names(f"a size of {kind}", found.init, sizes)
    _check_names(f"a hyper-parameter of {kind}", found.transform, config)

    def init(key: jax.Array) -> PyTree:
        return found.init(key, **sizes)

    def transform(phi: PyTree) -> optax.GradientTransformationExtraArgs:
        return found.transform(phi, **config)

    # On shapes alone, so that a bad value is refused here and not when it is used.
    transform(jax.eval_shape(lambda: init(jax.random.key(0))))
    return LearnedOptimizer(init, transform, found.coordinatewise(**config))


def _check_names(name: str, function: Callable, given: dict[str, Any]) -> None:
    """Raises ValueError if one of the given is no argument, after the first."""
    _, *known = inspect.signature(function).parameters
    for each in given:
        check_choice(name, each, tuple(known))


class Learned(NamedTuple):
    """A learned optimizer: all that a weights file holds.

    Attributes:
      kind: "rnnprop", "dm", "longrun" or "ntm_bfgs".
      params: the weights φ.
      config: hyper-parameters other than the defaults of the transformation, JSON-able.
      training: how φ was learned, JSON-able; for people, the code does not read it.

    Example:
      >>> import jax
      >>> from l2l_jax import rnnprop_init
      >>> learned = Learned("rnnprop", rnnprop_init(jax.random.key(0)), {"b1": 0.9})
      >>> tx = learned.transform(step_size=0.01)  # b1 is .9 all the same
    """

    kind: str
    params: PyTree
    config: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never mutated
    training: dict[str, Any] = {}  # noqa: RUF012  likewise

    def transform(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        """The optax transformation, `overrides` replacing entries of `config`.

        Raises:
          TypeError: a value is of another type than the hyper-parameter takes.
          ValueError: `kind` or a name is unknown, or a value out of range.
        """
        check_choice("kind", self.kind, tuple(KINDS))
        transform = KINDS[self.kind].transform
        _check_names(f"a hyper-parameter of {self.kind}", transform, overrides)
        return transform(self.params, **{**self.config, **overrides})


def save(path: str | os.PathLike, learned: Learned) -> None:
    """Writes a learned optimizer to one small file.

    The file is an uncompressed zip archive, as `numpy.savez` writes it, of one `.npy`
    array a weight and `metadata.json`. The same `learned` gives the same bytes. It is
    written under a temporary name and renamed, so `path` is never half a file.

    Args:
      path: the file; one that is there already is replaced.
      learned: what to save; floating arrays only.

    Raises:
      TypeError: `learned` is not a `Learned`, or its weights are of another kind.
      ValueError: `learned.kind` or a hyper-parameter is unknown, or what is in it could
        not be loaded again: metadata that are not JSON-able, weights that are not
        finite or not float16, float32 or float64.
      OSError: the file cannot be written; what was at `path` is then intact.

    Example:
      >>> import jax, tempfile
      >>> from l2l_jax import rnnprop_init
      >>> learned = Learned("rnnprop", rnnprop_init(jax.random.key(0)))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save(f"{directory}/mine.npz", learned)
      ...     load(f"{directory}/mine.npz").kind
      'rnnprop'
    """
    check_type("learned", learned, Learned)
    check_choice("kind", learned.kind, tuple(KINDS))
    check_type("config", learned.config, dict)
    check_type("training", learned.training, dict)
    transform = KINDS[learned.kind].transform
    _check_names(f"a hyper-parameter of {learned.kind}", transform, learned.config)
    transform(learned.params)  # refuses weights of another kind
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "kind": learned.kind,
        "sizes": KINDS[learned.kind].sizes(learned.params),
        "config": learned.config,
        "training": learned.training,
    }
    try:
        text = json.dumps(metadata, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config and training must hold plain JSON values: {error}"
        ) from error
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(_member(_METADATA), text)
        for name, array in _named(learned.params).items():
            buffer = io.BytesIO()
            # A pickle is code, which `load` does not execute.
            np.save(buffer, np.asarray(array), allow_pickle=False)
            members.writestr(_member(f"{name}.npy"), buffer.getvalue())
    _parse(archive.getvalue())  # refuses the rest of what `load` would
    write_bytes(pathlib.Path(path), archive.getvalue())


def load(path: str | os.PathLike) -> Learned:
    """Reads a learned optimizer that `save` wrote.

    Nothing in the file is executed, and nothing is allocated beyond what the file
    really holds, whatever it claims.

    Args:
      path: the file.

    Returns:
      The `Learned`, its weights as JAX arrays.

    Raises:
      OSError: it cannot be read; a FileNotFoundError if there is no such file.
      ValueError: it is not such a file, damaged, of a newer format, incomplete, or
        holds more than it should; the message names file and cause.
    """
    path = pathlib.Path(path)
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError(f"it is larger than {_LIMIT} bytes")
        return _parse(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib, json and NumPy raise what they like
        raise ValueError(
            f"{path} is not a file of weights that l2l_jax.save wrote, or it is"
            f" damaged: {error}"
        ) from error


def load_pretrained(name: str) -> Learned:
    """A learned optimizer that ships with the package; nothing is downloaded.

    How each was trained, and on what, is in `l2l_jax/pretrained/<name>.md` and in the
    `training` of what is returned.

    Args:
      name: "rnnprop", "dm" or "longrun".

    Returns:
      The `Learned`.

    Raises:
      ValueError: there is none of that name; the message has the names.

    Example:
      >>> import jax.numpy as jnp
      >>> learned = load_pretrained("rnnprop")
      >>> theta = {"w": jnp.ones((3, 2))}
      >>> tx = learned.transform()
      >>> updates, state = tx.update(theta, tx.init(theta))
    """
    directory = importlib.resources.files("l2l_jax") / "pretrained"
    names = [pathlib.PurePath(x.name) for x in directory.iterdir()]
    known = sorted(x.stem for x in names if x.suffix == ".npz")
    check_choice("name", name, tuple(known))
    with importlib.resources.as_file(directory / f"{name}.npz") as path:
        return load(path)


def _parse(content: bytes) -> Learned:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        # What inflates may do so without end, whatever size it claims.
        if any(info.compress_type for info in archive.infolist()):
            raise ValueError("it holds compressed members")
        if _METADATA not in names:
            raise ValueError(f"it holds no {_METADATA}")
        metadata = json.loads(archive.read(_METADATA))
        kind, sizes, config, training = _check_metadata(metadata)
        if any(isinstance(x, list) and len(x) > len(names) for x in sizes.values()):
            raise ValueError("it has sizes of more layers than it holds arrays")
        expected = jax.eval_shape(lambda: kind.init(jax.random.key(0), **sizes))
        wanted = {f"{name}.npy": like.shape for name, like in _named(expected).items()}
        if strange := sorted({_METADATA, *wanted}.symmetric_difference(names)):
            state = "foreign" if strange[0] in names else "missing"
            raise ValueError(f"the member {strange[0]!r} is {state}")
        arrays = [_read_array(archive, *member) for member in wanted.items()]
    params = jax.tree.unflatten(jax.tree.structure(expected), arrays)
    kind.transform(params, **config)  # refuses what are no hyper-parameters of its
    return Learned(metadata["kind"], params, config, training)


def _check_metadata(metadata: Any) -> tuple[Kind, dict, dict, dict]:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{_METADATA} does not say format {FORMAT!r}")
    version = metadata.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"format version {version!r}; this l2l_jax reads 1 to {VERSION},"
            " a newer one may read it"
        )
    parts: list[Any] = [metadata.get(name) for name in ("sizes", "config", "training")]
    if metadata.get("kind") not in KINDS or not all(isinstance(p, dict) for p in parts):
        raise ValueError(
            f"kind {metadata.get('kind')!r}; known are {tuple(KINDS)}, each with"
            " sizes, config and training"
        )
    sizes, config, training = parts
    return KINDS[metadata["kind"]], sizes, config, training


def _read_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]
) -> jax.Array:
    """One array, its header compared with the expected shape before any allocation."""
    buffer = io.BytesIO(archive.read(name))
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError(f"the array {name} is not of npy version 1.0")
    found, _, dtype = np.lib.format.read_array_header_1_0(buffer)
    if found != shape or dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"the array {name} must be float16, float32 or float64 of shape {shape},"
            f" it is {dtype} of shape {found}"
        )
    buffer.seek(0)
    array = np.lib.format.read_array(buffer)
    if not np.isfinite(array).all():
        raise ValueError(f"the array {name} holds numbers that are not finite")
    return jnp.asarray(array)


def _named(params: PyTree) -> dict[str, Any]:
    """Leaves by path, such as `lstm/0/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date: equal contents give equal bytes."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
