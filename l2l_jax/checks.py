"""Refusal of bad arguments, at the call and by name."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raises if a concrete `value` is not a number between `low` and `high`.

    Traced values pass: `optax.inject_hyperparams` and meta-training hand those in.

    Raises:
      TypeError: `value` is not a real number.
      ValueError: it is not finite, or outside of the interval.
    """
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, bool) or not (
        isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    ):
        hint = "; optax.inject_hyperparams takes schedules" if callable(value) else ""
        raise TypeError(f"{name} must be a number, got {value!r}{hint}")
    value = float(value)
    inside = (low < value if low_open else low <= value) and (
        value < high if high_open else value <= high
    )
    if not (math.isfinite(value) and inside):
        interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
        raise ValueError(f"{name} must be finite and in {interval}, got {value}")


def check_size(name: str, value: Any) -> int:
    """Returns `value`; raises ValueError unless it is a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value


def check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Returns `sizes` as a tuple of positive ints, at least one.

    Raises:
      ValueError: it is anything else.
    """
    if not (
        isinstance(sizes, (tuple, list))
        and sizes
        and all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)
        and min(sizes) > 0
    ):
        raise ValueError(f"{name} must be a tuple of positive ints, got {sizes!r}")
    return tuple(sizes)


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raises ValueError if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_type(name: str, value: Any, kind: type, what: str | None = None) -> None:
    """Raises TypeError if `value` is not a `kind`, which `what` may describe."""
    if not isinstance(value, kind):
        is_class = isinstance(value, type)
        got = f"the class {value.__name__}" if is_class else type(value).__name__
        raise TypeError(f"{name} must be {what or kind.__name__}, got {got}")


def check_state(updates: Any, tree: Any, part: str, leading: tuple = ()) -> None:
    """Raises ValueError, naming the path, if a state was made for other gradients.

    They would be broadcast, or fail inside of the network. Only shapes are looked at,
    so it costs nothing in a compiled program.

    Args:
      updates: the gradients.
      tree: a part of the state, to be a tree like them.
      part: its name.
      leading: axes that its leaves have in front of those of the gradients.
    """
    gradients, states = _shapes(updates), _shapes(tree)
    for path in {**gradients, **states}:
        g, found = (shapes.get(path, "none") for shapes in (gradients, states))
        wanted = (*leading, *g) if path in gradients else "none"
        if found != wanted:
            raise ValueError(
                "gradients must have the structure and shapes that init saw: at"
                f" {path} the gradient has shape {g}, and {part} of the state has"
                f" {found}, not {wanted}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path) or "(the whole tree)": jnp.shape(leaf)
        for path, leaf in leaves
    }


def check_floating(tree: Any, subject: str = "learned optimizers take") -> None:
    """Raises TypeError, naming the path, unless all leaves are real floating arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # A function or a text in the tree has none.
        is_text = isinstance(leaf, str)
        found = None if is_text or callable(leaf) else jnp.result_type(leaf)
        if str(found) not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(
                f"{subject} float16, bfloat16, float32 or float64 leaves; leaf"
                f" {jax.tree_util.keystr(path) or '(the whole tree)'} is"
                f" {found or repr(leaf)}"
                " (split others off before differentiating, as equinox.partition does)"
            )
