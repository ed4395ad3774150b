"""Times one step of the learned optimizers beside optax.adam.

    python -m experiments.bench_step --sizes=15910,1000000 --out=bench.json

About a minute on 2 cores; needs no data.
"""

import jax
import optax
from absl import app, flags

from experiments import timing
from l2l_jax import dm_init, dm_transform, rnnprop_init, rnnprop_transform

FLAGS = flags.FLAGS
flags.DEFINE_list("sizes", ["15910", "1000000"], "Numbers of parameters.")
flags.DEFINE_integer("repeats", 7, "Counted calls of each program.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write; default: only print.")


def optimizers() -> dict[str, optax.GradientTransformation]:
    """What is compared."""
    key = jax.random.key(0)
    return {
        "adam": optax.adam(1e-3),
        "rnnprop 2x20": rnnprop_transform(rnnprop_init(key)),
        "rnnprop 1x8": rnnprop_transform(
            rnnprop_init(key, hidden_sizes=(8,), input_size=8)
        ),
        "dm 2x20": dm_transform(dm_init(key)),
    }


def measure(size: int) -> dict:
    """One row an optimizer: ns a parameter and bytes of state a parameter."""
    gradient = jax.random.normal(jax.random.key(1), (size,))
    programs, rows = {}, {}
    for name, tx in optimizers().items():
        state = tx.init(gradient)
        size_of_state = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim)
        step, seconds = timing.compile_seconds(
            jax.jit(tx.update, donate_argnums=1), gradient, state
        )
        rows[name] = {
            "state_bytes_per_parameter": size_of_state / size,
            "compile_s": seconds,
            **timing.analysis(step),
        }
        programs[name] = _stepper(step, gradient, state)
    for name, times in timing.interleaved(programs, FLAGS.repeats).items():
        rows[name] |= {**times, "ns_per_parameter": times["median_s"] / size * 1e9}
    return rows


def _stepper(step, gradient, state):
    def advance():
        nonlocal state
        updates, state = step(gradient, state)
        return updates, state

    return advance


def main(argv: list[str]) -> None:
    """Measures and reports."""
    del argv
    result = {size: measure(int(size)) for size in FLAGS.sizes}
    timing.write(
        FLAGS.out,
        {
            "sizes": result,
            "peak_bytes": timing.peak_bytes(),
            "machine": timing.machine(),
        },
    )


if __name__ == "__main__":
    app.run(main)
