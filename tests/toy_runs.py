"""A small run that can be killed at will, and all that it leaves to compare."""

import importlib.util
import json
import os
import struct
from pathlib import Path

import jax
import numpy as np
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from l2l_jax import checkpoint, runs

PROGRAM = Path(__file__).parent / "programs" / "toy_run.py"
spec = importlib.util.spec_from_file_location("toy_run", PROGRAM)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)


class CrashError(Exception):
    """Stands for a kill: the process does nothing more."""


def crash_after(iteration):
    def progress(done, *_):
        if done == iteration:
            raise CrashError

    return progress


def raise_signals(iteration, *signums):
    def progress(done, *_):
        if done == iteration:
            for signum in signums:
                os.kill(os.getpid(), signum)

    return progress


def read_events(directory):
    """The scalars of the one event file, {iteration: {tag: value}}, checked."""
    (path,) = (directory / "tensorboard").iterdir()
    data, scalars = path.read_bytes(), {}
    while data:
        (length,), (crc,) = struct.unpack("Q", data[:8]), struct.unpack("I", data[8:12])
        assert crc == masked_crc32c(data[:8])
        body, data = data[12 : 12 + length], data[16 + length :]
        event = event_pb2.Event.FromString(body)
        if event.HasField("summary"):
            assert event.step not in scalars
            scalars[event.step] = {v.tag: v.simple_value for v in event.summary.value}
    return scalars


def contents(directory):
    """All that a run leaves on the disk, but for the times that it took."""
    log = runs.read_log(directory)
    events = read_events(directory)
    for iteration, seconds in enumerate(log.pop("seconds")):
        assert events[iteration].pop("seconds") == np.float32(seconds)
        speed = events[iteration].pop("iterations_per_second")
        assert speed == np.float32(1 / seconds)
    config = json.loads((directory / "config.json").read_text())
    files = [*directory.glob("weights/*"), directory / "validation.csv"]
    return {
        "log": {name: column.tolist() for name, column in log.items()},
        "events": events,
        "files": {path.name: path.read_bytes() for path in files},
        "checkpoint": checkpoint.iterations(directory)[-1],
        "config": (config["config"], config["num_iterations"], config["environment"]),
        "names": sorted(path.name for path in directory.iterdir()),
    }


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
