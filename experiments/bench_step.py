"""Times one step of the learned optimizers beside optax.adam and the least arithmetic.

The floor of a step is the bare matrix products of the LSTM layers and one evaluation of
the gates' functions, in pieces of at most 16,384 coordinates (a million on GPUs). The
time to read and write the state once stands beside it; the largest of the three is the
roofline, what a single kernel can come near to. On GPUs the kernel is timed beside the
fused path, both with products in float32 and in TF32.

    python -m experiments.bench_step --sizes=15910,1000000,10000000 --outdir=runs/step

About three minutes on 2 cores, and 8 GB of memory for ten million parameters; needs no
data.
"""

import itertools

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments import common, floor, options, timing
from l2l_jax import (
    dm_init,
    dm_transform,
    longrun_init,
    longrun_transform,
    rnnprop_init,
    rnnprop_transform,
)

FLAGS = flags.FLAGS
options.define_numbers(
    "sizes", [15_910, 1_000_000, 10_000_000], "Numbers of parameters."
)
flags.DEFINE_integer(
    "columns",
    1,
    "Length of the last axis of the parameters, as in the kernel of a dense layer with"
    " so many units; 1: they are a vector.",
    lower_bound=1,
)
flags.DEFINE_integer("repeats", 7, "Counted calls of each program.", lower_bound=1)
timing.define_outdir()


FEWEST = 200_000  # coordinates that are timed at once
FULL, SMALL = {"hidden_sizes": (20, 20)}, {"hidden_sizes": (8,), "input_size": 8}
# name: (transformation, weights, sizes, options)
LEARNED = {
    "rnnprop 2x20": (rnnprop_transform, rnnprop_init, FULL, {}),
    "rnnprop 1x8": (rnnprop_transform, rnnprop_init, SMALL, {}),
    "dm 2x20": (dm_transform, dm_init, FULL, {}),
    "longrun": (longrun_transform, longrun_init, {}, {}),
}
ON_GPUS = {
    f"rnnprop 2x20 {implementation}, {precision}": (
        rnnprop_transform,
        rnnprop_init,
        FULL,
        {"implementation": implementation, "precision": precision},
    )
    for implementation in ("kernel", "fused")
    for precision in ("highest", "default")
}


def optimizers() -> dict[str, tuple[optax.GradientTransformation, tuple, int]]:
    """Name -> transformation, hidden sizes, inputs of the lowest layer."""
    on_gpu = jax.default_backend() == "gpu"
    found = {"adam": (optax.adam(1e-3), (), 0)}
    for name, row in {**LEARNED, **(ON_GPUS if on_gpu else {})}.items():
        transform, init, sizes, options = row
        phi = init(jax.random.key(0), **sizes)
        hidden = sizes.get("hidden_sizes", ())
        inputs = phi.lstm[0].kernel.shape[0] - hidden[0] if hidden else 0
        found[name] = (transform(phi, **options), hidden, inputs)
    return found


def measure(
    tx: optax.GradientTransformation, sizes: tuple, inputs: int, size: int
) -> dict:
    """One row: ns a parameter, bytes of state a parameter, the floor."""
    columns = FLAGS.columns
    shape = (size,) if columns == 1 else (size // columns, columns)
    gradient = jax.random.normal(jax.random.key(1), shape)
    state = tx.init(gradient)
    size_of_state = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim)
    step, seconds = timing.compile_seconds(
        jax.jit(tx.update, donate_argnums=1), gradient, state
    )
    # Small steps are timed together, or the calls would be.
    calls = -(-FEWEST // size)
    copied = jnp.zeros((size_of_state // (4 * size), size))
    programs = {
        "step": _repeated(calls, step, gradient, state),
        "copy": _repeated(calls, jax.jit(_rewrite, donate_argnums=1), (), copied),
    }
    coordinates = {"step": calls * size, "copy": calls * size}
    del state, copied
    if sizes:
        piece = min(size, 2**14 if jax.default_backend() == "cpu" else 2**20)
        pieces = -(-max(size, FEWEST) // piece)
        products, args, flop = floor.products(sizes, inputs, piece, pieces, back=False)
        gates, gate_args = floor.gates(sizes, piece, pieces)
        programs |= {
            "products": lambda: products(*args),
            "gates": lambda: gates(*gate_args),
        }
        coordinates |= {"products": pieces * piece, "gates": pieces * piece}
    times = timing.interleaved(programs, FLAGS.repeats)
    row = {
        f"{key}_ns_per_parameter": value["median_s"] / coordinates[key] * 1e9
        for key, value in times.items()
    }
    row |= {
        "state_bytes_per_parameter": size_of_state / size,
        "compile_s": seconds,
        "times": times,
        **timing.analysis(step),
    }
    if sizes:
        least = row["products_ns_per_parameter"] + row["gates_ns_per_parameter"]
        flop_per_parameter = flop / coordinates["products"]
        row |= {
            "floor_ns_per_parameter": least,
            "ratio_to_floor": row["step_ns_per_parameter"] / least,
            "roofline_ns_per_parameter": max(
                row[f"{part}_ns_per_parameter"]
                for part in ("copy", "products", "gates")
            ),
            "gflop_per_s": flop_per_parameter / row["step_ns_per_parameter"],
            "floor_gflop_per_s": flop_per_parameter / row["products_ns_per_parameter"],
        }
    return row


def _rewrite(nothing, x):
    return nothing, x * 1.01


def _repeated(calls, step, argument, state):
    """A function of nothing that calls the step so often on its own last state."""

    def advance():
        nonlocal state
        for _ in range(calls):
            result, state = step(argument, state)
        return result, state

    return advance


def main(argv: list[str]) -> None:
    """Measures and reports."""
    del argv
    if wrong := [size for size in FLAGS.sizes if size % FLAGS.columns]:
        raise ValueError(
            f"--sizes must be multiples of --columns={FLAGS.columns}, got {wrong}"
        )
    path = timing.result_file("step.json")
    result: dict[int, dict] = {size: {} for size in FLAGS.sizes}
    found = optimizers()
    jobs = list(itertools.product(FLAGS.sizes, found))
    for size, name in common.progress(
        jobs, lambda job: f"{job[0]:,} parameters, {job[1]}"
    ):
        result[size][name] = measure(*found[name], size)
    timing.write(
        path,
        {
            "columns": FLAGS.columns,
            "sizes": result,
            "peak_bytes": timing.peak_bytes(),
            "machine": timing.machine(),
        },
    )


if __name__ == "__main__":
    common.run(main, quick={"sizes": [15_910], "repeats": 2})
