r"""Finds the learning rates of the traditional optimizers on a task.

    python -m experiments.tune_baselines --task=mnist_mlp --data_dir=DIR \
        --outdir=runs/tuned

About five minutes on 2 cores for the base MLP, 100 steps, 20 runs; Adam's rate is then
.03125 and its final loss about .31.
"""

import jax
from absl import flags

from experiments import common, options, report, task_table
from l2l_jax import evaluator, plotting
from l2l_jax.baselines import BASELINES, tune

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What is optimized.")
common.define_evaluation()
options.define_names(
    "optimizers", list(BASELINES), BASELINES, "Which ones, joined by commas."
)


def main(argv: list[str]) -> None:
    """Tunes, prints and writes."""
    del argv
    task = common.task()
    directory = report.new_directory(FLAGS.outdir)
    key, _ = common.keys(FLAGS.seed)
    rates, rows, tunings, best, notes = {}, [], [], [], []
    for name in common.progress(FLAGS.optimizers, str):
        tuning = tune(
            name,
            evaluator(task, BASELINES[name]),
            key,
            num_steps=FLAGS.num_steps,
            num_runs=FLAGS.num_runs,
            beyond=common.BEYOND,
        )
        tunings.append(tuning)
        rates[name] = {"rate": tuning.best_rate, "edge": tuning.edge}
        rows += [{"task": FLAGS.task, "optimizer": name, **row} for row in tuning.table]
        if tuning.best_rate is None:
            notes.append(f"note: {name} has no rate without a diverging run")
            continue
        found = {row["rate"]: row for row in rows if row["optimizer"] == name}
        best.append(found[tuning.best_rate])
        if tuning.edge:
            notes.append(f"note: {name}'s best rate is at the edge of the grid")
    if best:
        print(f"{report.table(best)}\n{report.MEANING}")
    for note in notes:
        print(note)
    report.write_csv(directory / "tuned.csv", rows)
    title = f"{FLAGS.task}, {FLAGS.num_steps:,} steps"
    unit = task_table.unit(FLAGS.task)
    panel = plotting.rate_sensitivity(tunings, title=title, unit=unit)
    report.write_panels([directory / "tuned.png"], [panel])
    report.write_json(
        directory / "tuned.json",
        {
            "task": FLAGS.task,
            "num_steps": FLAGS.num_steps,
            "num_runs": FLAGS.num_runs,
            "seed": FLAGS.seed,
            "device": jax.devices()[0].device_kind,
            "optimizers": rates,
            "table": rows,
        },
    )


if __name__ == "__main__":
    common.run(
        main, quick={"num_steps": 20, "num_runs": 2, "optimizers": ["adam", "sgd"]}
    )
