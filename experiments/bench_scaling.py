r"""Random Scaling and the variants that were tried and dropped, at the same budget.

    python -m experiments.bench_scaling --outdir=runs/scaling

A small RNNprop (one layer of 8 units, no convex part) learns on the sigmoid MLP under
each variant, from the same initial weights and on the same episodes, several meta-seeds
each, and then optimizes the ReLU MLP, which it never saw, for ten times as many steps
as its episodes had. Writes a table and the curves. A quarter of an hour on 2 cores.
"""

from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from experiments import common, options, report, task_table
from experiments.learning import learn
from l2l_jax import evaluator, learned_optimizer, meta_trainer, plotting, random_scaling

FLAGS = flags.FLAGS
common.define_task("digits_mlp", "What is learned on, in episodes of 100 steps.")
flags.DEFINE_enum(
    "test", "digits_mlp_relu", task_table.TASKS, "What is then optimized."
)
flags.DEFINE_integer("num_iterations", 600, "Episodes of meta-training.", lower_bound=1)
flags.DEFINE_integer("num_seeds", 3, "Meta-seeds.", lower_bound=2)
flags.DEFINE_integer("num_runs", 20, "Runs of each learned one.", lower_bound=1)
flags.DEFINE_integer("num_steps", 1000, "Of these runs.", lower_bound=1)
options.define_float("bound", 3.0, "L, of every variant.", 0)
options.define_outdir(required=True)

# name: arguments of `random_scaling`; None: not at all.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "each coordinate, log-uniform (the paper)": {},
    "each coordinate, uniform": {"distribution": "uniform"},
    "one factor for the parameters": {"of": "parameters"},
    "one factor for the function": {"of": "function"},
    "each coordinate, a fifth dropped": {"dropped": 0.2},
    "only a fifth dropped": {"bound": 0.0, "dropped": 0.2},
}
FAMILY = learned_optimizer("rnnprop", {"hidden_sizes": (8,), "input_size": 8})


def learn_under(variant: dict[str, Any] | None) -> list[Any]:
    """The weights φ of each meta-seed."""
    task = common.task()
    if variant is not None:
        task = random_scaling(task, **{"bound": FLAGS.bound, **variant})
    # Ten times the paper's rate, as in quickstart: the budget is small.
    trainer = meta_trainer(task, FAMILY, optax.adam(1e-3))
    seeds = range(FLAGS.num_seeds)
    return [learn(trainer, seed, FLAGS.num_iterations, 5)[0] for seed in seeds]


def main(argv: list[str]) -> None:
    """Learns, compares, prints and writes."""
    del argv
    tests = {
        name: evaluator(
            task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source),
            FAMILY.transform,
        )
        for name in (FLAGS.task, FLAGS.test)
    }
    directory = report.new_directory(FLAGS.outdir)
    key = jax.random.key(FLAGS.num_seeds)
    rows, lines = [], []
    for (name, variant), colour in zip(
        common.progress(VARIANTS.items(), lambda item: item[0]),
        plotting.COLOURS,
        strict=False,
    ):
        learned = learn_under(variant)
        row: dict[str, Any] = {"scaled": name}
        for test, one in tests.items():
            steps = 100 if test == FLAGS.task else FLAGS.num_steps
            runs = [one.evaluate(phi, key, steps, FLAGS.num_runs) for phi in learned]
            # A meta-seed counts as one observation, not its runs.
            means = np.array([run.final.mean() for run in runs])
            mean, error = plotting.band(means)
            row[f"{test}, {steps:,}"] = float(mean)
            row[f"stderr, {steps:,}"] = float(error)
        row["diverged"] = int(sum(run.diverged.sum() for run in runs))
        curves = np.stack([run.curves.mean(axis=0) for run in runs])
        block = max(1, curves.shape[1] // 100)
        curves = curves[:, : curves.shape[1] // block * block]
        curves = curves.reshape(len(curves), -1, block).mean(axis=2)
        steps = (np.arange(curves.shape[1]) + 0.5) * block
        lines.append(
            plotting.Line(name, steps, *plotting.band(curves), {"color": colour})
        )
        rows.append(row)
        print(row, flush=True)
    panel = plotting.Panel(FLAGS.test, "step", "minibatch loss (nats)", lines)
    report.write_result(directory / "scaling", rows, [panel])


if __name__ == "__main__":
    common.run(
        main,
        quick={"num_iterations": 4, "num_seeds": 2, "num_runs": 2, "num_steps": 20},
    )
