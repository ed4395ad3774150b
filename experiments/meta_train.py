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
import pathlib
import shlex
import sys
from collections.abc import Iterable, Mapping

import jax
import numpy as np
import optax
from absl import flags

from experiments import common, meta_config, task_table, weights
from l2l_jax import (
    Evaluation,
    Learned,
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


def show(results: Mapping[str, Evaluation], iteration: int) -> None:
    """The curves of validation runs, as an image for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from tensorboardX import SummaryWriter

    panels = [
        plotting.loss_curves({"validation": result.curves}, name)
        for name, result in results.items()
    ]
    canvas = FigureCanvasAgg(plotting.draw(panels))
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    folder = pathlib.Path(FLAGS.workdir) / "tensorboard" / "validation"
    # Two within a second would have one name.
    with SummaryWriter(str(folder), filename_suffix=f".{iteration:08}") as writer:
        writer.add_image("curves", image, iteration, dataformats="HWC")


def main(argv: list[str]) -> None:
    """Runs or resumes the training that the flags describe."""
    del argv
    common.join_processes()
    devices = common.devices()
    config = meta_config.configuration(len(devices))
    first = jax.process_index() == 0
    own = config.get("hyper_parameters", {})
    optimizer = weights.optimizer(config["optimizer"], config["sizes"], own)
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
            segment_length=length,
            weights=config["loss_weights"],
            log_loss=config.get("log_loss", False),
            estimator=make_estimator(config),
            meta_batch=config["meta_batch"],
            devices=devices,
        )
        for name, _, length in meta_config.by_task(config)
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
        save(path, Learned(config["optimizer"], state.phi, own, training))

    on_export = None
    if config["select"] == "validation":
        names, steps, _ = zip(*meta_config.by_task(config), strict=True)
        evaluators = [
            evaluator(task, optimizer.transform) for task in validation_tasks(names)
        ]

        def on_export(state, path, iteration):
            del path
            results = {
                name: one.evaluate(state.phi, validation_key, number, 10)
                for name, one, number in zip(names, evaluators, steps, strict=True)
            }
            show(results, iteration)
            score = runs.validation_score(list(results.values()))
            runs.record_validation(FLAGS.workdir, iteration, score)

    again = [a for a in sys.argv[1:] if a not in ("--resume", "--resume=true")]
    command = shlex.join(["python", "-m", "experiments.meta_train", *again, "--resume"])
    with runs.progress_bar() as progress:
        if first:
            print(f"writing to {FLAGS.workdir}", flush=True)
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
