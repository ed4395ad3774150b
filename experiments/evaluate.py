r"""Compares learned optimizers with tuned traditional ones on a task.

    python -m experiments.evaluate --task=mnist_mlp --data_dir=DIR \
        --weights=runs/rnnprop/weights/00001000.npz --tuned=runs/tuned/tuned.json \
        --outdir=runs/compared

About two minutes on 2 cores for 20 runs of 100 steps on the base MLP, tuning apart.
"""

import json
import pathlib

import jax
from absl import flags

from experiments import common, report
from l2l_jax import evaluator, load
from l2l_jax.baselines import BASELINES, tune

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What is optimized.")
common.define_evaluation()
flags.DEFINE_list(
    "weights", [], "Files of learned optimizers, each `file` or `name=file`."
)
flags.DEFINE_list("baselines", ["adam"], "Traditional optimizers to compare with.")
flags.DEFINE_string(
    "tuned",
    None,
    "File tuned.json that tune_baselines wrote for this task and --num_steps; without"
    " it, rates are tuned first, with --num_runs runs each.",
)
flags.mark_flag_as_required("outdir")


def tuned_rates(task, key) -> dict[str, float | None]:
    """The learning rate of each baseline, from --tuned or tuned now."""
    unknown = set(FLAGS.baselines) - set(BASELINES)
    if unknown:
        raise ValueError(f"unknown baselines {unknown}; known are {list(BASELINES)}")
    if not FLAGS.tuned:
        return {
            name: tune(
                name,
                evaluator(task, BASELINES[name]),
                key,
                num_steps=FLAGS.num_steps,
                num_runs=FLAGS.num_runs,
            ).best_rate
            for name in FLAGS.baselines
        }
    tuned = json.loads(pathlib.Path(FLAGS.tuned).read_text())
    wanted = {"task": FLAGS.task, "num_steps": FLAGS.num_steps}
    found = {name: tuned.get(name) for name in wanted}
    if found != wanted:
        raise ValueError(f"{FLAGS.tuned} was tuned for {found}, not for {wanted}")
    missing = set(FLAGS.baselines) - set(tuned["optimizers"])
    if missing:
        raise ValueError(f"{FLAGS.tuned} has no rates of {missing}")
    return {name: tuned["optimizers"][name]["rate"] for name in FLAGS.baselines}


def main(argv: list[str]) -> None:
    """Evaluates, prints and writes."""
    del argv
    learned = {}
    for entry in FLAGS.weights:
        name, _, path = entry.rpartition("=")
        learned[name or pathlib.Path(path).stem] = load(path)
    task = common.task()
    tuning_key, key = common.keys(FLAGS.seed)
    rates = tuned_rates(task, tuning_key)
    directory = report.new_directory(FLAGS.outdir)

    candidates = {
        **{
            name: (
                lambda phi, one=one: one._replace(params=phi).transform(),
                one.params,
            )
            for name, one in learned.items()
        },
        **{name: (BASELINES[name], rate) for name, rate in rates.items() if rate},
    }
    rows, curves, values = [], {}, {}
    for name in common.progress(candidates, str):
        transform, weights = candidates[name]
        result = evaluator(task, transform).evaluate(
            weights, key, FLAGS.num_steps, FLAGS.num_runs
        )
        rows.append(
            {
                "task": FLAGS.task,
                "optimizer": name,
                "rate": rates.get(name),
                **result.summary(),
            }
        )
        curves[name], values[name] = result.curves, result.final
    print(report.table(rows))
    report.write_csv(directory / "table.csv", rows)
    report.write_json(
        directory / "table.json",
        {
            "table": rows,
            "final_losses": values,
            "num_steps": FLAGS.num_steps,
            "seed": FLAGS.seed,
            "device": jax.devices()[0].device_kind,
        },
    )
    report.write_curves(directory / "curves.png", {FLAGS.task: curves})


if __name__ == "__main__":
    common.run(main, quick={"num_steps": 20, "num_runs": 2})
