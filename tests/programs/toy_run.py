"""A small deterministic run, for tests that kill it: noisy Adam on a quadratic."""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2l_jax import runs

OPTIMIZER = optax.adam(0.05)


class ToyState(NamedTuple):
    params: dict[str, jax.Array]
    opt_state: optax.OptState
    key: jax.Array


def initial_state() -> ToyState:
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3, jnp.bfloat16)}
    return ToyState(params, OPTIMIZER.init(params), jax.random.key(1))


@jax.jit
def update(state: ToyState, iteration: jax.Array) -> tuple[ToyState, dict[str, Any]]:
    noise = jax.random.normal(jax.random.fold_in(state.key, iteration), (3, 2))

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum((params["w"] - 0.1 * noise) ** 2) + jnp.sum(params["b"] ** 2)

    value, gradient = jax.value_and_grad(loss)(state.params)
    updates, opt_state = OPTIMIZER.update(gradient, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    metrics = {"train_loss": value, "skipped": jnp.int32(iteration % 9 == 4)}
    return ToyState(params, opt_state, state.key), metrics


def step(state: ToyState, iteration: int) -> tuple[ToyState, dict[str, Any]]:
    return update(state, jnp.int32(iteration))


def export(state: ToyState, path: Path, iteration: int) -> None:
    np.savez(path, w=state.params["w"], iteration=iteration)


def of_run(directory: Path) -> dict[str, Any]:
    """What of the arguments of `runs.run` is the run's own."""

    def score(state: ToyState, path: Path, iteration: int) -> None:
        runs.record_validation(directory, iteration, jnp.sum(state.params["w"] ** 2))

    return {
        "directory": directory,
        "state": initial_state(),
        "config": {"learning_rate": 0.05},
        "export": export,
        "on_export": score,
    }


OFTEN = {"export_every": 15, "checkpoint_every": 10}


def toy_run(directory: Path, num_iterations: int, **options: Any) -> ToyState:
    arguments = {"step": step, "num_iterations": num_iterations, **OFTEN}
    return runs.run(**arguments | of_run(directory) | options)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("num_iterations", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds per iteration"
    )
    flags = parser.parse_args()
    print("ready", flush=True)
    toy_run(
        flags.directory,
        flags.num_iterations,
        resume=flags.resume,
        how_to_resume="add --resume",
        progress=lambda *_: time.sleep(flags.pause),
    )


if __name__ == "__main__":
    main()
