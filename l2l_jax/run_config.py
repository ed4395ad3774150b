"""config.json: what a run was asked for, and where; what changed on resuming it."""

import datetime
import importlib.metadata
import json
import platform
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_KEYS = {"config", "num_iterations", "environment", "started", "resumed"}
_PACKAGES = ("l2l_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def read_config(directory: str | Path) -> dict[str, Any]:
    """Reads config.json.

    Args:
      directory: the directory of the run.

    Returns:
      A dictionary with `config` (as given to `run`), `num_iterations`, `environment`
      (versions and device), `started` (UTC, ISO 8601) and `resumed`: a list, in order,
      of the resumptions that changed something, each with the `iteration` and what
      `changed` as `{name: [old, new]}`. The first three are the newest ones.

    Raises:
      FileNotFoundError: if the directory holds no run.
      ValueError: if the file is not JSON.

    Example:
      >>> read_config("no_such_run")
      Traceback (most recent call last):
      ...
      FileNotFoundError: no_such_run holds no run (no config.json)
    """
    path = Path(directory) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} holds no run (no config.json)")
    try:
        described = json.loads(path.read_text())
        if missing := _KEYS - described.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no description of a run: {error}") from error
    return described


def describe(config: Mapping[str, Any], num_iterations: int) -> dict[str, Any]:
    """What config.json of a new run holds."""
    if config.get("num_iterations", num_iterations) != num_iterations:
        raise ValueError(
            f"config says num_iterations={config['num_iterations']}, the argument is "
            f"{num_iterations}; they must agree"
        )
    try:
        config = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config cannot be written as JSON: {error}") from error

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None  # l2l_jax used from its sources, without installation

    return {
        "config": config,
        "num_iterations": num_iterations,
        "environment": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
            "machine": platform.machine(),
            "backend": jax.default_backend(),
            "device_kind": jax.devices()[0].device_kind,
            "x64": jax.dtypes.canonicalize_dtype(float) == np.float64,
            **({"processes": jax.process_count()} if jax.process_count() > 1 else {}),
        },
        "started": datetime.datetime.now(datetime.UTC).isoformat(),
        "resumed": [],
    }


def changes_of(
    directory: Path,
    old: dict[str, Any],
    new: dict[str, Any],
    may_change: Collection[str],
) -> dict[str, list[Any]]:
    """What differs, as {name: [old, new]}; raises if it must not."""

    def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
        return {
            name: [old.get(name, "absent"), new.get(name, "absent")]
            for name in old | new
            if old.get(name, "absent") != new.get(name, "absent")
        }

    def words(changes: dict[str, list[Any]]) -> str:
        return "; ".join(f"{k}: was {a!r}, is {b!r}" for k, (a, b) in changes.items())

    changes = differences(old["config"], new["config"])
    changes.pop("num_iterations", None)
    wrong = {name: change for name, change in changes.items() if name not in may_change}
    before, now = old["num_iterations"], new["num_iterations"]
    if now != before:
        changes["num_iterations"] = [before, now]
    if now < before:
        wrong["num_iterations (may only grow)"] = [before, now]
    path = directory / "config.json"
    if wrong:
        raise ValueError(
            f"cannot resume with another configuration than that of {path}: "
            f"{words(wrong)}"
        )
    environment = differences(old["environment"], new["environment"])
    if environment:
        warnings.warn(
            f"resuming on another machine or with other versions than those of {path}: "
            f"{words(environment)}. Results may differ in the last digits",
            stacklevel=5,  # who called `run`
        )
    return changes | environment
