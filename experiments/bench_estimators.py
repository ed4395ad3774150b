r"""Estimators of the meta-gradient: bias, noise, and what is learned with them.

    python -m experiments.bench_estimators --outdir=runs/estimators

First on a random quadratic with the weights of a heavy ball, where the meta-gradient of
the whole episode is known: the distance of the mean estimate from it, and the deviation
of an estimate, by the number of truncations into which the same steps are cut.

Then Longrun's 20 weights are learned on `--task` with each estimator, from the nominal
rule on, with as many gradients of the optimizee for every update and as many updates;
the rate of Adam is the better of `--rates` on episodes of its own. Compared on held-out
episodes, paired: the meta-loss (mean over segments of the log of a segment's mean loss)
and the final loss, as ratios to the nominal rule's, means of logarithms over episodes.

9 minutes of one core. Of episodes of 400 steps, in truncations of 20, the meta-loss is
.12 to .27 of the nominal one with the three that are unbiased, .31 and .35 with BPTT to
second order and ES, and 1.7 times it to first order (.64 with --rates=.001).
"""

import functools
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, options, report
from l2l_jax import (
    Task,
    estimators,
    evaluator,
    learned_optimizer,
    meta_trainer,
    plotting,
    quadratic_task,
    start_episode,
    unroll,
)

