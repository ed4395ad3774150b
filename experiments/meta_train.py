r"""Learns an optimizer.

RNNprop as in the paper, on MNIST (half an hour for 1,000 iterations on 2 slow cores;
final loss of the base MLP after 100 steps then .37):

    python -m experiments.meta_train --task=mnist_mlp --data_dir=DIR \
        --workdir=runs/rnnprop --num_iterations=1000 --num_devices=2

DMoptimizer: the same with --optimizer=dm. A run that was killed goes on with --resume.

On several hosts the same command is started on each, with --distributed where JAX finds
the others (TPU pods, SLURM), else with --coordinator_address, --num_processes and
--process_id; process 0 keeps the run. Each reads the data from its own --data_dir.
"""

import shlex
import sys

import jax
import optax
from absl import flags

from experiments import common, task_table
from l2l_jax import (
    Learned,
    Task,
    combine,
    convex_task,
    evaluator,
    learned_optimizer,
    meta_trainer,
    random_scaling,
    runs,
    save,
)

# What the papers' two trainings differ in, where a flag leaves it open.
DEFAULTS = {
    "rnnprop": {
        "loss_weights": "last",
        "scaling": 3.0,
        "convex": True,
        "by": "training",
    },
    "dm": {"loss_weights": "mean", "scaling": 0.0, "convex": False, "by": "validation"},
}

FLAGS = flags.FLAGS
common.define_task("mnist_mlp", "What the optimizer learns on.")
flags.DEFINE_string("workdir", None, "Directory of the run; made, never overwritten.")
flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.")
flags.DEFINE_enum(
    "optimizer", "rnnprop", sorted(DEFAULTS), "Which kind of optimizer to learn."
)
flags.DEFINE_list("hidden_sizes", ["20", "20"], "Hidden units of each LSTM layer.")
flags.DEFINE_integer("num_iterations", 1000, "Episodes to train on.", lower_bound=1)
flags.DEFINE_integer(
    "num_steps", 100, "Steps of the optimizee in an episode.", lower_bound=1
)
flags.DEFINE_integer(
    "segment_length",
    20,
    "Steps between two updates of the optimizer's weights; divides --num_steps.",
    lower_bound=1,
)
flags.DEFINE_string(
    "loss_weights",
    None,
    "Weights of the losses of a segment in the meta-loss: 'last', 'mean' or"
    " --segment_length numbers joined by commas. Default: 'last' for rnnprop, 'mean'"
    " for dm.",
)
flags.DEFINE_float(
    "scaling",
    None,
    "Bound L of Random Scaling of the task, factors exp(U[-L, L]); 0: none. Default: 3"
    " for rnnprop, 0 for dm.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "convex",
    None,
    "Combine the task with a random convex function of 20 coordinates. Default: true"
    " for rnnprop, false for dm.",
)
flags.DEFINE_float(
    "convex_scaling", 1.0, "Bound of Random Scaling of the convex part.", lower_bound=0
)
flags.DEFINE_float(
    "meta_learning_rate", 1e-4, "Rate of Adam, the outer optimizer.", lower_bound=0
)
flags.DEFINE_integer(
    "meta_batch",
    1,
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
    " final loss of 10 runs on the validation split of the task. Default: training for"
    " rnnprop, validation for dm.",
)
flags.mark_flag_as_required("workdir")


def configuration(num_devices: int) -> dict:
    """All that decides the run, from the flags and the devices in all processes."""
    default = DEFAULTS[FLAGS.optimizer]
    weights = FLAGS.loss_weights or default["loss_weights"]
    if weights not in ("last", "mean"):
        weights = [float(w) for w in weights.split(",")]
    if FLAGS.num_steps % FLAGS.segment_length:
        raise ValueError(
            f"--segment_length must divide --num_steps={FLAGS.num_steps}, got"
            f" {FLAGS.segment_length}"
        )

    def given(name: str, key: str):
        value = getattr(FLAGS, name)
        return default[key] if value is None else value

    return {
        "optimizer": FLAGS.optimizer,
        "sizes": {"hidden_sizes": [int(size) for size in FLAGS.hidden_sizes]},
        "task": FLAGS.task,
        "data_source": FLAGS.data_source,
        "scaling": given("scaling", "scaling"),
        "convex": given("convex", "convex"),
        "convex_scaling": FLAGS.convex_scaling,
        "num_steps": FLAGS.num_steps,
        "segment_length": FLAGS.segment_length,
        "loss_weights": weights,
        "meta_learning_rate": FLAGS.meta_learning_rate,
        "meta_batch": FLAGS.meta_batch,
        "second_order": FLAGS.second_order,
        "num_devices": num_devices,
        "seed": FLAGS.seed,
        "export_every": FLAGS.export_every,
        "select": given("select", "by"),
    }


def training_task(task: Task, config: dict) -> Task:
    """The task with the tricks that the configuration asks for."""
    if config["scaling"]:
        task = random_scaling(task, config["scaling"])
    if config["convex"]:
        convex = random_scaling(convex_task(), config["convex_scaling"])
        task = combine(task, convex)
    return task


def main(argv: list[str]) -> None:
    """Runs or resumes the training that the flags describe."""
    del argv
    common.join_processes()
    devices = common.devices()
    config = configuration(len(devices))
    first = jax.process_index() == 0
    sizes = {"hidden_sizes": tuple(config["sizes"]["hidden_sizes"])}
    optimizer = learned_optimizer(config["optimizer"], sizes)
    task = task_table.make_task(FLAGS.task, FLAGS.data_dir, FLAGS.data_source)
    trainer = meta_trainer(
        training_task(task, config),
        optimizer,
        optax.adam(config["meta_learning_rate"]),
        segment_length=config["segment_length"],
        weights=config["loss_weights"],
        meta_batch=config["meta_batch"],
        second_order=config["second_order"],
        devices=devices,
    )
    init_key, episode_key, validation_key = jax.random.split(
        jax.random.key(config["seed"]), 3
    )
    num_segments = config["num_steps"] // config["segment_length"]

    def step(state, iteration):
        key = jax.random.fold_in(episode_key, iteration)
        return trainer.iterate(state, key, num_segments)

    def export(state, path, iteration):
        training = {**config, "iterations": iteration}
        save(path, Learned(config["optimizer"], state.phi, {}, training))

    on_export = None
    if config["select"] == "validation":
        has_split = FLAGS.task.startswith("mnist")
        validation = evaluator(
            task_table.make_task(
                FLAGS.task,
                FLAGS.data_dir,
                FLAGS.data_source,
                "validation" if has_split else "train",
            ),
            optimizer.transform,
        )

        def on_export(state, path, iteration):
            del path
            result = validation.evaluate(
                state.phi, validation_key, config["num_steps"], 10
            )
            mean = result.summary()["mean"]
            runs.record_validation(
                FLAGS.workdir, iteration, float("inf") if mean is None else mean
            )

    again = [a for a in sys.argv[1:] if a not in ("--resume", "--resume=true")]
    command = shlex.join(["python", "-m", "experiments.meta_train", *again, "--resume"])
    if first:
        print(f"writing to {FLAGS.workdir}", flush=True)
    with runs.progress_bar() as progress:
        runs.run(
            FLAGS.workdir,
            config,
            step,
            trainer.init(init_key),
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
    common.run(main)
