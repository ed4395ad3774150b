"""What all binaries share: the flags of the data, and errors without a traceback."""

import sys
from collections.abc import Callable

from absl import app, flags

from experiments import task_table

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

# What a user can do something about; anything else is ours and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError)


def define_task(default: str, text: str) -> None:
    """Defines --task."""
    flags.DEFINE_enum("task", default, task_table.TASKS, text)


def run(main: Callable[[list[str]], None]) -> None:
    """Calls `main` as `absl.app.run` does; a user's error is one line and exit code 1."""

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except _USER_ERRORS as error:
            sys.exit(f"error: {error}")

    app.run(guarded)
