"""How far a run is, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def progress_bar(
    metric: str = "train_loss", **options: Any
) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """Gives a progress bar (tqdm) for the argument `progress` of `run`.

    It shows the iteration, the newest value of a metric and the time left.

    Args:
      metric: its name.
      **options: for `tqdm.tqdm`.

    Yields:
      The function to hand to `run`; the bar is closed at the end of the block.

    Example:
      >>> import io
      >>> text = io.StringIO()
      >>> with progress_bar("loss", file=text) as progress:
      ...     progress(1, 1, {"loss": 0.25})
      >>> "1/1" in text.getvalue(), "loss=0.25" in text.getvalue()
      (True, True)
    """
    from tqdm import tqdm

    bar = None

    def progress(
        iteration: int, num_iterations: int, metrics: Mapping[str, float]
    ) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=num_iterations, initial=iteration - 1, **options)
        bar.set_postfix({metric: metrics[metric]}, refresh=False)
        bar.update(iteration - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()
