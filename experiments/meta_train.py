r"""Learns an optimizer.

RNNprop as in the paper, on MNIST (half an hour for 1,000 iterations on 2 slow cores;
final loss of the base MLP after 100 steps then .37):

    python -m experiments.meta_train --task=mnist_mlp --data_dir=DIR \
        --workdir=runs/rnnprop --num_iterations=1000 --num_devices=2

DMoptimizer: the same with --optimizer=dm. Longrun: with --optimizer=longrun and without
--task, as it has several. A run that was killed goes on with --resume.

On several hosts the same command is started on each, with --distributed where JAX finds
the others (TPU pods, SLURM), else with --coordinator_address, --num_processes and
--process_id; process 0 keeps the run. Each reads the data from its own --data_dir.
"""

import functools
import math
import shlex
import sys

import jax
import numpy as np
import optax
from absl import flags

from experiments import common, task_table
from l2l_jax import (
    Learned,
    Task,
    combine,
    convex_task,
    estimators,
    evaluator,
    learned_optimizer,
    meta_trainer,
    random_scaling,
    runs,
    save,
)

# By kind of optimizer, what flags left open stand for: the papers' two trainings, and
# that of Longrun.
_PAPERS = {
    "task": ["mnist_mlp"],
    "hidden_sizes": ["20", "20"],
    "num_steps": 100,
    "segment_length": 20,
    "meta_batch": 1,
    "meta_learning_rate": 1e-4,
}
# Flag: argument of `random_scaling`.
SCALING = {
    "scaling_of": "of",
    "scaling_distribution": "distribution",
    "scaling_dropped": "dropped",
}
# Estimators that do not back-propagate.
PERTURBING = (
    "evolution",
    "persistent_evolution",
    "single_perturbation",
    "score_function",
)
DEFAULTS = {
    "rnnprop": {
        **_PAPERS,
        "loss_weights": "last",
        "scaling": 3.0,
        "convex": True,
        "select": "training",
    },
    "dm": {
        **_PAPERS,
        "loss_weights": "mean",
        "scaling": 0.0,
        "convex": False,
        "select": "validation",
    },
    "longrun": {
        "task": [
            "mnist14_mlp",
            "mnist14_mlp_relu",
            "mnist14_mlp_tanh",
            "mnist14_mlp_relu_depth2",
        ],
        "signals": 5,
        "num_steps": 500,
        "segment_length": 500,
        "loss_weights": "octaves",
        "log_loss": True,
        "evolution": 0.1,
        "meta_batch": 4,
        "meta_accumulate": 4,
        "scaling": 0.0,
        "convex": False,
        "meta_learning_rate": 5e-2,
        "meta_decay": 50.0,
        "select": "training",
    },
}

