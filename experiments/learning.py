"""One small meta-training, as the benchmarks repeat it for several meta-seeds."""

import time
from typing import Any

import jax

from l2l_jax import MetaTrainer


def learn(
    trainer: MetaTrainer, seed: int, num_iterations: int, num_segments: int
) -> tuple[Any, float]:
    """Meta-trains from the start.

    Args:
      trainer: how.
      seed: of φ and of the episodes; trainers of like shapes begin alike.
      num_iterations: episodes.
      num_segments: of each.

    Returns:
      φ, and the seconds of an iteration, without the first, which compiles.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    state = trainer.init(init_key)
    begin = time.perf_counter()
    for i in range(num_iterations):
        state, _ = trainer.iterate(state, jax.random.fold_in(key, i), num_segments)
        if i == 0:
            jax.block_until_ready(state)
            begin = time.perf_counter()
    jax.block_until_ready(state)
    return state.phi, (time.perf_counter() - begin) / max(num_iterations - 1, 1)
