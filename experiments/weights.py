"""Learned optimizers as users name them: a file, a run, what ships, or a known name."""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import l2l_jax
from experiments import paper
from l2l_jax import (
    Learned,
    LearnedOptimizer,
    learned_optimizer,
    load,
    load_pretrained,
    runs,
)

RESULTS = pathlib.Path(__file__).parent / "results"
SHIPPED = pathlib.Path(l2l_jax.__file__).parent / "pretrained"


class Weights(NamedTuple):
    """A learned optimizer as it is compared.

    Attributes:
      learned: it.
      sha256: the hash of its file.
      what: it is, for people.
      changes: hyper-parameters that are not the file's.
    """

    learned: Learned
    sha256: str
    what: str
    changes: Mapping[str, Any] = MappingProxyType({})


def selected(workdir: str | pathlib.Path) -> pathlib.Path:
    """The file of weights of a run that its own rule selects."""
    config = runs.read_config(workdir)["config"]
    return runs.select(workdir, by=config.get("select", "training"))


def read(entry: str) -> tuple[str, Learned]:
    """A learned optimizer and its name.

    Args:
      entry: a name that ships, a file, or the directory of a run, of which the selected
        weights are taken; `name=` may stand before it.

    Returns:
      The name, by default that of the file or directory, and the optimizer.

    Raises:
      ValueError: it is none of these, or the file is damaged.
      FileNotFoundError: the directory holds no run, or one without weights.

    Example:
      >>> name, learned = read("ours=rnnprop")
      >>> name, learned.kind
      ('ours', 'rnnprop')
    """
    name, _, source = entry.rpartition("=")
    path = pathlib.Path(source)
    if not path.exists():
        try:
            return name or source, load_pretrained(source)
        except ValueError as error:
            raise ValueError(
                f"weights {source!r} are no file, no run and do not ship: {error}"
            ) from None
    if path.is_dir():
        return name or path.resolve().name, load(selected(path))
    return name or path.stem, load(path)


def read_all(entries: list[str], taken: list[str]) -> dict[str, Learned]:
    """Learned optimizers by name.

    Raises:
      ValueError: of two a name is the same, or one of `taken`.
    """
    found: dict[str, Learned] = {}
    for entry in entries:
        name, learned = read(entry)
        if name in found or name in taken:
            raise ValueError(
                f"weights {entry!r}: {name!r} is taken, call them other=FILE"
            )
        found[name] = learned
    return found


def read_weights(
    files: Sequence[str],
    directory: str | pathlib.Path,
    names: Mapping[str, str] = paper.WEIGHTS,
    trained: Mapping[str, str] | None = None,
) -> dict[str, Weights]:
    """Learned optimizers by name.

    Args:
      files: each `name=file` or `name=run`, before those of the directory.
      directory: whose files `<name>.npz` of known names are taken, before those below.
      names: the known ones, and what they are.
      trained: files and runs below `RESULTS` by name, taken where they are.

    Raises:
      ValueError: an entry has no name or an unknown one, or no such directory.
      FileNotFoundError: there is no such file, or no weights in a run.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise ValueError(f"there is no directory of weights {directory}")
    places = {name: RESULTS / path for name, path in (trained or {}).items()}
    own = {name: directory / f"{name}.npz" for name in names}
    paths = {
        name: path
        for place in (places, own)
        for name, path in place.items()
        if path.exists()
    }
    for entry in files:
        name, _, path = entry.partition("=")
        known = f"known names are {', '.join(names)}"
        if not path:
            raise ValueError(f"weights {entry!r} must be name=file; {known}")
        if name not in names:
            raise ValueError(f"the name in weights {entry!r} is unknown; {known}")
        paths[name] = pathlib.Path(path)
    found = {}
    for name, path in paths.items():
        file = selected(path) if path.is_dir() else path
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        found[name] = Weights(load(file), sha256, names[name])
    return found


def optimizer(
    kind: str, sizes: dict[str, Any] | None, hyper_parameters: dict[str, Any]
) -> LearnedOptimizer:
    """`learned_optimizer` of what was given on the command line.

    Raises:
      ValueError: a name or value is not one that it takes.
    """
    try:
        return learned_optimizer(kind, sizes, **hyper_parameters)
    except TypeError as error:
        raise ValueError(f"--hyper_parameters: {error}") from None
