r"""What global averaging cells are worth: optimizers learned with and without them.

    python -m experiments.bench_averaging --outdir=runs/averaging

RNNprop and DMoptimizer, meta-trained on random quadratics and on the base MLP on
digits, without and with --units of every layer averaged over all coordinates, all else
equal: budget, initial φ and episodes of a meta-seed. Each is then run on the task that
it was learned on, on the same instances. Writes a table, in which "ratio" is the
geometric mean over meta-seeds of the final loss (median of the runs) with over that
without, "stderr" the standard error of its logarithm, and the loss curves, each the
mean of --num_seeds learned ones.

About 20 minutes on 2 slow cores. At this budget they are worth nothing that shows:
ratios of 0.81, 0.87 (quadratics; RNNprop, DMoptimizer), 1.03 and 1.07 (digits), errors
of their logarithms .41, .71, .10 and .09, and an iteration costs two to three times as
much on digits, because it takes the general path.
"""

import itertools

import jax
import numpy as np
import optax
from absl import flags

from experiments import common, options, report, task_table
from experiments.learning import learn
from l2l_jax import evaluator, learned_optimizer, meta_trainer, plotting

FLAGS = flags.FLAGS
options.define_names(
    "tasks", ["quadratic", "digits_mlp"], task_table.TASKS, "What is optimized."
)
options.define_names(
    "optimizers", ["rnnprop", "dm"], ["rnnprop", "dm"], "What is learned."
)
options.define_numbers(
    "num_iterations", [2000, 80], "Of meta-training, for all tasks or for each."
)
flags.register_multi_flags_validator(
    ["tasks", "num_iterations"],
    lambda given: len(given["num_iterations"]) in (1, len(given["tasks"])),
    "--num_iterations must be one number, or one for each of --tasks",
)
flags.DEFINE_integer("units", 5, "Averaged units of each layer.", lower_bound=1)
flags.DEFINE_integer("hidden_size", 20, "Of the two layers.", lower_bound=1)
flags.DEFINE_integer("num_seeds", 3, "Meta-trainings of each.", lower_bound=2)
flags.DEFINE_integer("num_steps", 100, "Steps of a run.", lower_bound=20)
flags.DEFINE_integer("num_runs", 50, "Runs of each learned one.", lower_bound=2)
options.define_float("meta_learning_rate", 1e-3, "Of Adam, the outer optimizer.", 0)
options.define_outdir(required=True)


def compare(name: str, kind: str, num_iterations: int) -> tuple[dict, list]:
    """A row of the table, and two lines of the picture."""
    task = task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source)
    sizes = {"hidden_sizes": (FLAGS.hidden_size,) * 2}
    finals, seconds, lines = [], [], []
    for units, colour in zip((0, FLAGS.units), plotting.COLOURS, strict=False):
        optimizer = learned_optimizer(kind, sizes, averaged_units=units)
        trainer = meta_trainer(task, optimizer, optax.adam(FLAGS.meta_learning_rate))
        evaluation = evaluator(task, optimizer.transform)
        curves, of_seeds = [], []
        for seed in range(FLAGS.num_seeds):
            segments = FLAGS.num_steps // 20
            phi, of_iteration = learn(trainer, seed, num_iterations, segments)
            key = jax.random.key(10_000)
            result = evaluation.evaluate(phi, key, FLAGS.num_steps, FLAGS.num_runs)
            curves.append(result.curves.mean(axis=0))
            of_seeds.append(np.median(result.final))
            print(
                f"{name}, {kind}, {units} units, meta-seed {seed}: {of_seeds[-1]:.4g}"
            )
        finals.append(np.array(of_seeds))
        seconds.append(of_iteration)
        label = f"{units} units averaged"
        steps = np.arange(FLAGS.num_steps)
        band = plotting.band(np.stack(curves))
        lines.append(plotting.Line(label, steps, *band, {"color": colour}))
    logs = np.log(finals[1] / finals[0])
    row = {
        "task": name,
        "optimizer": kind,
        "without": float(finals[0].mean()),
        "with": float(finals[1].mean()),
        "ratio": float(np.exp(logs.mean())),
        "stderr": float(logs.std(ddof=1) / len(logs) ** 0.5),
        "of seeds": " ".join(f"{x:.3g}" for x in np.exp(logs)),
        "ms of an iteration": f"{1e3 * seconds[0]:.0f}, {1e3 * seconds[1]:.0f}",
    }
    return row, lines


def main(argv: list[str]) -> None:
    """Learns, compares, prints and writes."""
    del argv
    task_table.check_data(FLAGS.tasks, FLAGS.data_dir, FLAGS.data_source)
    directory = report.new_directory(FLAGS.outdir)
    rows, panels = [], []
    numbers = FLAGS.num_iterations
    if len(numbers) == 1:
        numbers = numbers * len(FLAGS.tasks)
    budgets = zip(FLAGS.tasks, numbers, strict=True)
    jobs = list(itertools.product(budgets, FLAGS.optimizers))
    for (name, num_iterations), kind in common.progress(jobs, str):
        row, lines = compare(name, kind, num_iterations)
        rows.append(row)
        panels.append(plotting.Panel(f"{kind}, {name}", "step", "loss", lines))
    report.write_result(directory / "averaging", rows, panels)


if __name__ == "__main__":
    common.run(
        main,
        quick={
            "num_iterations": [2],
            "num_seeds": 2,
            "num_runs": 2,
            "num_steps": 20,
        },
    )
