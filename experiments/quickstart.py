"""Learns an RNNprop on embedded digits, and compares it where it was never trained.

    python -m experiments.quickstart

Under three minutes on 2 cores. The learned optimizer should be ahead of all but Adam,
and about level with it on the CNN; half a minute of meta-training is little.
"""

import itertools
import pathlib

import jax
import optax
from absl import flags

from experiments import common, options, report, task_table
from l2l_jax import (
    Evaluation,
    Learned,
    Task,
    combine,
    convex_task,
    evaluator,
    learned_optimizer,
    meta_trainer,
    random_scaling,
    rnnprop_transform,
    runs,
    save,
)
from l2l_jax.baselines import BASELINES, tune

FLAGS = flags.FLAGS
options.define_outdir(
    "runs/quickstart", "Directory of the results; if it is taken, -2, -3 … is appended."
)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
flags.DEFINE_integer("num_iterations", 120, "Of meta-training.", lower_bound=1)
flags.DEFINE_bool("quick", False, "A look in seconds: tiny settings, useless numbers.")

TRAINED_ON = "digits_mlp"
NEVER_SEEN = ("digits_mlp_relu", "digits_mlp_depth3", "digits_cnn_small")
# Rates 2^(-k/2) worth trying on these tasks; tune_baselines has the full grids.
EXPONENTS = {
    "momentum": range(-2, 7, 2),
    "adagrad": range(-1, 8, 2),
    "rmsprop": range(3, 12, 2),
    "adam": range(5, 14, 2),
}


def free_directory(path: str) -> pathlib.Path:
    """`path`, or the first of path-2, path-3, … that does not exist."""
    numbered = (f"{path}-{n}" for n in itertools.count(2))
    names = itertools.chain([path], numbered)
    return next(pathlib.Path(name) for name in names if not pathlib.Path(name).exists())


def learn(directory: pathlib.Path, num_iterations: int, key: jax.Array) -> Learned:
    """Meta-trains an RNNprop with both tricks of the paper."""
    init_key, episode_key = jax.random.split(key)
    task = task_table.make_task(TRAINED_ON)
    trainer = meta_trainer(
        combine(random_scaling(task, 3.0), random_scaling(convex_task(), 1.0)),
        learned_optimizer("rnnprop", {"hidden_sizes": (8,)} if FLAGS.quick else {}),
        # Ten times the paper's rate: there is a minute, not a day.
        optax.adam(1e-3),
    )
    config = {"task": TRAINED_ON, "seed": FLAGS.seed, "meta_learning_rate": 1e-3}
    try:
        with runs.progress_bar() as progress:
            state = runs.run(
                directory / "training",
                config,
                lambda state, i: trainer.iterate(
                    state, jax.random.fold_in(episode_key, i), 5
                ),
                trainer.init(init_key),
                num_iterations,
                progress=progress,
            )
    except runs.Interrupted as error:
        # It says how to resume, and this binary begins anew.
        raise KeyboardInterrupt from error
    return Learned("rnnprop", state.phi, {}, {**config, "iterations": num_iterations})


def measured(
    task: Task, optimizer: str, phi, keys, num_steps: int, num_runs: int
) -> tuple[float | None, Evaluation | None]:
    """The tuned rate of an optimizer, none of the learned one, and its runs."""
    tuning_key, key = keys
    if optimizer == "rnnprop":
        evaluation = evaluator(task, rnnprop_transform)
        return None, evaluation.evaluate(phi, key, num_steps, num_runs)
    evaluation = evaluator(task, BASELINES[optimizer])
    rate = tune(
        optimizer,
        evaluation,
        tuning_key,
        num_steps=num_steps,
        num_runs=num_runs,
        exponents=EXPONENTS[optimizer],
        stride=1,
    ).best_rate
    if rate is None:
        return None, None
    return rate, evaluation.evaluate(rate, key, num_steps, num_runs)


def main(argv: list[str]) -> None:
    """Learns, compares, prints and writes."""
    del argv
    directory = report.new_directory(free_directory(FLAGS.outdir))
    train_key, compare_key = jax.random.split(jax.random.key(FLAGS.seed))
    iterations = 2 if FLAGS.quick else FLAGS.num_iterations
    learned = learn(directory, iterations, train_key)
    save(directory / "rnnprop.npz", learned)

    length = (20, 2) if FLAGS.quick else (100, 6)
    names = NEVER_SEEN[:1] if FLAGS.quick else NEVER_SEEN
    optimizers = ("rnnprop", *(("momentum", "adam") if FLAGS.quick else EXPONENTS))
    keys = jax.random.split(compare_key)
    tasks = {name: task_table.make_task(name) for name in names}
    rows = []
    curves: dict[str, dict] = {name: {} for name in names}
    jobs = list(itertools.product(names, optimizers))
    for name, optimizer in common.progress(jobs, ", ".join):
        rate, runs_of = measured(tasks[name], optimizer, learned.params, keys, *length)
        if runs_of is not None:
            row = {"task": name, "optimizer": optimizer, "rate": rate}
            rows.append(row | runs_of.summary())
            curves[name][optimizer] = runs_of.curves
    print(f"\n{report.table(rows)}\n{report.MEANING}", flush=True)
    report.write_csv(directory / "table.csv", rows)
    report.write_json(directory / "table.json", rows)
    report.write_curves(directory / "curves.png", curves)
    print(f"\nwrote rnnprop.npz, table.csv, table.json and curves.png to {directory}")


if __name__ == "__main__":
    common.run(
        main, stopped="stopped; only this run is lost: the same command begins anew"
    )
