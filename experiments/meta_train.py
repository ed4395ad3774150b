r"""Learns an optimizer.

RNNprop as in the paper, on MNIST (half an hour for 1,000 iterations on 2 slow cores;
final loss of the base MLP after 100 steps then .37):

    python -m experiments.meta_train --task=mnist_mlp --data_dir=DIR \
        --workdir=runs/rnnprop --num_iterations=1000 --num_devices=2

DMoptimizer: the same with --optimizer=dm. Longrun: with --optimizer=longrun and without
--task, as it has several. A run that was killed goes on with --resume. With
--meta_seeds=0,1,2,3 so many are trained at once in one program, for a GPU, each in a
directory of its own that can be resumed by itself.

On several hosts the same command is started on each, with --distributed where JAX finds
the others (TPU pods, SLURM), else with --coordinator_address, --num_processes and
--process_id; process 0 keeps the run. Each reads the data from its own --data_dir.
"""

import functools
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, meta_config, task_table, weights
from l2l_jax import (
    Evaluation,
    Learned,
    LearnedOptimizer,
    MetaTrainer,
    Task,
    combine,
    convex_task,
    estimators,
    evaluator,
    meta_trainer,
    plotting,
    random_scaling,
    runs,
    save,
)

FLAGS = flags.FLAGS  # those of `meta_config`


def make_estimator(config: dict) -> estimators.Estimator:
    """The estimator of the meta-gradient that the configuration names."""
    name, sigma = config.get("estimator"), config.get("sigma")
    if "evolution" in config:
        name, sigma = "evolution", config["evolution"]
    if name not in meta_config.PERTURBING:
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
    scaling = {
        name: config[flag]
        for flag, name in meta_config.SCALING.items()
        if flag in config
    }
    if config["scaling"] or scaling:
        task = random_scaling(task, config["scaling"], **scaling)
    if config["convex"]:
        convex = random_scaling(convex_task(), config["convex_scaling"])
        task = combine(task, convex)
    return task


def _decayed(rate, halving, iteration):
    return rate / (1 + iteration / halving)


def number_of_segments(config: dict, iteration: int) -> int:
    """Of the episode of an iteration; its logarithm is uniform between the bounds."""
    tasks = meta_config.by_task(config)
    _, steps, length = tasks[iteration % len(tasks)]
    most, least = steps // length, config.get("min_steps", steps) // length
    drawn = np.random.default_rng([config["seed"], iteration]).uniform()
    return round(least * (most / least) ** drawn)


def validation_tasks(names: Iterable[str]) -> list[Task]:
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


def show(results: Mapping[str, Evaluation], iteration: int, directory: str) -> None:
    """The curves of validation runs, as an image for the run's TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from tensorboardX import SummaryWriter

    panels = [
        plotting.loss_curves({"validation": result.curves}, name)
        for name, result in results.items()
    ]
    canvas = FigureCanvasAgg(plotting.draw(panels))
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    folder = pathlib.Path(directory) / "tensorboard" / "validation"
    # Two within a second would have one name.
    with SummaryWriter(str(folder), filename_suffix=f".{iteration:08}") as writer:
        writer.add_image("curves", image, iteration, dataformats="HWC")


def make_outer(config: dict) -> optax.GradientTransformation:
    """The outer optimizer that the configuration describes."""
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
    return outer


class Keys(NamedTuple):
    """All the randomness of a run."""

    init: jax.Array
    episodes: jax.Array
    validation: jax.Array

    def episode(self, iteration: int) -> jax.Array:
        """Of one iteration."""
        return jax.random.fold_in(self.episodes, iteration)


def keys_of(config: dict) -> Keys:
    """Those of the run's seed."""
    return Keys(*jax.random.split(jax.random.key(config["seed"]), 3))


def exporters(
    directory: str, config: dict, optimizer: LearnedOptimizer, evaluators: list
) -> dict[str, Callable[..., None]]:
    """How a run saves weights, and scores them if it selects by validation."""
    own = config.get("hyper_parameters", {})

    def export(state, path, iteration):
        training = {**config, "iterations": iteration}
        save(path, Learned(config["optimizer"], state.phi, own, training))

    if config["select"] != "validation":
        return {"export": export}

    def on_export(state, path, iteration):
        del path
        results = {
            name: one.evaluate(state.phi, keys_of(config).validation, steps, 10)
            for (name, steps, _), one in zip(
                meta_config.by_task(config), evaluators, strict=True
            )
        }
        show(results, iteration, directory)
        score = runs.validation_score(list(results.values()))
        runs.record_validation(directory, iteration, score)

    return {"export": export, "on_export": on_export}