FLAGS = flags.FLAGS
common.define_tasks("What the optimizer learns on; of several, one an iteration.")
flags.DEFINE_string("workdir", None, "Directory of the run; made, never overwritten.")
flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.")
flags.DEFINE_enum(
    "optimizer", "rnnprop", sorted(DEFAULTS), "Which kind of optimizer to learn."
)
flags.DEFINE_list("hidden_sizes", None, "Hidden units of each LSTM layer.")
flags.DEFINE_integer(
    "signals",
    None,
    "What Longrun sees: 5, 3 without the slow moment, 1 the step alone.",
)
flags.DEFINE_integer("num_iterations", 1000, "Episodes to train on.", lower_bound=1)
flags.DEFINE_integer(
    "num_steps", None, "Steps of the optimizee in an episode, at most.", lower_bound=1
)
flags.DEFINE_integer(
    "min_steps",
    None,
    "Least steps of an episode: their number's logarithm is uniform between the two.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "segment_length",
    None,
    "Steps between two updates of the optimizer's weights; divides --num_steps.",
    lower_bound=1,
)
flags.DEFINE_string(
    "loss_weights",
    None,
    "Weights of the losses of a segment in the meta-loss: 'last', 'mean', 'half',"
    " 'octaves' (not with bptt) or --segment_length numbers joined by commas.",
)
flags.DEFINE_bool("log_loss", None, "Take the meta-loss's logarithm.")
flags.DEFINE_enum(
    "estimator",
    None,
    ["bptt", *PERTURBING],
    "How the meta-gradient is found, see l2l_jax.estimators; default but for Longrun:"
    " bptt.",
)
flags.DEFINE_float(
    "sigma", None, "Of an estimator that perturbs weights; default: .1.", lower_bound=0
)
flags.DEFINE_integer(
    "particles",
    None,
    "Rollouts of it an episode, two for each pair; default: 2.",
    lower_bound=2,
)
flags.DEFINE_float(
    "evolution",
    None,
    "Short for --estimator=evolution with this --sigma.",
    lower_bound=0,
)
flags.DEFINE_float(
    "scaling",
    None,
    "Bound L of Random Scaling of the task, factors exp(U[-L, L]); 0: none.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "scaling_of",
    None,
    ["coordinates", "parameters", "function"],
    "What is scaled: each coordinate by itself (default), all alike, the loss.",
)
flags.DEFINE_enum(
    "scaling_distribution",
    None,
    ["log-uniform", "uniform"],
    "Of the factors: as above (default), or uniform between the same bounds.",
)
flags.DEFINE_float(
    "scaling_dropped",
    None,
    "Probability with which a coordinate is held at 0 for an episode; default: 0.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_bool(
    "convex",
    None,
    "Combine the task with a random convex function of 20 coordinates.",
)
flags.DEFINE_float(
    "convex_scaling", 1.0, "Bound of Random Scaling of the convex part.", lower_bound=0
)
flags.DEFINE_float(
    "meta_learning_rate", None, "Rate of Adam, the outer optimizer.", lower_bound=0
)
flags.DEFINE_float(
    "meta_decay",
    None,
    "Updates N after which that rate is halved, as 1 / (1 + i / N) does; default but"
    " for Longrun: never.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "meta_accumulate",
    None,
    "Iterations whose meta-gradients are averaged for an update, best a multiple of the"
    " number of tasks; default but for Longrun: 1.",
    lower_bound=1,
)
flags.DEFINE_float(
    "meta_clip", None, "Clip the meta-gradient to this norm.", lower_bound=0
)
flags.DEFINE_integer(
    "meta_batch",
    None,
    "Episodes at once, their meta-losses averaged. Best a multiple of the number of"
    " devices, among which they are divided.",
    lower_bound=1,
)
flags.DEFINE_bool(
    "second_order", False, "Keep second derivatives of the task in the meta-gradient."
)
common.define_devices()
common.define_processes()
flags.DEFINE_integer("seed", 0, "Of all randomness.")
flags.DEFINE_integer(
    "export_every", 1000, "Iterations between two files of weights.", lower_bound=1
)
flags.DEFINE_float(
    "checkpoint_minutes",
    2.0,
    "Minutes between two checkpoints, at most.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "select",
    None,
    ["training", "validation"],
    "Which saved weights to take: lowest moving average of the training loss, or lowest"
    " final loss of 10 runs on the validation split of the task, or its logarithm's"
    " mean if there are several.",
)
flags.mark_flag_as_required("workdir")


