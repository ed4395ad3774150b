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

from experiments import common, report, task_table
from l2l_jax import (
    Learned,
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
flags.DEFINE_string(
    "outdir",
    "runs/quickstart",
    "Directory of the results; if it is taken, -2, -3 … is appended.",
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
    return Learned("rnnprop", state.phi, {}, {**config, "iterations": num_iterations})


def compare(phi, name: str, keys, num_steps: int, num_runs: int) -> tuple[list, dict]:
    """The learned optimizer and tuned ones on one task: table rows and curves."""
    task = task_table.make_task(name)
    tuning_key, key = keys
    candidates = {"rnnprop": (evaluator(task, rnnprop_transform), phi)}
    for baseline in ("momentum", "adam") if FLAGS.quick else EXPONENTS:
        evaluation = evaluator(task, BASELINES[baseline])
        tuning = tune(
            baseline,
            evaluation,
            tuning_key,
            num_steps=num_steps,
            num_runs=num_runs,
            exponents=EXPONENTS[baseline],
            stride=1,
        )
        if tuning.best_rate is not None:
            candidates[baseline] = (evaluation, tuning.best_rate)
    rows, curves = [], {}
    for label, (evaluation, weights) in candidates.items():
        result = evaluation.evaluate(weights, key, num_steps, num_runs)
        rate = None if label == "rnnprop" else weights
        rows.append(
            {"task": name, "optimizer": label, "rate": rate, **result.summary()}
        )
        curves[label] = result.curves
    return rows, curves


def main(argv: list[str]) -> None:
    """Learns, compares, prints and writes."""
    del argv
    directory = free_directory(FLAGS.outdir)
    directory.mkdir(parents=True)
    print(f"writing to {directory}")
    train_key, compare_key = jax.random.split(jax.random.key(FLAGS.seed))
    iterations = 2 if FLAGS.quick else FLAGS.num_iterations
    learned = learn(directory, iterations, train_key)
    save(directory / "rnnprop.npz", learned)

    num_steps, num_runs = (20, 2) if FLAGS.quick else (100, 6)
    rows, curves = [], {}
    for name in NEVER_SEEN[:1] if FLAGS.quick else NEVER_SEEN:
        new_rows, curves[name] = compare(
            learned.params, name, jax.random.split(compare_key), num_steps, num_runs
        )
        rows += new_rows
        print(f"\n{report.table(new_rows)}", flush=True)
    report.write_csv(directory / "table.csv", rows)
    report.write_json(directory / "table.json", rows)
    report.write_curves(directory / "curves.png", curves)
    print(f"\nwrote rnnprop.npz, table.csv, table.json and curves.png to {directory}")


if __name__ == "__main__":
    common.run(main)
