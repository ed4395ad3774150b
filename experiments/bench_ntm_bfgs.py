r"""NTM-BFGS learned on small quadratics, beside BFGS's relatives and tuned descent.

    python -m experiments.bench_ntm_bfgs --outdir=runs/ntm_bfgs

Meta-trains NTM-BFGS on random quadratics of 10 dimensions, from a start at which it
writes nothing into its memory, from BFGS, and without the memory, each with --num_seeds
meta-seeds, and runs what was learned on those, on 100 dimensions and on ill-conditioned
ones (20 dimensions, condition 10^4), beside BFGS with unit steps (NTM-BFGS before it is
learned), `optax.lbfgs` with its line search, and SGD, momentum and Adam at their best
rates for each task. Writes a table and the loss against steps.

Columns: loss after so many steps, the median over runs and, of learned ones, the
geometric mean over meta-seeds; "±" the standard error over meta-seeds of the decimal
logarithm of the one after a quarter of the steps; "to 1e-6" the median number of steps
until the loss is a millionth of the first. A step of L-BFGS is a line search: it costs
several evaluations, which the column "evaluations" counts, down to that millionth.

8 minutes on 2 slow cores. Steps to a millionth of the first loss, on 10 dimensions and
on the ill-conditioned ones: 44 and 179 learned from gradient descent, 52 and 202 from
BFGS, 32 and 107 BFGS itself, 28 and 128 L-BFGS; 215 and more than 400 without memory,
135 and more than 400 momentum. On 100 dimensions, where BFGS takes 311, none of the
learned ones gets there in 400 steps. With second derivatives, `--second_order
--num_segments=3 --num_iterations=300` (3 minutes), learning from BFGS makes it better
than BFGS, 23 and 88 steps; from gradient descent a meta-seed then goes astray.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, options, report
from experiments.learning import learn
from l2l_jax import (
    Task,
    estimators,
    evaluator,
    learned_optimizer,
    meta_trainer,
    no_batches,
    ntm_bfgs_init,
    plotting,
    quadratic_task,
    start_episode,
)
from l2l_jax.baselines import BASELINES, tune

FLAGS = flags.FLAGS
options.define_numbers(
    "dims", [10, 100], "Of the random quadratics; learned on the 1st."
)
options.define_float("condition", 1e4, "Of the ill-conditioned ones.", 1)
flags.DEFINE_integer("num_iterations", 600, "Of meta-training.", lower_bound=1)
flags.DEFINE_integer("meta_batch", 8, "Episodes at once.", lower_bound=1)
flags.DEFINE_integer("num_segments", 5, "Of 20 steps, of an episode.", lower_bound=1)
options.define_float(
    "meta_learning_rate", 3e-3, "Of Adam, falling to 0 as a cosine.", 0
)
flags.DEFINE_bool("second_order", False, "Whether meta-gradients know that y = H·s.")
flags.DEFINE_integer("num_seeds", 3, "Meta-trainings of each.", lower_bound=2)
flags.DEFINE_integer("num_steps", 400, "Steps of a run.", lower_bound=8)
flags.DEFINE_integer("num_runs", 32, "Runs of each.", lower_bound=2)
options.define_outdir(required=True)

# Sizes, hyper-parameters, and the share of the outer rate.
LEARNED = {
    "learned from gradient descent": ({"start": "gradient"}, {}, 1.0),
    # It begins near; without second derivatives it gets worse all the same.
    "learned from BFGS": ({"start": "bfgs"}, {}, 0.1),
    "learned without memory": ({"start": "gradient"}, {"memory": False}, 1.0),
}
TARGET = 1e-6  # of the first loss
FLOOR = 1e-10  # below it losses are rounding errors, of which nothing is to be learned


def ill_conditioned(num_dims: int = 20) -> Task:
    """½·Σ_i λ_i·(q_i^T·θ - z_i)², q orthonormal, λ from 1/√κ to √κ evenly in log λ."""
    root = FLAGS.condition**0.5
    spectrum = jnp.geomspace(1 / root, root, num_dims)

    def sample(key):
        rotation_key, centre_key = jax.random.split(key)
        rotation = jax.random.orthogonal(rotation_key, num_dims)
        return rotation, jax.random.normal(centre_key, (num_dims,))

    def loss(theta, data, instance, batch):
        rotation, centre = instance
        away = jnp.matmul(rotation, theta, precision="highest") - centre
        return jnp.sum(spectrum * away**2) / 2

    return Task((), sample, lambda key, _: jnp.zeros(num_dims), no_batches, loss)


def learn_all(task: Task, sizes: dict, config: dict, share: float) -> list:
    """φ of each meta-seed."""
    above = task._replace(loss=lambda *args: task.loss(*args) + FLOOR)
    count = FLAGS.num_iterations * FLAGS.num_segments
    rate = optax.cosine_decay_schedule(share * FLAGS.meta_learning_rate, count)
    trainer = meta_trainer(
        above,
        learned_optimizer("ntm_bfgs", sizes, **config),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        log_loss=True,
        meta_batch=FLAGS.meta_batch,
        estimator=estimators.bptt(FLAGS.second_order),
    )
    found = []
    for seed in range(FLAGS.num_seeds):
        phi, _ = learn(trainer, seed, FLAGS.num_iterations, FLAGS.num_segments)
        found.append(phi)
    return found


def lbfgs(task: Task, key: jax.Array) -> tuple[np.ndarray, float]:
    """Losses (R, T) on the instances of `evaluator`, and evaluations a step."""
    tx = optax.lbfgs()

    @jax.jit
    @jax.vmap
    def run(key):
        episode = start_episode(task, tx, key)
        f = lambda theta: task.loss(theta, task.data, episode.instance, None)

        def step(carry, _):
            theta, state = carry
            value, g = optax.value_and_grad_from_state(f)(theta, state=state)
            updates, state = tx.update(g, state, theta, value=value, grad=g, value_fn=f)
            asked = optax.tree.get(state, "info").num_linesearch_steps
            return (optax.apply_updates(theta, updates), state), (value, asked)

        start = episode.params, episode.opt_state
        return jax.lax.scan(step, start, None, FLAGS.num_steps)[1]

    losses, asked = run(jax.random.split(key, FLAGS.num_runs))
    # Where only rounding errors are left no line search ends well.
    descends = losses > TARGET * losses[:, :1]
    return np.asarray(losses), float(jnp.mean(asked, where=descends))


def compare(task: Task, phis: dict) -> tuple[dict, float]:
    """Losses (seeds, R, T) of each optimizer, and evaluations a step of L-BFGS."""
    tuning_key, key = common.keys(1)
    runs = FLAGS.num_steps, FLAGS.num_runs
    found = {}
    for name, (sizes, config, _) in LEARNED.items():
        transform = learned_optimizer("ntm_bfgs", sizes, **config).transform
        evaluation = evaluator(task, transform)
        found[name] = [evaluation.evaluate(p, key, *runs).curves for p in phis[name]]
        if name == "learned from BFGS":
            unlearned = ntm_bfgs_init(jax.random.key(0), start="bfgs")
            found["BFGS"] = [evaluation.evaluate(unlearned, key, *runs).curves]
    curves, asked = lbfgs(task, key)
    found["L-BFGS, line search"] = [curves]
    exponents = {"sgd": range(2, 30, 2), "momentum": range(2, 30, 2)}
    for name, label in (("sgd", "SGD"), ("momentum", "momentum"), ("adam", "Adam")):
        evaluation = evaluator(task, BASELINES[name])
        best = tune(
            *(name, evaluation, tuning_key),
            num_steps=FLAGS.num_steps,
            num_runs=FLAGS.num_runs,
            exponents=exponents.get(name, range(-2, 18, 2)),
            stride=1,
        ).best_rate
        if best is not None:
            found[f"{label}, tuned"] = [evaluation.evaluate(best, key, *runs).curves]
    return {name: np.stack(curves) for name, curves in found.items()}, asked


def summary(losses: np.ndarray) -> dict:
    """A row of the table, of losses (seeds, R, T)."""
    losses = np.maximum(np.where(np.isnan(losses), np.inf, losses), 1e-30)
    medians = np.median(losses, axis=1)
    row = {}
    for part in (8, 4, 2, 1):
        step = FLAGS.num_steps // part - 1
        row[f"step {step + 1}"] = float(np.exp(np.log(medians[:, step]).mean()))
    row["±"] = None
    if len(medians) > 1:
        logs = np.log10(medians[:, FLAGS.num_steps // 4 - 1])
        row["±"] = float(logs.std(ddof=1) / len(logs) ** 0.5)
    below = losses <= TARGET * losses[..., :1]
    steps = np.where(below.any(-1), below.argmax(-1), np.inf)
    reached = float(np.median(steps))
    row["to 1e-6"] = int(reached) if np.isfinite(reached) else "-"
    return row


def main(argv: list[str]) -> None:
    """Learns, compares, prints and writes."""
    del argv
    directory = report.new_directory(FLAGS.outdir)
    tasks = {f"{n} dimensions": quadratic_task(n) for n in FLAGS.dims}
    phis = {
        name: learn_all(next(iter(tasks.values())), *how)
        for name, how in common.progress(LEARNED.items(), lambda item: item[0])
    }
    tasks[f"condition {FLAGS.condition:.0e}"] = ill_conditioned()
    rows, panels = [], []
    for title, task in tasks.items():
        found, asked = compare(task, phis)
        lines = []
        for (name, losses), colour in zip(
            found.items(), plotting.COLOURS, strict=False
        ):
            evaluations = asked if "line search" in name else 1.0
            row = {"task": title, "optimizer": name, **summary(losses)}
            rows.append({**row, "evaluations": evaluations})
            medians = np.median(np.maximum(losses, 1e-16), axis=1)
            line = np.exp(np.log(medians).mean(axis=0))
            steps = np.arange(FLAGS.num_steps)
            lines.append(plotting.Line(name, steps, line, None, {"color": colour}))
        top = 3 * max(float(line.y[0]) for line in lines)
        panels.append(plotting.Panel(title, "step", "loss", lines, top))
    report.write_result(directory / "ntm_bfgs", rows, panels)


if __name__ == "__main__":
    common.run(
        main,
        quick={
            "dims": [4, 6],
            "num_iterations": 2,
            "num_seeds": 2,
            "num_steps": 20,
            "num_runs": 2,
        },
    )
