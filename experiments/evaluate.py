r"""Compares learned optimizers with tuned traditional ones on a task.

    python -m experiments.evaluate --task=mnist_mlp --data_dir=DIR \
        --weights=rnnprop,ours=runs/rnnprop --tuned=runs/tuned/tuned.json \
        --outdir=runs/compared

About two minutes on 2 cores for 20 runs of 100 steps on the base MLP, tuning apart.
"""

import json
import pathlib

import jax
from absl import flags

from experiments import common, options, report, weights
from l2l_jax import evaluator
from l2l_jax.baselines import BASELINES, tune

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What is optimized.")
common.define_evaluation()
flags.DEFINE_list(
    "weights",
    [],
    "Learned optimizers: files, directories of runs, whose selected weights are taken,"
    " or names that ship, such as rnnprop; each may have a name before it, name=file.",
)
options.define_names(
    "baselines",
    ["adam"],
    BASELINES,
    "Traditional optimizers to compare with; may be empty.",
    may_be_empty=True,
)
flags.DEFINE_string(
    "tuned",
    None,
    "File tuned.json that tune_baselines wrote for this task and --num_steps; without"
    " it, rates are tuned first, with --num_runs runs each.",
)


def stored_rates() -> dict[str, float | None]:
    """The learning rate of each baseline, from --tuned."""
    wanted = {"task": FLAGS.task, "num_steps": FLAGS.num_steps}
    try:
        tuned = json.loads(pathlib.Path(FLAGS.tuned).read_text())
        found = {name: tuned[name] for name in wanted}
        rates = {name: one["rate"] for name, one in tuned["optimizers"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"--tuned={FLAGS.tuned} is no tuned.json that tune_baselines wrote"
        ) from None
    if found != wanted:
        raise ValueError(f"{FLAGS.tuned} was tuned for {found}, not for {wanted}")
    if missing := [name for name in FLAGS.baselines if name not in rates]:
        raise ValueError(
            f"{FLAGS.tuned} has no rates of {', '.join(missing)}; it has those of"
            f" {', '.join(rates)}"
        )
    return {name: rates[name] for name in FLAGS.baselines}


def tuned_rates(task, key) -> dict[str, float | None]:
    """The same, tuned now."""
    return {
        name: tune(
            name,
            evaluator(task, BASELINES[name]),
            key,
            num_steps=FLAGS.num_steps,
            num_runs=FLAGS.num_runs,
            beyond=common.BEYOND,
        ).best_rate
        for name in common.progress(FLAGS.baselines, "tuning {}".format)
    }


def main(argv: list[str]) -> None:
    """Evaluates, prints and writes."""
    del argv
    learned = weights.read_all(FLAGS.weights, FLAGS.baselines)
    if not (learned or FLAGS.baselines):
        raise ValueError("--weights and --baselines are empty: nothing to compare")
    rates = stored_rates() if FLAGS.tuned else {}
    task = common.task()
    directory = report.new_directory(FLAGS.outdir)
    tuning_key, key = common.keys(FLAGS.seed)
    rates = rates or tuned_rates(task, tuning_key)

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
        transform, decides = candidates[name]
        result = evaluator(task, transform).evaluate(
            decides, key, FLAGS.num_steps, FLAGS.num_runs
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
    print(f"{report.table(rows)}\n{report.MEANING}")
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
