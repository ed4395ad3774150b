"""Measures the memory of a step of the learned optimizers with donated state.

For each size and layout a fresh process takes three steps on one leaf of parameters,
with the 2x20 RNNprop, and tells the most memory that it held; beside it stands XLA's
own account of the program. "peak" and "program" are multiples of state and gradients,
without which nothing goes; "program" is what XLA plans, "peak" the whole process with
Python and the compiler in it. Sizes above --largest are compiled and not run.

    python -m experiments.bench_memory --outdir=runs/memory

About four minutes on 2 cores, and 4 GB of memory; needs no data. To expect: "peak"
below 1.3, "program" below 1.05, no exchanges between devices.
"""

import concurrent.futures
import itertools
import multiprocessing
import re
import signal

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import common, options, timing
from l2l_jax import rnnprop_init, rnnprop_transform, state_sharding

FLAGS = flags.FLAGS
options.define_numbers(
    "sizes", [10_000_000, 100_000_000], "Numbers of parameters; multiples of 8,000."
)
flags.register_validator(
    "sizes",
    lambda sizes: not any(size % 8000 for size in sizes),
    "must be multiples of 8,000",
)
flags.DEFINE_integer("largest", 10_000_000, "Most parameters that are allocated.")
timing.define_outdir()

COLUMNS = 1000
EXCHANGES = r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
# name: devices along the rows and the columns of a leaf
LAYOUTS = {"1 device": (1, 1), "8 devices, rows": (8, 1), "8 devices, both": (4, 2)}


def measure(devices: tuple[int, int], size: int, run: bool) -> dict:
    """One row; to be called in a process of its own.

    Args:
      devices: along rows and columns of the leaf; simulated ones on a CPU.
      size: number of parameters, a multiple of 8,000.
      run: whether to allocate anything.
    """
    jax.config.update("jax_num_cpu_devices", devices[0] * devices[1])
    tx = rnnprop_transform(rnnprop_init(jax.random.key(0)))
    mesh = jax.make_mesh(devices, ("rows", "columns"), (AxisType.Auto,) * 2)
    here = NamedSharding(mesh, PartitionSpec("rows", "columns"))
    shape = (size // COLUMNS, COLUMNS)
    params = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here)
    placed = state_sharding(tx, params)
    state = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        jax.eval_shape(tx.init, params),
        placed,
    )
    step = jax.jit(tx.update, donate_argnums=1).lower(params, state).compile()
    memory = step.memory_analysis()
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, params)))
    planned = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    row = {
        "state_and_gradient_bytes": needed,
        "program_bytes_per_device": planned,
        "program": planned * mesh.size / needed,
        "work_space_bytes_per_device": memory.temp_size_in_bytes,
        "exchanges": sorted(set(re.findall(EXCHANGES, step.as_text()))),
    }
    if run:
        g = jax.jit(lambda: jnp.ones(shape), out_shardings=here)()
        state = jax.jit(tx.init, out_shardings=placed)(g)
        for _ in range(3):
            updates, state = jax.block_until_ready(step(g, state))
            del updates
        row["peak_bytes"] = timing.peak_bytes()
        row["peak"] = row["peak_bytes"] / needed
    return row


def apart(*args) -> dict:
    """`measure` in a fresh process, so that the peak is its own."""
    context = multiprocessing.get_context("spawn")
    # Ctrl-C ends it without a traceback of its own.
    ending = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with concurrent.futures.ProcessPoolExecutor(1, context, **ending) as pool:
        return pool.submit(measure, *args).result()


def main(argv: list[str]) -> None:
    """Measures and reports."""
    del argv
    path = timing.result_file("memory.json")
    result: dict[int, dict] = {size: {} for size in FLAGS.sizes}
    jobs = list(itertools.product(FLAGS.sizes, LAYOUTS))
    for size, name in common.progress(
        jobs, lambda job: f"{job[0]:,} parameters, {job[1]}"
    ):
        result[size][name] = apart(LAYOUTS[name], size, size <= FLAGS.largest)
    timing.write(path, {"sizes": result, "machine": timing.machine()})


if __name__ == "__main__":
    common.run(main, quick={"sizes": [16_000], "largest": 20_000})
