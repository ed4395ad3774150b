"""The files of a run: its lock, log.csv, and TensorBoard's event file.

The log is written by the standard library; the event file needs tensorboardX, of the
extra `experiments` of the package.
"""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from l2l_jax.files import naming, write_text


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Holds the directory against other processes until the block or process ends."""
    import fcntl  # here, for the rest of this file works without POSIX

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process has the run {directory} in hand"
            ) from error
        except OSError:
            pass  # a file system without locks, as NFS may be
        yield
    finally:
        os.close(descriptor)


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows without a last one that is not finished."""
    text = path.read_text(errors="replace")
    lines = [line.split(",") for line in text.split("\n")[:-1]]
    if not lines:
        return [], []
    names, *rows = lines
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise ValueError(
                f"{path} is damaged: {len(row)} instead of {len(names)} columns in "
                f"line {number}"
            )
    return names, rows


def columns(
    path: Path, names: list[str], rows: list[list[str]]
) -> dict[str, np.ndarray]:
    def column(entries: list[str]) -> np.ndarray:
        try:
            return np.asarray([int(entry) for entry in entries], np.int64)
        except ValueError:
            return np.asarray([float(entry) for entry in entries], np.float64)

    try:
        return {name: column([row[i] for row in rows]) for i, name in enumerate(names)}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_log(directory: str | Path) -> dict[str, np.ndarray]:
    """Reads log.csv, exactly as it was logged.

    Args:
      directory: the directory of a run, which may be running.

    Returns:
      The columns, each of shape (iterations,): int64 if all its entries are integers,
      else float64. A half-written last row is left out.

    Raises:
      FileNotFoundError: if there is no log.
      ValueError: if the log is damaged.

    Example: see `run`.
    """
    path = Path(directory) / "log.csv"
    return columns(path, *read_csv(path))


class Log:
    """log.csv and, with the same numbers, the event file of TensorBoard.

    Opening it takes both back to the first `start` iterations.

    Attributes:
      path: of log.csv.
      bad: how many bad iterations there were in a row up to now.
    """

    def __init__(self, directory: Path, start: int, started: str, skipped: str | None):
        from tensorboardX import RecordWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._skipped, self._total_name = skipped, f"total_{skipped}"
        self.path = directory / "log.csv"
        self._names, rows = read_csv(self.path) if start else ([], [])
        if [row[0] for row in rows[:start]] != [str(i) for i in range(start)]:
            raise ValueError(
                f"{self.path} is damaged: it does not hold the iterations 0 to "
                f"{start - 1}, which the newest checkpoint has behind it"
            )
        skips = columns(self.path, self._names, rows[:start]).get(
            skipped or "", np.zeros(start, np.int64)
        )
        good = np.flatnonzero(skips == 0)
        self.bad = start - 1 - int(good[-1]) if good.size else start
        self._total = int(skips.sum())

        lines = [self._names, *rows[:start]] if start else []
        write_text(self.path, "".join(",".join(line) + "\n" for line in lines))
        folder = directory.absolute() / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Wall times count computing time only, so that they, too, derive from the log.
        self._clock = datetime.datetime.fromisoformat(started).timestamp()
        self._events_path = folder / f"events.out.tfevents.{int(self._clock)}.l2l_jax"
        temporary = folder / "rebuilt.tmp"
        with naming(self._events_path), contextlib.ExitStack() as stack:
            self._events = RecordWriter(str(temporary))
            stack.callback(self._events.close)
            self._add_event(file_version="brain.Event:2")
            for row in rows[:start]:
                self._add_row(dict(zip(self._names, map(float, row), strict=True)))
            self._events.flush()
            temporary.replace(self._events_path)
            self._file = stack.enter_context(self.path.open("ab", buffering=0))
            self._stack = stack.pop_all()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        # After a failure to write, closing tries again and fails again.
        with contextlib.suppress(OSError) if kind else naming(self._events_path):
            self._stack.close()

    def append(
        self, iteration: int, metrics: dict[str, int | float], seconds: float
    ) -> None:
        own: dict[str, int | float] = {"iteration": iteration}
        if self._skipped is not None:
            count = metrics.get(self._skipped)
            if not isinstance(count, int) or count < 0:
                raise ValueError(
                    f"metric {self._skipped!r} is {count}, must be an integer >= 0 "
                    "(or pass skipped=None)"
                )
            self._total += count
            self.bad = self.bad + 1 if count else 0
            own[self._total_name] = self._total
        own["seconds"] = seconds
        row = {"iteration": iteration, **metrics, **own}
        if not self._names:
            for name in metrics:
                if name in own or not re.fullmatch(r"[^,\"\s]+", name):
                    raise ValueError(
                        f"metric {name!r} must be called something else than "
                        f"{', '.join(own)}, without commas, quotes and white space"
                    )
            self._names = list(row)
            self._write_line(self._names)
        if row.keys() != set(self._names):
            raise ValueError(
                f"step gave other metrics than before: {', '.join(metrics)}; "
                f"{self.path} has the columns {', '.join(self._names)}"
            )
        row = {name: row[name] for name in self._names}
        self._write_line([repr(number) for number in row.values()])
        self._add_row(row)

    def sync(self) -> None:
        """Returns when all that was appended is on the disk."""
        with naming(self.path):
            os.fsync(self._file.fileno())
        with naming(self._events_path):
            self._events.flush()

    def _write_line(self, entries: list[str]) -> None:
        line = memoryview((",".join(entries) + "\n").encode())
        with naming(self.path):
            while line:
                line = line[self._file.write(line) :]

    def _add_row(self, row: dict[str, int | float]) -> None:
        self._clock += row["seconds"]
        values = [
            self._summary.Value(tag=name, simple_value=number)
            for name, number in row.items()
            if name != "iteration"
        ]
        if row["seconds"] > 0:
            speed = {"tag": "iterations_per_second", "simple_value": 1 / row["seconds"]}
            values.append(self._summary.Value(**speed))
        self._add_event(step=int(row["iteration"]), summary=self._summary(value=values))

    def _add_event(self, **fields: Any) -> None:
        event = self._event(wall_time=self._clock, **fields)
        with naming(self._events_path):
            self._events.write(event.SerializeToString())
