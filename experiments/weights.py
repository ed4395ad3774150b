"""Learned optimizers as users name them: a file, a run, what ships, or a kind."""

import pathlib
from typing import Any

from l2l_jax import (
    Learned,
    LearnedOptimizer,
    learned_optimizer,
    load,
    load_pretrained,
    runs,
)


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
