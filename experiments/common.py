"""What all binaries share: the flags of the data, and errors without a traceback."""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
from absl import app, flags

from experiments import options, task_table
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

_DATA_FLAGS = ("data_dir", "data_source", "compilation_cache")

# Octaves that a grid of rates may go on at an end, if the best is there.
BEYOND = 6

# What a user can do something about; anything else is ours and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, flags.Error)


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
    options.define_names("task", None, task_table.TASKS, text)
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
    options.define_outdir(required=True)


def define_devices() -> None:
    """Defines --num_devices."""
    flags.DEFINE_integer(
        "num_devices",
        1,
        "Devices of each process among which meta-training is divided: its episodes, as"
        " far as there are several, and each one's coordinates. On a CPU, cores, and as"
        " many as there are is fastest; more are accepted, and slow.",
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
    flags.register_validator(
        "coordinator_address",
        lambda address: address is None or re.fullmatch(r".+:\d+", address),
        "must be HOST:PORT",
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
    if not missing and given["process_id"] >= given["num_processes"]:
        raise ValueError(
            f"--process_id={given['process_id']} must be below"
            f" --num_processes={given['num_processes']}"
        )
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
        bar.set_description_str(words(item))
        yield item


def _end(message: str, code: int, at_once: bool = False) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    # An ordinary end would wait for other processes, which wait for this one.
    if at_once or jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _settings(quick: Mapping[str, Any]) -> None:
    """Gives flags that are not given what they stand for with --quick."""
    for name, value in quick.items():
        if not flags.FLAGS[name].present:
            setattr(flags.FLAGS, name, value)


def run(
    main: Callable[[list[str]], None],
    quick: Mapping[str, Any] | None = None,
    stopped: str = "stopped",
    computes: bool = True,
) -> None:
    """Calls `main` as `absl.app.run` does; user errors are one line, exit code 1.

    Ctrl-C is one line, too, and exit code 130. Of several processes, one that fails
    ends at once, and JAX ends the others.

    Args:
      main: of the binary.
      quick: what flags stand for that are not given if --quick is, which is defined
        here; None: the binary has its own, or none.
      stopped: what is said after Ctrl-C.
      computes: whether the flags of the data and of compilation mean anything.
    """
    if quick is not None:
        spelt = [f"--{name}={options.spelt(x)}" for name, x in quick.items()]
        text = f"A look, no result: {', '.join(spelt)}."
        flags.DEFINE_bool("quick", False, text)
    for name in () if computes else _DATA_FLAGS:
        delattr(flags.FLAGS, name)

    # --help shows what the main module defines, and would leave the shared ones out.
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        for flag in found if module.startswith("experiments.") else ():
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def guarded(argv: list[str]) -> None:
        # It tells, for one, of all backends that are not there.
        logging.getLogger("jax").setLevel(logging.WARNING)
        if argv[1:]:
            stray = ", ".join(map(repr, argv[1:]))
            _end(f"error: unknown arguments {stray}; flags begin with --", 1)
        try:
            if quick is not None and flags.FLAGS.quick:
                _settings(quick)
            if computes and flags.FLAGS.compilation_cache:
                cache = flags.FLAGS.compilation_cache
                jax.config.update("jax_compilation_cache_dir", cache)
            main(argv)
        except KeyboardInterrupt:
            # What XLA has in hand would end an ordinary end in a segmentation fault.
            # A bar may have the line.
            line = "\n" if sys.stderr.isatty() else ""
            _end(line + stopped, 130, at_once=True)
        except _USER_ERRORS as error:
            absent = isinstance(error, ModuleNotFoundError)
            hint = "; pip install '.[experiments]'" if absent else ""
            _end(f"error: {error}{hint}", 1)
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            _end(traceback.format_exc(), 1)

    app.run(guarded)