def configuration(num_devices: int) -> dict:
    """All that decides the run, from the flags and the devices in all processes."""
    default = DEFAULTS[FLAGS.optimizer]

    def given(name: str):
        value = getattr(FLAGS, name)
        return default.get(name) if value is None else value

    weights = given("loss_weights")
    if weights not in ("last", "mean", "half", "octaves"):
        weights = [float(w) for w in weights.split(",")]
    length, steps = given("segment_length"), given("num_steps")
    for name in ("num_steps", "min_steps"):
        if (given(name) or steps) % length:
            raise ValueError(
                f"--segment_length must divide --{name}={given(name)}, got {length}"
            )
    if (given("min_steps") or steps) > steps:
        raise ValueError(
            f"--min_steps must be at most --num_steps={steps}, got {given('min_steps')}"
        )
    if given("meta_decay") == 0:
        raise ValueError("--meta_decay must be above 0, got 0")
    sizes = {name: given(name) for name in ("hidden_sizes", "signals")}
    foreign = "hidden_sizes" if FLAGS.optimizer == "longrun" else "signals"
    if sizes.pop(foreign) is not None:
        raise ValueError(f"--optimizer={FLAGS.optimizer} has no --{foreign}")
    if "hidden_sizes" in sizes:
        sizes["hidden_sizes"] = [int(size) for size in sizes["hidden_sizes"]]
    config = {
        "optimizer": FLAGS.optimizer,
        "sizes": sizes,
        "task": ",".join(given("task")),
        "data_source": FLAGS.data_source,
        "scaling": given("scaling"),
        **{name: getattr(FLAGS, name) for name in SCALING},
        "convex": given("convex"),
        "convex_scaling": FLAGS.convex_scaling,
        "num_steps": steps,
        "min_steps": given("min_steps"),
        "segment_length": length,
        "loss_weights": weights,
        "log_loss": given("log_loss") or None,
        **_estimator_flags(given("evolution")),
        "meta_learning_rate": given("meta_learning_rate"),
        "meta_decay": given("meta_decay"),
        "meta_accumulate": given("meta_accumulate"),
        "meta_clip": given("meta_clip"),
        "meta_batch": given("meta_batch"),
        "second_order": FLAGS.second_order,
        "num_devices": num_devices,
        "seed": FLAGS.seed,
        "export_every": FLAGS.export_every,
        "select": given("select"),
    }
    return {name: value for name, value in config.items() if value is not None}


def _estimator_flags(evolution: float | None) -> dict:
    """What of the configuration names the estimator."""
    named = {name: getattr(FLAGS, name) for name in ("estimator", "sigma", "particles")}
    if FLAGS.estimator is None:
        if FLAGS.sigma is not None:
            raise ValueError("--sigma is of an --estimator, and none is given")
        if FLAGS.second_order and FLAGS.evolution is None:
            evolution = None  # one or the other
    else:
        if FLAGS.evolution is not None:
            raise ValueError("--evolution and --estimator exclude each other")
        evolution = None
    perturbing = evolution is not None or FLAGS.estimator in PERTURBING
    if perturbing and FLAGS.second_order:
        raise ValueError("--second_order is of back-propagation, --estimator=bptt")
    if not perturbing and (FLAGS.sigma, FLAGS.particles) != (None, None):
        raise ValueError("--sigma and --particles are not of back-propagation")
    if FLAGS.estimator in PERTURBING and FLAGS.sigma is None:
        named["sigma"] = 0.1
    return {**named, "evolution": evolution}


