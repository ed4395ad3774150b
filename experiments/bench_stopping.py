r"""Where a meta-training is stopped: final losses along it, task by task.

    python -m experiments.bench_stopping --data_dir=DIR --outdir=runs/stopping \
        --workdir=experiments/results/rnnprop_mnist

Takes the weights of a run at every --every iterations, and those that its own rule
selects, and uses each on the same episodes. Writes a table, beside the training loss
(mean of the --every iterations before), and final loss against iteration, the selected
one a dot. --hyper_parameters=step_size=0.08 --every=5000 tells whether it is the length
of steps that is wrong.
"""

from collections.abc import Iterable

import numpy as np
from absl import flags

from experiments import common, options, report, task_table, weights
from l2l_jax import evaluator, load, plotting, runs

FLAGS = flags.FLAGS
common.define_tasks("Tasks.")
FLAGS.set_default("task", "mnist_mlp,mnist_mlp_relu,mnist_mlp_elu,mnist_mlp_tanh")
options.define_directory("workdir", None, "Directory of the run.", required=True)
flags.DEFINE_integer("every", 500, "Iterations from one to the next.", lower_bound=1)
options.define_settings(
    "hyper_parameters",
    "Of the transformation, in the place of the run's own, such as step_size=0.06.",
)
flags.DEFINE_integer("num_steps", 100, "Steps of each run.", lower_bound=1)
flags.DEFINE_integer("num_runs", 16, "Paired runs.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
options.define_outdir(required=True)


def iterations_of(stored: Iterable[int], selected: int, every: int) -> list[int]:
    """Those of the stored weights that are used, in order.

    Example:
      >>> iterations_of([100, 200, 250, 300, 400], selected=250, every=200)
      [200, 250, 400]
    """
    return sorted({selected, *(i for i in stored if i % every == 0)})


def panels(rows: list[dict]) -> list[plotting.Panel]:
    """A panel a task, a line with a band, a dot where the run's rule stops."""

    def column(name, chosen):
        return np.array([row[name] for row in chosen])

    def line(label, name, chosen, style):
        error = column(f"stderr of {name}", chosen)
        x = column("iterations", chosen)
        return plotting.Line(label, x, column(name, chosen), error, style)

    def panel(name):
        lines = [
            line("final loss", name, rows, {"color": report.COLOURS[0]}),
            line("selected", name, marked, {"color": "black", "marker": "o"}),
        ]
        return plotting.Panel(name, "iterations", "final loss (nats)", lines, log="")

    marked = [row for row in rows if row["selected"]]
    return [panel(name) for name in FLAGS.task]


def main(argv: list[str]) -> None:
    """Evaluates, prints and writes."""
    del argv
    chosen = weights.selected(FLAGS.workdir)
    stored = {int(path.stem): path for path in chosen.parent.glob("*.npz")}
    training = runs.read_log(FLAGS.workdir)["train_loss"]
    tasks = {
        name: task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source)
        for name in FLAGS.task
    }
    rule = load(chosen)
    config = {**rule.config, **(FLAGS.hyper_parameters or {})}
    transform = weights.optimizer(rule.kind, None, config).transform
    directory = report.new_directory(FLAGS.outdir)

    evaluators = {name: evaluator(task, transform) for name, task in tasks.items()}
    key = common.keys(FLAGS.seed)[1]
    rows = []
    used = iterations_of(stored, int(chosen.stem), FLAGS.every)
    for iteration in common.progress(used, lambda i: f"{i:,} iterations"):
        params = load(stored[iteration]).params
        row = {
            "iterations": iteration,
            "selected": iteration == int(chosen.stem),
            "training loss": float(training[:iteration][-FLAGS.every :].mean()),
        }
        for name, evaluation in evaluators.items():
            result = evaluation.evaluate(params, key, FLAGS.num_steps, FLAGS.num_runs)
            summary = result.summary()
            row |= {name: summary["mean"], f"stderr of {name}": summary["stderr"]}
        rows.append(row)
        print(*row.values(), sep=", ")
    report.write_result(directory / "stopping", rows, panels(rows))


if __name__ == "__main__":
    common.run(main, quick={"num_steps": 40, "num_runs": 2})
