r"""What ε gives where gradients all but vanish: Adam, tuned for each ε, and Longrun.

    python -m experiments.bench_epsilon --data_dir=DIR --outdir=runs/epsilon \
        --task=mnist_mlp_depth8,mnist_mlp_depth10

Adam's rate is tuned for each task, horizon and ε, on randomness of its own, as by
`experiments.tune_baselines`; Longrun, and its nominal rule, have their weights as they
ship, learned with an ε of 1e-16. Runs of the comparison are paired. Writes a table, in
it the ratio of the loss of Longrun with the smallest ε to that of each, with 2 standard
errors of the paired difference, and final loss against ε.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from absl import flags

from experiments import common, options, report, task_table
from l2l_jax import Evaluation, Task, evaluator, load_pretrained
from l2l_jax.baselines import tune

FLAGS = flags.FLAGS
common.define_tasks("Tasks.")
FLAGS.set_default("task", "mnist_mlp_depth8")
common.define_evaluation()
FLAGS.set_default("num_runs", 100)
options.define_numbers("epsilons", [1e-8, 1e-16], "Values of ε.", float, 1e-37)
flags.DEFINE_integer("tuning_runs", 20, "Runs at each of Adam's rates.", lower_bound=1)

LONGRUN = {"Longrun": {}, "nominal rule": {"learned_scale": 0.0}}


def adam(task: Task, eps: float, tuning: jax.Array) -> tuple[float | None, Callable]:
    """Its best rate, and how to evaluate it there."""
    evaluation = evaluator(
        task, lambda rate: optax.adam(rate, b1=0.9, b2=0.999, eps=eps)
    )
    steps, runs = FLAGS.num_steps, FLAGS.tuning_runs
    rate = tune(
        "adam", evaluation, tuning, num_steps=steps, num_runs=runs, beyond=common.BEYOND
    ).best_rate
    return rate, lambda key: evaluation.evaluate(rate, key, steps, FLAGS.num_runs)


def longrun(task: Task, changes: dict[str, Any], key: jax.Array) -> Evaluation:
    """Longrun with other hyper-parameters."""
    learned = load_pretrained("longrun")
    family = evaluator(task, lambda none: learned.transform(**changes))
    return family.evaluate(None, key, FLAGS.num_steps, FLAGS.num_runs)


def measured(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a task."""
    task = task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source)
    tuning, key = common.keys(FLAGS.seed)
    ours = {
        (label, eps): longrun(task, {"eps": eps, **changes}, key)
        for eps in FLAGS.epsilons
        for label, changes in LONGRUN.items()
    }
    reference = ours["Longrun", min(FLAGS.epsilons)].final

    def row(label: str, eps: float, rate: float | None, result: Evaluation):
        summary = result.summary()
        ratio, error, _ = report.compare(reference, result.final)
        return {
            "test": f"{name}, {FLAGS.num_steps:,} steps",
            "optimizer": label,
            "ε": float(eps),
            "rate": rate,
            **{what: summary[what] for what in ("mean", "stderr", "diverged")},
            "Longrun over this": ratio,
            "2 stderr": error,
        }

    for eps in FLAGS.epsilons:
        rate, evaluate = adam(task, eps, tuning)
        if rate is None:
            raise RuntimeError(
                f"Adam with ε = {eps:g} diverged at every rate on {name}"
            )
        yield row("Adam", eps, rate, evaluate(key))
        for label in LONGRUN:
            yield row(label, eps, None, ours[label, eps])


def main(argv: list[str]) -> None:
    """Tunes, compares, prints and writes."""
    del argv
    directory = report.new_directory(FLAGS.outdir)
    rows = []
    for name in common.progress(FLAGS.task, str):
        for row in measured(name):
            rows.append(row)
            print(*row.values(), sep=", ", flush=True)
    columns, labels = ("ε", "mean", "stderr"), ("ε", "final loss (nats)")
    panels = report.panels_of(rows, columns, labels, log="x")
    report.write_result(directory / "epsilon", rows, panels)


if __name__ == "__main__":
    common.run(main, quick={"num_steps": 20, "num_runs": 2, "tuning_runs": 1})