def make_estimator(config: dict) -> estimators.Estimator:
    """The estimator of the meta-gradient that the configuration names."""
    name, sigma = config.get("estimator"), config.get("sigma")
    if "evolution" in config:
        name, sigma = "evolution", config["evolution"]
    if name not in PERTURBING:
        return estimators.bptt(config["second_order"])
    particles = config.get("particles", 2)
    if name == "score_function":
        return estimators.score_function(sigma, particles)
    if particles % 2:
        raise ValueError(f"--particles must be even, as they are pairs: {particles}")
    make = {
        "evolution": estimators.evolution,
        "persistent_evolution": estimators.persistent_evolution,
        "single_perturbation": estimators.single_perturbation,
    }
    return make[name](sigma, particles // 2)


def training_task(task: Task, config: dict) -> Task:
    """The task with the tricks that the configuration asks for."""
    if config["scaling"] or any(key in config for key in SCALING):
        how = {name: config[key] for key, name in SCALING.items() if key in config}
        task = random_scaling(task, config["scaling"], **how)
    if config["convex"]:
        convex = random_scaling(convex_task(), config["convex_scaling"])
        task = combine(task, convex)
    return task


def _decayed(rate, halving, iteration):
    return rate / (1 + iteration / halving)


def number_of_segments(config: dict, iteration: int) -> int:
    """Of the episode of an iteration; its logarithm is uniform between the bounds."""
    most = config["num_steps"] // config["segment_length"]
    least = config.get("min_steps", config["num_steps"]) // config["segment_length"]
    drawn = np.random.default_rng([config["seed"], iteration]).uniform()
    return round(least * (most / least) ** drawn)


def validation_tasks(names: list[str]) -> list[Task]:
    """The tasks on the validation split of their data, as far as there is one."""
    return [
        task_table.make_task(
            name,
            FLAGS.data_dir,
            FLAGS.data_source,
            "validation" if name.startswith("mnist") else "train",
        )
        for name in names
    ]


def main(argv: list[str]) -> None:
    """Runs or resumes the training that the flags describe."""
    del argv
    common.join_processes()
    devices = common.devices()
    config = configuration(len(devices))
    first = jax.process_index() == 0
    optimizer = learned_optimizer(config["optimizer"], config["sizes"])
    rate = config["meta_learning_rate"]
    if "meta_decay" in config:
        rate = functools.partial(_decayed, rate, config["meta_decay"])
    outer = optax.adam(rate)
    if "meta_clip" in config:
        outer = optax.chain(optax.clip_by_global_norm(config["meta_clip"]), outer)
    if "meta_accumulate" in config:
        outer = optax.MultiSteps(
            outer, config["meta_accumulate"]
        ).gradient_transformation()
    trainers = [
        meta_trainer(
            training_task(
                task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source), config
            ),
            optimizer,
            outer,
            segment_length=config["segment_length"],
            weights=config["loss_weights"],
            log_loss=config.get("log_loss", False),
            estimator=make_estimator(config),
            meta_batch=config["meta_batch"],
            devices=devices,
        )
        for name in config["task"].split(",")
    ]
    init_key, episode_key, validation_key = jax.random.split(
        jax.random.key(config["seed"]), 3
    )

    def step(state, iteration):
        key = jax.random.fold_in(episode_key, iteration)
        trainer = trainers[iteration % len(trainers)]
        return trainer.iterate(state, key, number_of_segments(config, iteration))

    def export(state, path, iteration):
        training = {**config, "iterations": iteration}
        save(path, Learned(config["optimizer"], state.phi, {}, training))

    on_export = None
    if config["select"] == "validation":
        evaluators = [
            evaluator(task, optimizer.transform)
            for task in validation_tasks(config["task"].split(","))
        ]

        def on_export(state, path, iteration):
            del path
            losses = [
                one.evaluate(
                    state.phi, validation_key, config["num_steps"], 10
                ).summary()["mean"]
                for one in evaluators
            ]
            score = math.inf if None in losses else losses[0]
            if len(losses) > 1 and score < math.inf:
                score = float(np.mean(np.log(losses)))
            runs.record_validation(FLAGS.workdir, iteration, score)

    again = [a for a in sys.argv[1:] if a not in ("--resume", "--resume=true")]
    command = shlex.join(["python", "-m", "experiments.meta_train", *again, "--resume"])
    if first:
        print(f"writing to {FLAGS.workdir}", flush=True)
    with runs.progress_bar() as progress:
        runs.run(
            FLAGS.workdir,
            config,
            step,
            trainers[0].init(init_key),
            FLAGS.num_iterations,
            resume=FLAGS.resume,
            how_to_resume=command,
            export=export,
            on_export=on_export,
            export_every=config["export_every"],
            checkpoint_seconds=60 * FLAGS.checkpoint_minutes,
            progress=progress,
        )
    if first:
        print(f"selected: {runs.select(FLAGS.workdir, by=config['select'])}")


if __name__ == "__main__":
    common.run(main, quick={"num_iterations": 2})
