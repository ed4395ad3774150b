"""Times one meta-training iteration against the least arithmetic it needs.

An iteration is 100 steps of the base MLP with the convex part, 15,930 coordinates,
float32, 5 updates of φ. The floor is the bare matrix products of the LSTM layers
(forward, dW, dX) and one evaluation of the gates' functions, both at the real shapes.

    python -m experiments.bench_meta_training --num_devices=2 --outdir=runs/bench

About two minutes on 2 cores; needs no data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, floor, options, timing
from l2l_jax import (
    combine,
    convex_task,
    learned_optimizer,
    meta_trainer,
    random_scaling,
)
from l2l_jax.tasks import MLP, Dataset, classification_task

FLAGS = flags.FLAGS
flags.DEFINE_enum("optimizer", "rnnprop", ["rnnprop", "dm"], "Kind of the optimizer.")
options.define_numbers("hidden_sizes", [20, 20], "Hidden units of each LSTM layer.")
flags.DEFINE_integer(
    "input_size", 20, "Units of RNNprop's layer in front of the LSTM.", lower_bound=1
)
common.define_devices()
flags.DEFINE_integer("meta_batch", 1, "Episodes at once.", lower_bound=1)
flags.DEFINE_integer("repeats", 7, "Counted calls of each program.", lower_bound=1)
timing.define_outdir()

STEPS, SEGMENT = 100, 20


def base_mlp() -> tuple:
    """The training task of the paper on random images, its number of coordinates."""
    numbers = np.random.default_rng(0)
    data = Dataset(
        numbers.integers(0, 256, (55_000, 28, 28, 1), dtype=np.uint8),
        numbers.integers(0, 10, 55_000).astype(np.int32),
    )
    task = combine(
        random_scaling(classification_task(MLP(), data), 3.0),
        random_scaling(convex_task(), 1.0),
    )
    return task, 15_910 + 20


def main(argv: list[str]) -> None:
    """Measures and reports."""
    del argv
    devices = common.devices()
    path = timing.result_file("meta_training.json")
    sizes = FLAGS.hidden_sizes
    task, coordinates = base_mlp()
    coordinates *= FLAGS.meta_batch
    arguments, inputs = {"hidden_sizes": tuple(sizes)}, 2
    if FLAGS.optimizer == "rnnprop":
        arguments["input_size"] = inputs = FLAGS.input_size
    optimizer = learned_optimizer(FLAGS.optimizer, arguments)
    weights = {"rnnprop": "last", "dm": "mean"}[FLAGS.optimizer]
    trainer = meta_trainer(
        task,
        optimizer,
        optax.adam(1e-4),
        segment_length=SEGMENT,
        weights=weights,
        meta_batch=FLAGS.meta_batch,
        devices=devices,
    )
    state, key = trainer.init(jax.random.key(0)), jax.random.key(1)
    run_products, product_args, flop = floor.products(
        sizes, inputs, coordinates, STEPS, back=True
    )
    run_gates, gate_args = floor.gates(sizes, coordinates, STEPS)
    compiled, seconds = timing.compile_seconds(
        trainer.program,
        task.data,
        state,
        key,
        jnp.int32(STEPS // SEGMENT),
    )
    times = timing.interleaved(
        {
            "iteration": lambda: trainer.iterate(state, key, STEPS // SEGMENT),
            "products": lambda: run_products(*product_args),
            "gates": lambda: run_gates(*gate_args),
        },
        FLAGS.repeats,
    )
    median = {name: row["median_s"] for name, row in times.items()}
    least = median["products"] + median["gates"]
    timing.write(
        path,
        {
            "optimizer": FLAGS.optimizer,
            "sizes": arguments,
            "coordinates": coordinates,
            "meta_batch": FLAGS.meta_batch,
            "steps": STEPS,
            "devices": len(devices),
            "times": times,
            "floor_s": least,
            "ratio_to_floor": median["iteration"] / least,
            "gflop_per_s": flop / median["iteration"] / 1e9,
            "floor_gflop_per_s": flop / median["products"] / 1e9,
            "coordinate_steps_per_s": coordinates * STEPS / median["iteration"],
            "compile_s": seconds,
            **timing.analysis(compiled),
            "peak_bytes": timing.peak_bytes(),
            "machine": timing.machine(),
        },
    )


if __name__ == "__main__":
    common.run(main, quick={"hidden_sizes": [4], "repeats": 2})
