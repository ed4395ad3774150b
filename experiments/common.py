"""What all binaries share: the flags of the data, and errors without a traceback."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import jax
from absl import app, flags

from experiments import task_table
from l2l_jax import Task

Item = TypeVar("Item")

flags.DEFINE_string(
    "data_dir",
    None,
    "Directory of the data: official files of MNIST (in it or in its mnist/) and"
    " CIFAR-10 (in it, in its cifar-10-batches-bin/, or the tar), or of TensorFlow"
    " Datasets. The digits need none.",
)
flags.DEFINE_enum(
    "data_source", "files", ["files", "tfds"], "Official files or TensorFlow Datasets."
)

flags.DEFINE_string(
    "compilation_cache",
    None,
    "Directory in which compiled programs are kept for the next time; default: none.",
)

# What a user can do something about; anything else is ours and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError)


class _ListTasks(flags.BooleanFlag):
    """Prints and stops while flags are read, as --help does: needs no other flag."""

    def parse(self, argument):
        if self._parse(argument):
            print(task_table.listing())
            sys.exit(0)


def define_task(default: str, text: str) -> None:
    """Defines --task and --list_tasks."""
    flags.DEFINE_enum("task", default, task_table.TASKS, text)
    _define_list_tasks()


def define_tasks(text: str) -> None:
    """Defines --task, one or several joined by commas, and --list_tasks."""
    flags.DEFINE_list("task", None, text)
    flags.register_validator(
        "task",
        lambda names: set(names or ()) <= set(task_table.TASKS),
        f"known are {', '.join(task_table.TASKS)}",
    )
    _define_list_tasks()


def _define_list_tasks() -> None:
    flags.DEFINE_flag(
        _ListTasks("list_tasks", False, "Print the names for --task and stop.")
    )


def define_evaluation() -> None:
    """Defines --num_steps, --num_runs, --seed and --outdir."""
    flags.DEFINE_integer("num_steps", 100, "Steps of each run.", lower_bound=1)
    flags.DEFINE_integer(
        "num_runs", 20, "Runs, each with its own start and data order.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Of all randomness.")
    flags.DEFINE_string("outdir", None, "Directory of the results; made, must be new.")


def define_devices() -> None:
    """Defines --num_devices."""
    flags.DEFINE_integer(
        "num_devices",
        1,
        "Devices of each process among which meta-training is divided: its episodes, as"
        " far as there are several, and each one's coordinates. On a CPU, cores, and as"
        " many as there are is fastest.",
        lower_bound=1,
    )


def define_processes() -> None:
    """Defines --distributed, --coordinator_address, --num_processes, --process_id."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "This is one of several processes that train together, and JAX finds the others"
        " by itself: on TPU pods, under SLURM and Open MPI.",
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "Elsewhere: HOST:PORT of process 0, which listens there, the same for all.",
    )
    flags.DEFINE_integer("num_processes", None, "Their number.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which one this is.", lower_bound=0)
    flags.DEFINE_integer(
        "heartbeat_seconds",
        100,
        "A process that was silent for so long is dead, and all others end.",
        lower_bound=1,
    )


def join_processes() -> None:
    """Connects to the other processes, if there are any, before JAX is used."""
    named = ("coordinator_address", "num_processes", "process_id")
    given = {name: flags.FLAGS[name].value for name in named}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if flags.FLAGS.distributed or not missing:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=flags.FLAGS.heartbeat_seconds
        )
        # JAX's handler only takes notes; `runs.run` has its own.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    elif len(missing) < len(named):
        raise ValueError(
            f"without {' and '.join(missing)} only --distributed can find the other"
            " processes"
        )


def devices() -> list[jax.Device]:
    """The devices that --num_devices asks for; to be called before JAX is used."""
    number = flags.FLAGS.num_devices
    jax.config.update("jax_num_cpu_devices", number)
    found = [jax.local_devices(process_index=i) for i in range(jax.process_count())]
    if (least := min(map(len, found))) < number:
        raise ValueError(f"--num_devices={number}, but there are only {least}")
    return [device for local in found for device in local[:number]]


def task(split: str = "train") -> Task:
    """What --task names, on that split of its data."""
    values = flags.FLAGS
    return task_table.make_task(values.task, values.data_dir, values.data_source, split)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Randomness for tuning and, independent of it, for the comparison."""
    tuning, comparison = jax.random.split(jax.random.key(seed))
    return tuning, comparison


def progress(items: Collection[Item], words: Callable[[Item], str]) -> Iterator[Item]:
    """The items; on a terminal with a bar, the words of the one at hand, the time left.

    Example:
      >>> list(progress([2, 3], str))
      [2, 3]
    """
    from tqdm import tqdm

    layout = "{desc}: {n_fmt} of {total_fmt} |{bar}| {elapsed}, left {remaining}"
    bar = tqdm(items, bar_format=layout, smoothing=0, leave=False, disable=None)
    for item in bar:
        bar.set_description(words(item))
        yield item


def _spelt(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def run(
    main: Callable[[list[str]], None], quick: Mapping[str, Any] | None = None
) -> None:
    """Calls `main` as `absl.app.run` does; user errors are one line, exit code 1.

    Of several processes, one that fails ends at once, and JAX ends the others.

    Args:
      main: of the binary.
      quick: what flags stand for that are not given if --quick is, which is defined
        here; None: the binary has its own, or none.
    """
    if quick is not None:
        settings = ", ".join(f"--{name}={_spelt(x)}" for name, x in quick.items())
        flags.DEFINE_bool("quick", False, f"A look, no result: {settings}.")

    # --help shows what the main module defines, and would leave the shared ones out.
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        for flag in found if module.startswith("experiments.") else ():
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def guarded(argv: list[str]) -> None:
        if quick is not None and flags.FLAGS.quick:
            for name, value in quick.items():
                if not flags.FLAGS[name].present:
                    setattr(flags.FLAGS, name, value)
        if flags.FLAGS.compilation_cache:
            jax.config.update(
                "jax_compilation_cache_dir", flags.FLAGS.compilation_cache
            )
        try:
            main(argv)
        except Exception as error:
            message = f"error: {error}"
            if not jax.distributed.is_initialized():
                if isinstance(error, _USER_ERRORS):
                    sys.exit(message)
                raise
            if not isinstance(error, _USER_ERRORS):
                message = traceback.format_exc()
            # An ordinary end would wait for the others, which wait for this one.
            print(message, file=sys.stderr, flush=True)
            os._exit(1)

    app.run(guarded)
