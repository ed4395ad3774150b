r"""What lazy updates save, and what they cost in loss.

    python -m experiments.bench_lazy --task=mnist_mlp --data_dir=DIR --outdir=runs/lazy

The optimizer that ships, asked at every step, at every k-th with its rate divided by k,
and at every k-th once the loss has stopped to fall (`--tolerance`). Runs are paired and
one after another, because under `vmap` nothing is spared; the programs are timed in
turn. Writes a table and the loss against steps, seconds and evaluations.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, options, report, timing
from l2l_jax import Task, lazy_updates, load_pretrained, plotting, start_episode, unroll

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What is optimized.")
flags.DEFINE_enum(
    "name", "rnnprop", ["rnnprop", "dm", "longrun"], "The optimizer that ships."
)
options.define_numbers("every", [2, 4, 8], "Numbers k.")
options.define_float("tolerance", 0.1, "Of the plateau, see `lazy_updates`.", 0)
flags.DEFINE_integer("num_steps", 1000, "Steps of each run.", lower_bound=50)
flags.DEFINE_integer("num_runs", 3, "Paired runs.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
options.define_outdir(required=True)

POINTS = 50  # of a curve, each the mean of the steps since the last


def variants(name: str) -> dict:
    """Name -> transformation, always one that counts its evaluations."""
    tx = load_pretrained(name).transform()
    found = {"every step": lazy_updates(tx, 1)}
    for k in FLAGS.every:
        found[f"every {k}"] = lazy_updates(optax.chain(tx, optax.scale(1 / k)), k)
        found[f"every {k} on a plateau"] = lazy_updates(
            tx, k, tolerance=FLAGS.tolerance
        )
    return found


def program(task: Task, tx: optax.GradientTransformation) -> Callable:
    """`run(data, key) -> (losses (T,), evaluations (T,))`, compiled."""

    @jax.jit
    def run(data, key):
        here = task._replace(data=data)

        def segment(episode, _):
            episode, losses = unroll(here, tx, episode, FLAGS.num_steps // POINTS)
            return episode, (jnp.mean(losses), episode.opt_state.asked)

        start = start_episode(here, tx, key)
        return jax.lax.scan(segment, start, None, POINTS)[1]

    return run


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    del argv
    task = common.task()
    directory = report.new_directory(FLAGS.outdir)
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.num_runs)
    runs = {name: program(task, tx) for name, tx in variants(FLAGS.name).items()}
    times = timing.interleaved(
        {n: functools.partial(run, task.data, keys[0]) for n, run in runs.items()}, 3
    )
    rows, panels = [], ([], [], [])
    for (name, run), colour in zip(
        common.progress(runs.items(), lambda item: item[0]),
        plotting.COLOURS,
        strict=False,
    ):
        losses, asked = map(
            np.stack, zip(*(run(task.data, k) for k in keys), strict=True)
        )
        last = losses[:, -POINTS // 5 :].mean(axis=1)
        seconds = times[name]["median_s"]
        rows.append(
            {
                "asked": name,
                "loss": float(last.mean()),
                "stderr": float(last.std(ddof=1) / len(last) ** 0.5),
                "evaluations": float(asked[:, -1].mean()),
                "seconds": seconds,
            }
        )
        steps = (np.arange(POINTS) + 1) * (FLAGS.num_steps // POINTS)
        axes = (steps, asked.mean(axis=0), steps / FLAGS.num_steps * seconds)
        for lines, x in zip(panels, axes, strict=True):
            line = plotting.Line(name, x, *plotting.band(losses), {"color": colour})
            lines.append(line)
    labels = ("step", "evaluations of the network", "seconds of a run")
    report.write_result(
        directory / "lazy",
        rows,
        [
            plotting.Panel(FLAGS.task, label, "minibatch loss (nats)", lines)
            for label, lines in zip(labels, panels, strict=True)
        ],
    )


if __name__ == "__main__":
    common.run(main, quick={"num_steps": 100, "num_runs": 2, "every": [4]})
