r"""One optimizer for all parameters of a CNN, or one for each of two groups.

    python -m experiments.bench_groups --task=cifar16_cnn_small --data_dir=DIR \
        --outdir=runs/groups

Ten minutes on 2 slow cores with other jobs beside; expect held-out losses of about 1.83
(one for all), 1.77 (one a group: .06 less, ± .04) and 1.71 (Adam).

Andrychowicz et al. 2016, section 3.3: one LSTM optimizer for the convolutional and one
for the fully-connected parameters, learned together. They start from the weights from
which the shared one starts, see the same episodes and have as many updates. The start
is the DMoptimizer that ships, learned on an MLP on MNIST, so that a few minutes tell
something; `--start=fresh` learns from random weights, and wants hours. Compared on the
test images, other initial parameters and minibatches, beside Adam tuned there on five
rates. `cifar16` is CIFAR-10 at half the resolution. Writes a table and both losses, of
meta-training and held out; standard errors are those of the meta-trainings, of Adam
and the start those of the runs.
"""

import time

import jax
import numpy as np
import optax
from absl import flags

from experiments import common, options, report, task_table
from l2l_jax import (
    Task,
    evaluator,
    learned_optimizer,
    load_pretrained,
    meta_trainer,
    partitioned,
    plotting,
)
from l2l_jax.baselines import baseline, tune

FLAGS = flags.FLAGS
common.define_task("digits_cnn_small", "What is optimized, a convolutional network.")
flags.register_validator("task", task_table.is_convolutional, "must be a CNN")
flags.DEFINE_enum("start", "shipped", ["shipped", "fresh"], "The first weights.")
options.define_numbers("hidden_sizes", [20, 20], "Of each fresh LSTM.")
flags.DEFINE_integer("num_iterations", 20, "Episodes of meta-training.", lower_bound=1)
flags.DEFINE_integer("num_steps", 60, "Of an episode; 20 a segment.", lower_bound=20)
options.define_float("meta_learning_rate", 1e-3, "Of Adam, the outer optimizer.", 0)
flags.DEFINE_integer("num_seeds", 3, "Meta-trainings of each.", lower_bound=2)
flags.DEFINE_integer("num_runs", 5, "Held-out runs of each.", lower_bound=2)
options.define_outdir(required=True)

GROUPS = ("conv", "dense")
RATES = range(6, 16, 2)  # of Adam, k of 2^(-k/2)


def labels(params):
    """The group of each parameter, by the name of its layer."""

    def label(path, _):
        return "conv" if "Conv" in jax.tree_util.keystr(path) else "dense"

    return jax.tree.map_with_path(label, params)


def learn(task: Task, optimizer, starts) -> tuple[list, np.ndarray, float]:
    """φ of each seed, losses (seeds, iterations), seconds an iteration."""
    trainer = meta_trainer(
        task, optimizer, optax.adam(FLAGS.meta_learning_rate), weights="mean"
    )
    learned, losses, seconds = [], [], []
    for seed, phi in enumerate(starts):
        key = jax.random.key(seed)
        state = trainer.init(key)._replace(phi=phi)
        iterations = range(FLAGS.num_iterations)
        for i in common.progress(iterations, lambda _, seed=seed: f"seed {seed}"):
            begin = time.perf_counter()
            state, metrics = trainer.iterate(
                state, jax.random.fold_in(key, i), FLAGS.num_steps // 20
            )
            losses.append(float(metrics["train_loss"]))
            seconds.append(time.perf_counter() - begin)
        learned.append(state.phi)
        print(f"seed {seed}: {np.mean(losses[-10:]):.3f}", flush=True)
    return learned, np.reshape(losses, (len(starts), -1)), float(np.median(seconds))


def row(name: str, losses: np.ndarray, **more) -> dict:
    """A row of the table: mean and standard error of losses, of seeds or of runs."""
    mean, error = plotting.band(losses[:, None])
    return {
        "optimizer": name,
        "held-out loss": float(mean[0]),
        "stderr": float(error[0]),
        **more,
    }


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    del argv
    task, held_out = map(common.task, ("train", "test"))
    directory = report.new_directory(FLAGS.outdir)
    sizes = {"hidden_sizes": tuple(FLAGS.hidden_sizes)}
    one = learned_optimizer("dm", sizes)
    several = partitioned(dict.fromkeys(GROUPS, one), labels)
    starts = [one.init(jax.random.key(seed)) for seed in range(FLAGS.num_seeds)]
    if FLAGS.start == "shipped":
        starts = [load_pretrained("dm").params] * FLAGS.num_seeds
    doubled = [dict.fromkeys(GROUPS, phi) for phi in starts]
    tuning_key, key = common.keys(0)
    length = FLAGS.num_steps, FLAGS.num_runs
    rows, finals, panels = [], [], ([], [])
    for name, optimizer, begin, colour in (
        ("one for all", one, starts, plotting.COLOURS[0]),
        ("one a group", several, doubled, plotting.COLOURS[1]),
    ):
        phis, training, seconds = learn(task, optimizer, begin)
        evaluate = evaluator(held_out, optimizer.transform, 20).evaluate
        runs = [evaluate(phi, key, *length) for phi in phis]
        finals.append(np.array([run.final.mean() for run in runs]))
        more = {
            "training loss": float(training[:, -10:].mean()),
            "weights": sum(x.size for x in jax.tree.leaves(phis[0])),
            "s an iteration": seconds,
        }
        rows.append(row(name, finals[-1], **more))
        curves = np.stack([run.curves.mean(axis=0) for run in runs])
        for lines, values in zip(panels, (training, curves), strict=True):
            x = np.arange(values.shape[1])
            style = {"color": colour}
            lines.append(plotting.Line(name, x, *plotting.band(values), style))
    rows.append(row("one a group less one for all", finals[1] - finals[0]))
    adam = evaluator(held_out, baseline("adam", FLAGS.num_steps), 20)
    tuning = tune(
        "adam",
        adam,
        tuning_key,
        num_steps=FLAGS.num_steps,
        num_runs=2,
        exponents=RATES,
        stride=1,
    )
    others = {
        f"Adam at {tuning.best_rate:.4g}": adam.evaluate(tuning.best_rate, key, *length)
    }
    if FLAGS.start == "shipped":
        others["where both began"] = evaluate(doubled[0], key, *length)
    for (name, run), colour in zip(others.items(), plotting.COLOURS[6:], strict=False):
        rows.append(row(name, run.final))
        x, style = np.arange(FLAGS.num_steps), {"color": colour}
        panels[1].append(plotting.Line(name, x, *plotting.band(run.curves), style))
    titles = (f"{FLAGS.task}, meta-training", "held out")
    report.write_result(
        directory / "groups",
        rows,
        [
            plotting.Panel(title, label, "loss (nats)", lines)
            for title, label, lines in zip(
                titles, ("iteration", "step"), panels, strict=True
            )
        ],
    )


if __name__ == "__main__":
    common.run(
        main,
        quick={"num_iterations": 1, "num_steps": 20, "num_seeds": 2, "num_runs": 2},
    )
