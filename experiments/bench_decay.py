r"""What weight decay gives on the test set: Longrun beside AdamW.

    python -m experiments.bench_decay --data_dir=DIR --outdir=runs/decay \
        --cells=experiments/results/paper/cells

Longrun takes no rate, so its parameters lose the fraction --decays of themselves at
each step, as `optax.add_decayed_weights` behind it makes them. AdamW has a cosine
schedule to zero over the known horizon, its peak rate is the best for the training loss
without decay, tuned as by `experiments.reproduce` (stored in --cells), and it begins
with the same decays a step. Runs are paired. Writes a table and test accuracy against
training loss, a point a decay.
"""

import pathlib

import jax
import numpy as np
import optax
from absl import flags

from experiments import cells, common, options, paper, report, task_table
from l2l_jax import Evaluation, evaluator, load_pretrained
from l2l_jax.tasks import accuracy

FLAGS = flags.FLAGS
common.define_tasks("Classification tasks.")
FLAGS.set_default("task", "mnist_mlp,mnist_mlp_relu")
options.define_numbers("num_steps", [2000, 10_000], "Steps of the runs.", least=20)
options.define_numbers(
    "decays", [0, 1e-4, 3e-4, 1e-3], "What a parameter loses at a step.", float, 0
)
flags.DEFINE_integer("num_runs", 10, "Paired runs.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
flags.DEFINE_string("cells", "runs/paper/cells", "Directory of the tuned rates.")
options.define_outdir(required=True)


def families(rate: float, num_steps: int) -> dict:
    """Name -> transformation of a decay a step."""

    def longrun(decay):
        return optax.chain(
            load_pretrained("longrun").transform(), optax.add_decayed_weights(-decay)
        )

    def adamw(decay):
        schedule = optax.cosine_decay_schedule(rate, num_steps)
        return optax.adamw(schedule, weight_decay=decay / rate)

    return {"Longrun": longrun, "AdamW, cosine": adamw}


def with_error(what: str, values: np.ndarray) -> dict[str, float]:
    """Mean and standard error of the runs."""
    error = values.std(ddof=1) / len(values) ** 0.5
    return {what: float(values.mean()), f"stderr of {what}": float(error)}


def correct_of(name: str):
    """The test accuracy of each run of an evaluation."""
    fraction = accuracy(
        task_table.make_module(name),
        task_table.make_dataset(name, FLAGS.data_dir, FLAGS.data_source, "test"),
        pixel_range=task_table.pixel_range(name),
    )

    def correct(result: Evaluation) -> np.ndarray:
        trees = (
            jax.tree.map(lambda x, i=i: x[i], result.params)
            for i in range(len(result.final))
        )
        return np.array([float(fraction(params)) for params in trees])

    return correct


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    del argv
    if unfit := [n for n in FLAGS.task if task_table.make_module(n) is None]:
        raise ValueError(f"--task must name classification tasks, got {unfit}")
    directory = report.new_directory(FLAGS.outdir)
    lab = cells.Laboratory(
        pathlib.Path(FLAGS.cells),
        {},
        FLAGS.data_dir,
        FLAGS.data_source,
        FLAGS.seed,
        quick=FLAGS.quick,
    )
    rows = []
    tests = [(name, steps) for name in FLAGS.task for steps in FLAGS.num_steps]
    for name, steps in common.progress(tests, lambda test: f"{test[0]}, {test[1]:,}"):
        task = task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source)
        correct = correct_of(name)
        rate = cells.tuned(lab, paper.Cell(name, steps, "adamw_cosine")).best_rate
        if rate is None:
            raise RuntimeError(f"AdamW diverged at every rate on {name}, {steps} steps")
        key = common.keys(FLAGS.seed)[1]
        for label, family in families(rate, steps).items():
            evaluate = evaluator(task, family).evaluate
            for decay in FLAGS.decays:
                result = evaluate(decay, key, steps, FLAGS.num_runs)
                row = {
                    "test": f"{name}, {steps:,} steps",
                    "optimizer": label,
                    "peak rate": None if label == "Longrun" else rate,
                    "decay a step": float(decay),
                    **with_error("loss", result.final),
                    **with_error("accuracy", correct(result)),
                }
                rows.append(row)
                print(*row.values(), sep=", ")
    columns = ("loss", "accuracy", "stderr of accuracy")
    labels = ("final loss (nats)", "test accuracy")
    panels = report.panels_of(rows, columns, labels)
    report.write_result(directory / "decay", rows, panels)


if __name__ == "__main__":
    common.run(main, quick={"num_steps": [40], "num_runs": 2})
