"""What a meta-training is to do: flags, what those left open stand for, all together.

`experiments.meta_train` does it.
"""

from absl import flags

from experiments import common, options, task_table
from l2l_jax import longrun_transform

FLAGS = flags.FLAGS
# By kind of optimizer, what flags left open stand for: the papers' two trainings, and
# that of Longrun.
_PAPERS = {
    "task": ["mnist_mlp"],
    "hidden_sizes": [20, 20],
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
# Of an episode and of a segment: one number for all tasks or one for each.
LENGTHS = ("num_steps", "segment_length")
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
        "signals": 4,
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

common.define_tasks("What the optimizer learns on; of several, one an iteration.")
options.define_directory(
    "workdir", None, "Directory of the run; made, never overwritten.", required=True
)
flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.")
flags.DEFINE_enum(
    "optimizer", "rnnprop", sorted(DEFAULTS), "Which kind of optimizer to learn."
)
options.define_settings(
    "hyper_parameters",
    "Of the learned optimizer's transformation, other than its defaults, such as"
    " step_size=0.05,b1=0.8; they are saved with the weights.",
)
options.define_numbers("hidden_sizes", None, "Hidden units of each LSTM layer.")
flags.DEFINE_integer(
    "signals",
    None,
    "What Longrun sees: 4, or 2 without the slow moment.",
)
flags.DEFINE_integer("num_iterations", 1000, "Episodes to train on.", lower_bound=1)
options.define_numbers(
    "num_steps",
    None,
    "Steps of the optimizee in an episode, at most, of all tasks or of each.",
)
flags.DEFINE_integer(
    "min_steps",
    None,
    "Least steps of an episode: their number's logarithm is uniform between the two.",
    lower_bound=1,
)
options.define_numbers(
    "segment_length",
    None,
    "Steps between two updates of the optimizer's weights, of all tasks or of each;"
    " divides --num_steps.",
)
options.define_numbers(
    "loss_weights",
    None,
    "Weights of the losses of a segment in the meta-loss: 'last', 'mean', 'half',"
    " 'octaves' (not with bptt) or --segment_length numbers joined by commas.",
    float,
    None,
    ("last", "mean", "half", "octaves"),
)
flags.DEFINE_bool("log_loss", None, "Take the meta-loss's logarithm.")
flags.DEFINE_enum(
    "estimator",
    None,
    ["bptt", *PERTURBING],
    "How the meta-gradient is found, see l2l_jax.estimators; default but for Longrun:"
    " bptt.",
)
options.define_float(
    "sigma", None, "Of an estimator that perturbs weights; default: .1.", least=0
)
flags.DEFINE_integer(
    "particles",
    None,
    "Rollouts of it an episode, two for each pair; default: 2.",
    lower_bound=2,
)
options.define_float(
    "evolution",
    None,
    "Short for --estimator=evolution with this --sigma.",
    least=0,
)
options.define_float(
    "scaling",
    None,
    "Bound L of Random Scaling of the task, factors exp(U[-L, L]); 0: none.",
    least=0,
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
options.define_float(
    "convex_scaling", 1.0, "Bound of Random Scaling of the convex part.", least=0
)
options.define_float(
    "meta_learning_rate", None, "Rate of Adam, the outer optimizer.", least=0
)
options.define_float(
    "meta_decay",
    None,
    "Updates N after which that rate is halved, as 1 / (1 + i / N) does; default but"
    " for Longrun: never.",
    least=0,
)
flags.DEFINE_integer(
    "meta_accumulate",
    None,
    "Iterations whose meta-gradients are averaged for an update, best a multiple of the"
    " number of tasks; default but for Longrun: 1.",
    lower_bound=1,
)
options.define_float("meta_clip", None, "Clip the meta-gradient to this norm.", least=0)
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
flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0)
options.define_numbers(
    "meta_seeds",
    None,
    "Instead of --seed, several of them, trained at once in one vmapped program, each"
    " in its own directory, WORKDIR/seed0 and so on; meant for a GPU.",
    least=0,
)
flags.DEFINE_integer(
    "export_every", 1000, "Iterations between two files of weights.", lower_bound=1
)
options.define_float(
    "checkpoint_minutes",
    2.0,
    "Minutes between two checkpoints, at most.",
    least=0,
)
flags.DEFINE_enum(
    "select",
    None,
    ["training", "validation"],
    "Which saved weights to take: lowest moving average of the training loss, or lowest"
    " final loss of 10 runs on the validation split of the task, or its logarithm's"
    " mean if there are several.",
)


def configuration(num_devices: int) -> dict:
    """All that decides the run, from the flags and the devices in all processes."""
    default = DEFAULTS[FLAGS.optimizer]

    def given(name: str):
        value = getattr(FLAGS, name)
        return default.get(name) if value is None else value

    tasks, fewest = given("task"), given("min_steps")
    lengths = _lengths({name: given(name) for name in LENGTHS}, fewest, len(tasks))
    if given("meta_decay") == 0:
        raise ValueError("--meta_decay must be above 0, got 0")
    sizes = {name: given(name) for name in ("hidden_sizes", "signals")}
    foreign = "hidden_sizes" if FLAGS.optimizer == "longrun" else "signals"
    if sizes.pop(foreign) is not None:
        raise ValueError(f"--optimizer={FLAGS.optimizer} has no --{foreign}")
    convolutional = [name for name in tasks if task_table.is_convolutional(name)]
    axes = longrun_transform.__kwdefaults__["learned_axes"]
    axes = (FLAGS.hyper_parameters or {}).get("learned_axes", axes)
    # Their kernels have 4; other values than numbers are refused by the rule.
    if FLAGS.optimizer == "longrun" and convolutional and axes in range(1, 4):
        raise ValueError(
            f"Longrun learns nothing on {convolutional[0]}, which has convolutions, but"
            " with --hyper_parameters=learned_axes=4"
        )
    config = {
        "optimizer": FLAGS.optimizer,
        "sizes": sizes,
        "hyper_parameters": FLAGS.hyper_parameters,
        "task": ",".join(tasks),
        "data_source": FLAGS.data_source,
        "scaling": given("scaling"),
        **{name: getattr(FLAGS, name) for name in SCALING},
        "convex": given("convex"),
        "convex_scaling": FLAGS.convex_scaling,
        "num_steps": lengths["num_steps"],
        "min_steps": fewest,
        "segment_length": lengths["segment_length"],
        "loss_weights": given("loss_weights"),
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


def meta_seeds() -> list[int]:
    """Those to be trained at once; none if there is one training."""
    seeds = FLAGS.meta_seeds or []
    if seeds and FLAGS["seed"].present:
        raise ValueError("--seed and --meta_seeds exclude each other")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--meta_seeds must differ, got {options.spelt(seeds)}")
    return seeds


def _lengths(given: dict, fewest: int | None, tasks: int) -> dict:
    """Those given, one number as such; ValueError unless they fit together."""
    found = {}
    for name, value in given.items():
        if isinstance(value, list) and len(value) not in (1, tasks):
            raise ValueError(
                f"--{name} must be one number or one for each of the {tasks} tasks,"
                f" got {value}"
            )
        one = isinstance(value, list) and len(value) == 1
        found[name] = value[0] if one else value
    each = [_of_each(value, tasks) for value in found.values()]
    for steps, length in zip(*each, strict=True):
        for name, value in (("num_steps", steps), ("min_steps", fewest or steps)):
            if value % length:
                raise ValueError(
                    f"--segment_length must divide --{name}={value}, got {length}"
                )
        if (fewest or steps) > steps:
            raise ValueError(
                f"--min_steps must be at most --num_steps={steps}, got {fewest}"
            )
    return found


def by_task(config: dict) -> list[tuple[str, int, int]]:
    """Name, steps of an episode and of a segment of each task.

    Example:
      >>> by_task({"task": "a,b", "num_steps": [100, 40], "segment_length": 20})
      [('a', 100, 20), ('b', 40, 20)]
    """
    names = config["task"].split(",")
    lengths = [_of_each(config[key], len(names)) for key in LENGTHS]
    return list(zip(names, *lengths, strict=True))


def _of_each(value: int | list[int], number: int) -> list[int]:
    return value if isinstance(value, list) else [value] * number


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
