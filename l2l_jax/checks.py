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
        raise TypeError(f"{name} must be a number, got {value!r}")
    value = float(value)
    inside = (low < value if low_open else low <= value) and (
        value < high if high_open else value <= high
    )
    if not (math.isfinite(value) and inside):
        interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
        raise ValueError(f"{name} must be finite and in {interval}, got {value}")


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


def check_floating(tree: Any, subject: str = "learned optimizers take") -> None:
    """Raises TypeError, naming the path, unless all leaves are real floating arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(
                f"{subject} float16, bfloat16, float32 or float64 leaves; leaf"
                f" {jax.tree_util.keystr(path) or '(the whole tree)'} is {dtype}"
                " (optax.masked leaves parameters out)"
            )