FLAGS = flags.FLAGS
common.define_task("digits_mlp", "What is optimized.")
options.define_numbers("horizons", [100, 400], "Steps of an episode.")
flags.DEFINE_integer("segment_length", 20, "Steps of a truncation.", lower_bound=1)
flags.register_multi_flags_validator(
    ["horizons", "segment_length"],
    lambda given: not any(n % given["segment_length"] for n in given["horizons"]),
    "--segment_length must divide all --horizons",
)
flags.DEFINE_integer("updates", 160, "Of the weights, in each training.", lower_bound=1)
flags.DEFINE_integer("episodes", 4, "At once, four rollouts each.", lower_bound=1)
options.define_numbers("rates", [0.01, 0.05], "Of Adam, the outer optimizer.", float, 0)
options.define_float("sigma", 0.1, "Of the perturbations.", 0)
flags.DEFINE_integer("num_seeds", 3, "Paired trainings.", lower_bound=2)
flags.DEFINE_integer("num_runs", 20, "Held-out episodes of each.", lower_bound=1)
flags.DEFINE_integer("num_estimates", 10_000, "On the quadratic.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
options.define_outdir(required=True)

ROLLOUTS = 4  # of an episode, for an estimator that perturbs weights
STEPS = 64  # of the quadratic's episode
CUTS = (1, 4, 16)
# Logarithm of the rate and logit of the momentum.
HEAVY_BALL = np.array([-6.0, 0.0], np.float32)


def all_estimators(sigma: float) -> dict[str, estimators.Estimator]:
    """By name, those that perturb weights with as many rollouts."""
    return {
        "BPTT": estimators.bptt(),
        "BPTT, second order": estimators.bptt(second_order=True),
        "ES": estimators.evolution(sigma, ROLLOUTS // 2),
        "PES": estimators.persistent_evolution(sigma, ROLLOUTS // 2),
        "ES-Single": estimators.single_perturbation(sigma, ROLLOUTS // 2),
        "score function": estimators.score_function(sigma, ROLLOUTS),
    }


def heavy_ball(phi: jax.Array) -> optax.GradientTransformation:
    """Two weights, of which the losses of a quadratic are smooth functions."""
    return optax.sgd(jnp.exp(phi[0]), momentum=jax.nn.sigmoid(phi[1]))


def fixed_quadratic() -> Task:
    """One of the random ones, so that an episode's meta-gradient is a number."""
    task = quadratic_task()
    key = jax.random.key(FLAGS.seed)
    instance = task.sample(key)
    params = task.init(key, instance)
    return task._replace(sample=lambda key: instance, init=lambda key, _: params)


def bias_and_noise(sigma: float) -> list[dict]:
    """A row for each estimator and number of truncations, relative to the truth."""
    task, phi = fixed_quadratic(), jnp.asarray(HEAVY_BALL)

    def mean_loss(phi):
        tx = heavy_ball(phi)
        episode = start_episode(task, tx, jax.random.key(0))
        return jnp.mean(unroll(task, tx, episode, STEPS, second_order=True)[1])

    truth = np.asarray(jax.jit(jax.grad(mean_loss))(phi))
    size, rows = np.linalg.norm(truth), []
    for name, estimator in all_estimators(sigma).items():
        number = 1 if name.startswith("BPTT") else FLAGS.num_estimates
        for cuts in CUTS:
            # Together the mean of all losses, however they are cut.
            weights = np.full(STEPS // cuts, 1 / STEPS)

            def one(key, estimator=estimator, weights=weights, cuts=cuts):
                def segment(state, _):
                    (_, state), slope = estimator.gradient(
                        phi, heavy_ball, task, state, weights, False
                    )
                    return state, slope

                state = estimator.start(phi, heavy_ball, task, key)
                return jnp.sum(jax.lax.scan(segment, state, None, cuts)[1], axis=0)

            keys = jax.random.split(jax.random.key(FLAGS.seed + 1), number)
            found = np.asarray(jax.jit(jax.vmap(one))(keys))
            deviation = np.linalg.norm(found.std(axis=0)) / size
            rows.append(
                {
                    "estimator": name,
                    "truncations": cuts,
                    "bias": float(np.linalg.norm(found.mean(axis=0) - truth) / size),
                    "bias_stderr": float(deviation / number**0.5),
                    "deviation": float(deviation),
                }
            )
    return rows


def trainings(task: Task, estimator: estimators.Estimator) -> Callable:
    """`train(horizon, rate, seed) -> (φ, skipped, processor seconds)`."""
    perturbs = estimator.several_losses
    length = FLAGS.segment_length

    @functools.cache
    def trainer(rate):
        return meta_trainer(
            task,
            learned_optimizer("longrun"),
            optax.adam(rate),
            segment_length=length,
            weights="mean",
            log_loss=True,
            estimator=estimator,
            meta_batch=FLAGS.episodes * (1 if perturbs else ROLLOUTS),
        )

    def train(horizon, rate, seed):
        one = trainer(rate)
        key = jax.random.fold_in(jax.random.key(FLAGS.seed), seed)
        state, skipped = one.init(key), 0
        # Compiles, for all horizons and seeds.
        one.iterate(state, key, jnp.int32(0))
        begin = time.process_time()
        segments = horizon // length
        for i in range(-(-FLAGS.updates // segments)):
            iteration_key = jax.random.fold_in(key, i)
            state, metrics = one.iterate(state, iteration_key, segments)
            skipped += int(metrics["skipped"])
        return state.phi, skipped, time.process_time() - begin

    return train


def held_out(task: Task) -> Callable:
    """`measure(φ, horizon, key) -> (meta-loss, log final loss)`, means over runs."""
    of_longrun = evaluator(task, learned_optimizer("longrun").transform)

    def measure(phi, horizon, key):
        found = of_longrun.evaluate(phi, key, horizon, FLAGS.num_runs)
        segments = found.curves.reshape(FLAGS.num_runs, -1, FLAGS.segment_length)
        return np.log(segments.mean(axis=2)).mean(), np.log(found.final).mean()

    return measure


def learned(task: Task) -> list[dict]:
    """A row for each horizon and estimator: held-out losses against the nominal's."""
    validation, test = jax.random.split(jax.random.key(FLAGS.seed + 10**6))
    measure = held_out(task)
    nominal = learned_optimizer("longrun").init(test)
    base = {horizon: measure(nominal, horizon, test) for horizon in FLAGS.horizons}
    rows = []
    trained_by = {
        name: trainings(task, estimator)
        for name, estimator in all_estimators(FLAGS.sigma).items()
    }
    jobs = list(itertools.product(trained_by, FLAGS.horizons))
    for name, horizon in common.progress(jobs, lambda job: f"{job[0]}, {job[1]} steps"):
        best = None
        for rate in FLAGS.rates:
            runs = [
                trained_by[name](horizon, rate, seed) for seed in range(FLAGS.num_seeds)
            ]
            score = np.mean([measure(r[0], horizon, validation)[0] for r in runs])
            if best is None or not score >= best[0]:
                best = score, rate, runs
        _, rate, runs = best
        found = np.array([measure(r[0], horizon, test) for r in runs])
        ratios = np.exp(found - np.array(base[horizon]))
        stderr = ratios.std(axis=0, ddof=1) / len(ratios) ** 0.5
        rows.append(
            {
                "horizon": horizon,
                "estimator": name,
                "rate": rate,
                "meta_loss_ratio": float(ratios[:, 0].mean()),
                "meta_loss_stderr": float(stderr[0]),
                "final_ratio": float(ratios[:, 1].mean()),
                "final_stderr": float(stderr[1]),
                "final_loss": float(np.exp(found[:, 1]).mean()),
                "skipped": sum(r[1] for r in runs),
                "seconds": float(np.mean([r[2] for r in runs])),
            }
        )
        print(report.table([rows[-1]], list(rows[-1])).splitlines()[-1], flush=True)
    return rows


def panels(noise: list[dict], results: list[dict]) -> list[plotting.Panel]:
    """Bias, deviation, and the loss that was reached."""
    bias, deviation, loss = [], [], []
    names = dict.fromkeys(row["estimator"] for row in noise)
    for name, colour in zip(names, plotting.COLOURS, strict=False):
        style = {"color": colour, "marker": "o", "markersize": 4}
        of = [row for row in noise if row["estimator"] == name]
        columns = {key: np.array([row[key] for row in of]) for key in of[0]}
        x = columns["truncations"]
        # What is below its standard error cannot be told from 0.
        shown = np.maximum(columns["bias"], np.maximum(columns["bias_stderr"], 1e-3))
        bias.append(plotting.Line(name, x, shown, style=style))
        if columns["deviation"].all():
            deviation.append(plotting.Line(name, x, columns["deviation"], style=style))
        of = [row for row in results if row["estimator"] == name]
        columns = {key: np.array([row[key] for row in of]) for key in of[0]}
        ratio, error = columns["meta_loss_ratio"], columns["meta_loss_stderr"]
        loss.append(plotting.Line(name, columns["horizon"], ratio, error, style))
    return [
        plotting.Panel(
            "bias / meta-gradient", "truncations of the quadratic", "", bias, log="xy"
        ),
        plotting.Panel(
            "deviation / meta-gradient",
            "truncations of the quadratic",
            "",
            deviation,
            log="xy",
        ),
        plotting.Panel(
            "meta-loss / nominal rule's", f"steps of {FLAGS.task}", "", loss
        ),
    ]


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    del argv
    task = common.task()
    directory = report.new_directory(FLAGS.outdir)
    noise = bias_and_noise(FLAGS.sigma)
    print(report.table(noise, list(noise[0])))
    report.write_csv(directory / "bias_and_noise.csv", noise)
    results = learned(task)
    results.sort(key=lambda row: row["horizon"])
    report.write_result(directory / "estimators", results, panels(noise, results))


if __name__ == "__main__":
    common.run(
        main,
        quick={
            "horizons": [20, 40],
            "updates": 2,
            "rates": [0.01],
            "num_seeds": 2,
            "num_runs": 2,
            "num_estimates": 100,
        },
    )
