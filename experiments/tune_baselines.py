r"""Finds the learning rates of the traditional optimizers on a task.

    python -m experiments.tune_baselines --task=mnist_mlp --data_dir=DIR \
        --outdir=runs/tuned

About five minutes on 2 cores for the base MLP, 100 steps, 20 runs; Adam's rate is then
.03125 and its final loss about .31.
"""

import jax
from absl import flags

from experiments import common, report, task_table
from l2l_jax import evaluator, plotting
from l2l_jax.baselines import BASELINES, tune

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What is optimized.")
common.define_evaluation()
flags.DEFINE_list("optimizers", list(BASELINES), "Which ones, joined by commas.")
flags.mark_flag_as_required("outdir")


def main(argv: list[str]) -> None:
    """Tunes, prints and writes."""
    del argv
    task = common.task()
    unknown = set(FLAGS.optimizers) - set(BASELINES)
    if unknown:
        raise ValueError(f"unknown optimizers {unknown}; known are {list(BASELINES)}")
    directory = report.new_directory(FLAGS.outdir)
    key, _ = common.keys(FLAGS.seed)
    rates, rows, tunings = {}, [], []
    for name in common.progress(FLAGS.optimizers, str):
        tuning = tune(
            name,
            evaluator(task, BASELINES[name]),
            key,
            num_steps=FLAGS.num_steps,
            num_runs=FLAGS.num_runs,
        )
        tunings.append(tuning)
        rates[name] = {"rate": tuning.best_rate, "edge": tuning.edge}
        rows += [{"task": FLAGS.task, "optimizer": name, **row} for row in tuning.table]
        best = [row for row in rows if row["optimizer"] == name]
        if tuning.best_rate is None:
            print(f"note: {name} has no rate without a diverging run")
            continue
        print(report.table([r for r in best if r["rate"] == tuning.best_rate]))
        if tuning.edge:
            print(f"note: {name}'s best rate is at the edge of the grid")
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
