"""Signals that stop a run, once what it has done is saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(SystemExit):
    """SIGINT or SIGTERM came: the run saved a checkpoint and stopped.

    As a `SystemExit` it ends a program with its message, which says how to resume,
    and without a traceback.

    Args:
      signum: the number of the signal.
      iteration: finished iterations.
      num_iterations: iterations of the whole run.
      where: ends the message: the directory of the run, and how to resume it.

    Attributes:
      iteration: the iteration from which the run will resume.
      signum: the number of the signal.

    Example:
      >>> print(Interrupted(signal.SIGTERM, 3, 10, "runs/toy"))
      SIGTERM: stopped after 3 of 10 iterations; all is saved in runs/toy
    """

    def __init__(self, signum: int, iteration: int, num_iterations: int, where: str):
        super().__init__(
            f"{signal.Signals(signum).name}: stopped after {iteration} of"
            f" {num_iterations} iterations; all is saved in {where}"
        )
        self.iteration = iteration
        self.signum = signum


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; after the first one the old handlers are back.

    So a second signal acts as if nobody collected. Other threads than the main one
    get no signals and leave the handlers alone.

    Yields:
      The numbers of the signals that have come.

    Example:
      >>> with collect_signals() as caught:
      ...     signal.raise_signal(signal.SIGTERM)
      >>> caught == [signal.SIGTERM]
      True
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handle(signum: int, _: Any) -> None:
        caught.append(signum)
        give_back()

    def give_back() -> None:
        for signum, handler in handlers.items():
            # None: a handler that was not installed from Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    signums = (signal.SIGINT, signal.SIGTERM)
    handlers = {signum: signal.getsignal(signum) for signum in signums}
    for signum in signums:
        signal.signal(signum, handle)
    try:
        yield caught
    finally:
        give_back()
