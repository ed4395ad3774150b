"""Runs that can be killed at any moment and resumed, and what they leave on disk.

A run advances a state, iteration by iteration, by a deterministic function
`step(state, iteration) -> (state, metrics)`. Its directory::

    config.json      all that is needed to repeat it: the caller's configuration,
                     versions, device, and what changed when it was resumed
    log.csv          one row per iteration: iteration, the metrics, seconds
    tensorboard/     the same numbers, and iterations a second
    checkpoints/     see `l2l_jax.checkpoint`
    weights/         00001000.npz and so on, written by the caller's `export`
    validation.csv   one row per weights file, if the caller scores them

log.csv is the record and the checkpoint is the clock: it begins with checkpoint 0.
Before one is saved, the log (and the weights file, if one is due) is on the disk; when
a run is resumed, all that lies past its newest checkpoint is taken back and computed
again. All else (the event file of TensorBoard, totals, the selection) derives from
log.csv.

`run` needs the extra `experiments` of the package (Orbax, tensorboardX, tqdm for the
progress bar) and a POSIX system.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax import checkpoint, processes
from l2l_jax.files import naming, sync, write_text
from l2l_jax.interruption import Interrupted, collect_signals
from l2l_jax.progress import progress_bar
from l2l_jax.records import Log, lock, read_log
from l2l_jax.run_config import changes_of, describe, read_config
from l2l_jax.selection import (
    moving_average,
    read_scores,
    read_validation,
    record_validation,
    select,
    validation_score,
    weights_files,
    write_scores,
)

_NAMES = (
    "config.json",
    "log.csv",
    "tensorboard",
    "checkpoints",
    "weights",
    "validation.csv",
)

__all__ = [
    "Interrupted",
    "moving_average",
    "progress_bar",
    "read_config",
    "read_log",
    "read_validation",
    "record_validation",
    "run",
    "run_together",
    "select",
    "validation_score",
]

State = Any
Metrics = Mapping[str, Any]
_Turns = Generator[tuple[State, int], tuple[State, Metrics], State]


def run(
    directory: str | Path,
    config: Mapping[str, Any],
    step: Callable[[State, int], tuple[State, Metrics]],
    state: State,
    num_iterations: int,
    *,
    resume: bool = False,
    may_change: Collection[str] = (),
    how_to_resume: str = "call run again with resume=True",
    export: Callable[[State, Path, int], None] | None = None,
    on_export: Callable[[State, Path, int], None] | None = None,
    export_every: int = 1000,
    checkpoint_every: int = 1000,
    checkpoint_seconds: float = 120.0,
    skipped: str | None = "skipped",
    max_bad: int = 20,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> State:
    """Runs or resumes `num_iterations` iterations of `step`.

    A run that is killed at any moment and resumed, on the same kind of machine and
    with the same versions, ends in the very bits of an uninterrupted one, and its
    log holds each iteration once. On SIGINT and SIGTERM it finishes the iteration in
    hand, saves and raises `Interrupted`; a second signal acts as if `run` were not
    there. (Signals reach the main thread only; elsewhere `run` leaves them alone.)

    An iteration is bad if its metric `skipped` is not 0. While bad iterations last,
    no checkpoint is saved unless the run ends or is interrupted, and then the one
    from before the first of them is spared: a run that fails resumes from there.

    In several processes (`jax.distributed`) each calls this alike, with the same state.
    Process 0 alone touches `directory` and calls `export`, `on_export` and `progress`;
    the others start from its state and compute. A signal to one stops all. If one dies,
    JAX's runtime ends the others.

    A TensorBoard that is open while a run is resumed must be restarted.

    Args:
      directory: the directory of the run, made if need be.
      config: a JSON object that describes the run completely.
      step: maps the state and the number of the iteration, 0, 1, 2, ..., to the next
        state, of the same structure, shapes and dtypes, and to the metrics: scalars
        (arrays or Python numbers) of the same names in every iteration. It must
        be deterministic, and may donate the state.
      state: the initial state, a pytree of arrays. Its values are not used if the
        run is resumed from a checkpoint.
      num_iterations: how many iterations the whole run has, >= 1. It may grow when
        the run is resumed.
      resume: whether to go on with the run in `directory`; else there must be none.
      may_change: keys of `config` that may differ when the run is resumed.
      how_to_resume: ends the messages of `Interrupted` and of the errors after which
        one may resume; for a program its command line.
      export: called as `export(state, path, iteration)`, must write the weights to
        the (temporary) path, which ends in .npz. `iteration` counts finished ones.
      on_export: called likewise once the file has its final name, as to score it.
      export_every: iterations between two exports, >= 1; the last one is exported
        too.
      checkpoint_every: iterations between two checkpoints, >= 1.
      checkpoint_seconds: seconds after which one is saved in any case, > 0.
      skipped: the metric that counts non-finite gradients that were not applied; the
        log gets its running total as `total_` + its name. None: there is none.
      max_bad: the run stops after so many bad iterations in a row, >= 1.
      progress: called as `progress(finished iterations, num_iterations, metrics)`
        after each iteration, as by `progress_bar`.

    Returns:
      The final state. A run that is finished already returns it at once.

    Raises:
      FileExistsError: without `resume`, if the directory holds a run.
      FileNotFoundError: with `resume`, if it does not, or its checkpoints are gone.
      ValueError: if an argument is out of its range, `config` is not JSON or not
        that of the run to resume, the metrics change their names or are not scalars,
        or a file of the run is damaged.
      TypeError: if `step` changes the structure, a shape or a dtype of the state.
      RuntimeError: after `max_bad` bad iterations in a row, or if another process
        has the run in hand.
      Interrupted: after SIGINT or SIGTERM.
      OSError: if something cannot be written. The newest checkpoint is then intact.

    Example:
      >>> import tempfile
      >>> def step(w, iteration):
      ...     return 0.5 * w, {"loss": w**2, "skipped": 0}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     w = run(directory, {"factor": 0.5}, step, jnp.float32(1.0), 3)
      ...     log = read_log(directory)
      >>> float(w), log["iteration"].tolist(), log["loss"].tolist()
      (0.125, [0, 1, 2], [1.0, 0.25, 0.0625])
    """
    options: dict[str, Any] = {
        "resume": resume,
        "may_change": may_change,
        "how_to_resume": how_to_resume,
        "export": export,
        "on_export": on_export,
        "export_every": export_every,
        "checkpoint_every": checkpoint_every,
        "checkpoint_seconds": checkpoint_seconds,
        "skipped": skipped,
        "max_bad": max_bad,
        "progress": progress,
    }
    turns = _turns(
        directory, config, state, num_iterations, collect_signals(), **options
    )
    with contextlib.closing(turns):
        turn, result = _send(turns, None)
        while turn is not None:
            turn, result = _send(turns, step(*turn))
    return result


def run_together(
    of_each: Sequence[Mapping[str, Any]],
    step: Callable[[list[State], int], tuple[Sequence[State], Sequence[Metrics]]],
    num_iterations: int,
    **options: Any,
) -> list[State]:
    """Several runs whose iterations are one call: meta-seeds in one vmapped program.

    Each has its own directory, and keeps it as `run` would; each can be resumed by
    itself. Runs that are behind, as after a kill, catch up first. A signal stops all,
    each saved, and the message names one of them; an error in one ends all, and each
    goes on from its newest checkpoint. The log's seconds count what is done for the
    others, too.

    Args:
      of_each: what of the arguments of `run` is a run's own, by name: "directory",
        "config", "state", and any of the options.
      step: maps the states of all runs, in that order, and the number of the iteration
        to all next states and all metrics. Of runs that are not at that iteration the
        results are not used. It must not donate the states.
      num_iterations: as of `run`, the same for all.
      **options: other options of `run`, for all alike.

    Returns:
      The final states.

    Raises:
      ValueError: there is more than one process, or as `run`.
      FileExistsError, FileNotFoundError, TypeError, RuntimeError, Interrupted, OSError:
        as `run`.

    Example:
      >>> import tempfile
      >>> def step(states, iteration):
      ...     return [0.5 * w for w in states], [{"loss": w**2} for w in states]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     of_each = [
      ...         {"directory": f"{folder}/{i}", "config": {}, "state": jnp.float32(i)}
      ...         for i in (1, 2)
      ...     ]
      ...     states = run_together(of_each, step, 3, skipped=None)
      ...     log = read_log(f"{folder}/2")
      >>> [float(w) for w in states], log["loss"].tolist()
      ([0.125, 0.25], [4.0, 1.0, 0.25])
    """
    if jax.process_count() > 1:
        raise ValueError("runs together are of one process, each run may be of several")
    defaults = {**(run.__kwdefaults__ or {}), **options}
    with contextlib.ExitStack() as stack:
        caught = contextlib.nullcontext(stack.enter_context(collect_signals()))
        all_turns: list[_Turns] = []
        states: list[State] = []
        at: dict[int, int] = {}  # iterations of those that go on
        interrupted = None
        for one in of_each:
            arguments: dict[str, Any] = {
                **defaults,
                **one,
                "num_iterations": num_iterations,
            }
            turns = _turns(**arguments, signals=caught)
            stack.enter_context(contextlib.closing(turns))
            turn, state = _send(turns, None)
            if turn is not None:
                state, at[len(states)] = turn
            all_turns.append(turns)
            states.append(state)
        while at:
            iteration = min(at.values())
            after, metrics = step(states, iteration)
            for k in [k for k in at if at[k] == iteration]:
                try:
                    turn, states[k] = _send(all_turns[k], (after[k], metrics[k]))
                except Interrupted as error:  # raised when the others are saved, too
                    interrupted, turn = error, None
                del at[k]
                if turn is not None:
                    states[k], at[k] = turn
        if interrupted is not None:
            raise interrupted
    return states


def _send(turns: _Turns, results: Any) -> tuple[Any, State | None]:
    """The next turn of `_turns` and None; or None and the final state."""
    try:
        return turns.send(results), None
    except StopIteration as end:
        return None, end.value


def _turns(
    directory: str | Path,
    config: Mapping[str, Any],
    state: State,
    num_iterations: int,
    signals: contextlib.AbstractContextManager[list[int]],
    *,
    resume: bool,
    may_change: Collection[str],
    how_to_resume: str,
    export: Callable[[State, Path, int], None] | None,
    on_export: Callable[[State, Path, int], None] | None,
    export_every: int,
    checkpoint_every: int,
    checkpoint_seconds: float,
    skipped: str | None,
    max_bad: int,
    progress: Callable[[int, int, Mapping[str, float]], None] | None,
) -> _Turns:
    """A run that has its steps done: yields (state, iteration), is sent their results.

    So one loop can drive several. Returns the final state; arguments as of `run`.
    """
    for name, value in (
        ("num_iterations", num_iterations),
        ("export_every", export_every),
        ("checkpoint_every", checkpoint_every),
        ("max_bad", max_bad),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be >= 1")
    if not checkpoint_seconds > 0:
        raise ValueError(f"checkpoint_seconds is {checkpoint_seconds}, must be > 0")

    directory = Path(directory)
    state = jax.tree.map(_strongly_typed, state)
    described = describe(config, num_iterations)
    text = json.dumps([described["config"], num_iterations])
    processes.check_same("the configuration", np.frombuffer(text.encode(), np.uint8))
    if not processes.is_first():
        return (yield from _follow(state, num_iterations, signals))
    changes = {}
    if resume:
        old = read_config(directory)
        described |= {"started": old["started"], "resumed": old["resumed"]}
        changes = changes_of(directory, old, described, may_change)
    directory.mkdir(parents=True, exist_ok=True)

    with lock(directory):
        saved = checkpoint.iterations(directory)
        if resume and saved:
            start, state = checkpoint.restore(directory, state)
            if start >= num_iterations:
                return checkpoint.from_first(start, state)[1]
            _take_back(directory, start)
        elif resume and (directory / "log.csv").exists():
            raise FileNotFoundError(
                f"{directory / 'checkpoints'} holds no checkpoint, though the run has "
                "begun; resuming it would delete what it has done"
            )
        elif resume:
            start = 0  # killed at the very beginning
        elif found := [name for name in _NAMES if (directory / name).exists()]:
            raise FileExistsError(
                f"{directory} holds a run ({', '.join(found)}), which is never "
                f"overwritten. Take another directory or resume it: {how_to_resume}"
            )
        else:
            start = 0
        if changes:
            described["resumed"].append({"iteration": start, "changed": changes})
        if changes or not resume:
            write_text(
                directory / "config.json", json.dumps(described, indent=2) + "\n"
            )
        if not saved:
            checkpoint.save(directory, 0, state)
        checkpoint.from_first(start, state)

        types = _types(state)
        log = Log(directory, start, described["started"], skipped)
        with log, signals as caught:
            due, saved_at = False, time.monotonic()
            for iteration in range(start, num_iterations):
                began = time.perf_counter()
                state, metrics = yield state, iteration
                metrics = _numbers(metrics)  # waits for the device
                log.append(iteration, metrics, time.perf_counter() - began)
                if iteration == start:
                    _check_types(types, _types(state))
                done = iteration + 1
                if progress is not None:
                    progress(done, num_iterations, metrics)
                first_bad = done - log.bad
                if log.bad >= max_bad:
                    good = _newest_checkpoint(directory, first_bad)
                    raise RuntimeError(
                        f"stopped after iteration {iteration}: gradients that were not "
                        f"finite, and not applied, in the {log.bad} iterations from "
                        f"{first_bad} on ({skipped} in {log.path}). Last good "
                        f"checkpoint: {directory / f'checkpoints/{good}'} (move newer "
                        f"ones away to resume from it: {how_to_resume})"
                    )

                over = done == num_iterations
                if export is not None and (over or done % export_every == 0):
                    _export(directory, done, processes.here(state), export, on_export)
                signum = processes.largest(caught[0] if caught else 0)
                due = (
                    due
                    or done % checkpoint_every == 0
                    or time.monotonic() - saved_at >= checkpoint_seconds
                )
                if over or signum or (due and not log.bad):
                    log.sync()
                    good = _newest_checkpoint(directory, first_bad)
                    spare = () if good is None or not log.bad else (good,)
                    checkpoint.save(directory, done, state, keep=spare)
                    due, saved_at = False, time.monotonic()
                if signum:
                    processes.wait()
                    where = f"{directory}. To resume: {how_to_resume}"
                    raise Interrupted(signum, done, num_iterations, where)
    processes.wait()
    return state


def _follow(
    state: State,
    num_iterations: int,
    signals: contextlib.AbstractContextManager[list[int]],
) -> _Turns:
    """What all processes do but the first, which keeps the run: they compute."""
    start, state = checkpoint.from_first(0, state)
    with signals as caught:
        for iteration in range(start, num_iterations):
            state, _ = yield state, iteration
            if signum := processes.largest(caught[0] if caught else 0):
                processes.wait()
                done = iteration + 1
                where = "the directory of process 0"
                raise Interrupted(signum, done, num_iterations, where)
    if start < num_iterations:
        processes.wait()  # until it has saved
    return state


# The state and the metrics.


def _strongly_typed(leaf: Any) -> jax.Array:
    """Makes a jax array without the weak type, which a checkpoint cannot keep."""
    array = jnp.asarray(leaf)
    weak = jax.typeof(array).weak_type
    return jax.lax.convert_element_type(array, array.dtype) if weak else array


def _types(state: State) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    types = {jax.tree_util.keystr(path): str(jax.typeof(leaf)) for path, leaf in leaves}
    return {"structure": str(jax.tree.structure(state))} | types


def _check_types(before: dict[str, str], after: dict[str, str]) -> None:
    wrong = [
        f"{name}: was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]
    if wrong:
        raise TypeError(
            "step must keep the structure, shapes and dtypes of the state (~ marks a "
            f"weak type): {'; '.join(wrong)}"
        )


def _numbers(metrics: Metrics) -> dict[str, int | float]:
    numbers = {}
    for name, value in jax.device_get(dict(metrics)).items():
        array = np.asarray(value)
        number = array.item() if array.shape == () else None
        if not isinstance(number, int | float):
            raise ValueError(f"metric {name} is {value!r}, must be a real scalar")
        numbers[name] = int(number) if isinstance(number, bool) else number
    return numbers


def _export(
    directory: Path,
    iteration: int,
    state: State,
    export: Callable[[State, Path, int], None],
    on_export: Callable[[State, Path, int], None] | None,
) -> None:
    path = directory / "weights" / f"{iteration:08d}.npz"
    temporary = path.with_suffix(".tmp.npz")
    path.parent.mkdir(exist_ok=True)
    with naming(temporary):
        export(state, temporary, iteration)
    sync(temporary)
    temporary.replace(path)
    if on_export is not None:
        on_export(state, path, iteration)


def _newest_checkpoint(directory: Path, until: int) -> int | None:
    return max(
        (i for i in checkpoint.iterations(directory) if i <= until), default=None
    )


def _take_back(directory: Path, start: int) -> None:
    """Removes what a killed run left beyond the checkpoint; `Log` sees to the log."""
    for path in [*directory.glob("*.tmp"), *directory.glob("weights/*.tmp*")]:
        path.unlink()
    for iteration, path in weights_files(directory).items():
        if iteration > start:
            path.unlink()
    if scores := read_scores(directory):
        write_scores(directory, {i: scores[i] for i in scores if i <= start})