@jax.jit
def stacked(trees: list) -> Any:
    """One tree with a leading axis of many."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def parted(tree: Any, number: int) -> list:
    """The trees that `stacked` made one of."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(number)]


def main(argv: list[str]) -> None:
    """Runs or resumes the training that the flags describe."""
    del argv
    common.join_processes()
    devices = common.devices()
    config = meta_config.configuration(len(devices))
    seeds = meta_config.meta_seeds()
    first = jax.process_index() == 0
    optimizer = weights.optimizer(
        config["optimizer"], config["sizes"], config.get("hyper_parameters", {})
    )
    trainers = [
        meta_trainer(
            training_task(
                task_table.make_task(name, FLAGS.data_dir, FLAGS.data_source), config
            ),
            optimizer,
            make_outer(config),
            segment_length=length,
            weights=config["loss_weights"],
            log_loss=config.get("log_loss", False),
            estimator=make_estimator(config),
            meta_batch=config["meta_batch"],
            meta_seeds=len(seeds) or None,
            devices=devices,
        )
        for name, _, length in meta_config.by_task(config)
    ]
    evaluators = []
    if config["select"] == "validation":
        names = [name for name, _, _ in meta_config.by_task(config)]
        evaluators = [
            evaluator(task, optimizer.transform) for task in validation_tasks(names)
        ]

    again = [a for a in sys.argv[1:] if a not in ("--resume", "--resume=true")]
    command = shlex.join(["python", "-m", "experiments.meta_train", *again, "--resume"])
    options: dict[str, Any] = {
        "resume": FLAGS.resume,
        # The one changes only the rounding, the other which φ can be selected.
        "may_change": ("num_devices", "export_every"),
        "how_to_resume": command,
        "export_every": config["export_every"],
        "checkpoint_seconds": 60 * FLAGS.checkpoint_minutes,
    }
    if first:
        print(f"writing to {FLAGS.workdir}", flush=True)
    with runs.progress_bar() as progress:
        options["progress"] = progress
        folders = [FLAGS.workdir]
        if seeds:
            configs = [{**config, "seed": seed} for seed in seeds]
            folders = [str(pathlib.Path(FLAGS.workdir) / f"seed{x}") for x in seeds]
            exports = [
                exporters(folder, own, optimizer, evaluators)
                for folder, own in zip(folders, configs, strict=True)
            ]
            train_together(configs, folders, trainers, exports, options)
        else:
            options |= exporters(FLAGS.workdir, config, optimizer, evaluators)
            train_one(config, FLAGS.workdir, trainers, options)
    for folder in folders if first else ():
        print(f"selected: {runs.select(folder, by=config['select'])}")


def train_one(
    config: dict, folder: str, trainers: list[MetaTrainer], options: dict
) -> None:
    """Trains, as one run."""
    keys = keys_of(config)

    def step(state, iteration):
        trainer = trainers[iteration % len(trainers)]
        number = number_of_segments(config, iteration)
        return trainer.iterate(state, keys.episode(iteration), number)

    start = trainers[0].init(keys.init)
    runs.run(folder, config, step, start, FLAGS.num_iterations, **options)


def train_together(
    configs: list[dict],
    folders: list[str],
    trainers: list[MetaTrainer],
    exports: list[dict],
    options: dict,
) -> None:
    """Trains one configuration's meta-seeds at once, each a run by itself."""
    number, keys = len(configs), [keys_of(config) for config in configs]
    states = parted(trainers[0].init(stacked([own.init for own in keys])), number)

    def step(states, iteration):
        segments = [number_of_segments(config, iteration) for config in configs]
        after, metrics = trainers[iteration % len(trainers)].iterate(
            stacked(states),
            stacked([own.episode(iteration) for own in keys]),
            np.array(segments),
        )
        return parted(after, number), parted(metrics, number)

    begun = [(pathlib.Path(folder) / "config.json").exists() for folder in folders]
    of_each = [
        {"directory": folder, "config": config, "state": state, **export}
        for folder, config, state, export in zip(
            folders, configs, states, exports, strict=True
        )
    ]
    if options["resume"] and any(begun):  # a seed that is new, or was killed at once
        for one, there in zip(of_each, begun, strict=True):
            one["resume"] = there
    # One bar is enough.
    of_each[0]["progress"] = options.pop("progress")
    runs.run_together(of_each, step, FLAGS.num_iterations, **options)


if __name__ == "__main__":
    common.run(main, quick={"num_iterations": 2})
