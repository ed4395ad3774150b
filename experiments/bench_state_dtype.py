r"""What storing the LSTM's state in bfloat16 changes, over a long run.

    python -m experiments.bench_state_dtype --data_dir=DIR --num_steps=10000

Each optimizer runs three times on the same initial parameters and minibatches: state in
float32, in bfloat16, and in float32 by `implementation="plain"`, which differs from the
first by rounding alone: two trajectories of a chaotic system part anyhow, and only what
goes beyond is due to bfloat16. A quarter of an hour on 2 idle cores for 10,000 steps.
"""

import jax
import numpy as np
from absl import flags

from experiments import common, options, report, timing
from l2l_jax import evaluator, load_pretrained

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What is optimized.")
flags.DEFINE_integer("num_steps", 10_000, "Steps of each run.", lower_bound=1)
flags.DEFINE_integer("num_runs", 3, "Paired runs.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
options.define_names(
    "names",
    ["rnnprop", "dm"],
    ["rnnprop", "dm"],
    "Optimizers that ship and have a state_dtype.",
)
timing.define_outdir()

VARIANTS = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "float32, plain": {"implementation": "plain"},
}
WINDOW = 100


def distance(found, reference, start) -> float:
    """|θ - θ_ref| over the way |θ_ref - θ_0| of the reference, mean of the runs."""
    flat = [
        np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1)
        for tree in (found, reference, start)
    ]
    apart = np.linalg.norm(flat[0] - flat[1], axis=1)
    return float(np.mean(apart / np.linalg.norm(flat[1] - flat[2], axis=1)))


def state_bytes(learned, options) -> int:
    """Of the optimizer's state, a parameter."""
    theta = jax.ShapeDtypeStruct((10**6,), np.float32)
    state = jax.eval_shape(learned.transform(**options).init, theta)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) // 10**6


def compare(name: str, task, key: jax.Array) -> list[dict]:
    """One row a variant: losses in windows, final loss, distance in parameters."""
    learned = load_pretrained(name)
    start = evaluator(task, lambda rate: learned.transform(step_size=0.0)).evaluate(
        0.0, key, 1, FLAGS.num_runs
    )
    rows, reference = [], None
    for variant in common.progress(VARIANTS, lambda variant: f"{name}, {variant}"):
        options = VARIANTS[variant]

        def transform(phi, options=options):
            return learned._replace(params=phi).transform(**options)

        result = evaluator(task, transform).evaluate(
            learned.params, key, FLAGS.num_steps, FLAGS.num_runs
        )
        reference = reference or result
        ends = [n for n in (100, 1_000, 10_000, 100_000) if n <= FLAGS.num_steps]
        rows.append(
            {
                "optimizer": name,
                "state": variant,
                "bytes a parameter": state_bytes(learned, options),
                **{
                    f"loss to step {n}": float(result.curves[:, n - WINDOW : n].mean())
                    for n in ends
                },
                "final": result.summary()["mean"],
                "stderr": result.summary()["stderr"],
                "diverged": int(result.diverged.sum()),
                "distance": distance(result.params, reference.params, start.params),
            }
        )
        print(report.table(rows[-1:], list(rows[0])), flush=True)
    return rows


def main(argv: list[str]) -> None:
    """Measures and writes."""
    del argv
    task = common.task()
    path = timing.result_file("state_dtype.json")
    rows = [
        row
        for name in FLAGS.names
        for row in compare(name, task, jax.random.key(FLAGS.seed))
    ]
    print(report.table(rows, list(rows[0])))
    result = {"task": FLAGS.task, "num_steps": FLAGS.num_steps, "rows": rows}
    timing.write(path, result | timing.machine())


if __name__ == "__main__":
    common.run(main, quick={"num_steps": 20, "num_runs": 2, "names": ["rnnprop"]})
