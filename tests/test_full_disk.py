"""Disks that are full or read-only, in earnest: a small one is mounted."""

import contextlib
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from l2l_jax import Learned, checkpoint, dm_init, load, runs, save

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location(
    "toy_run", ROOT / "tests" / "programs" / "toy_run.py"
)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
PAGE = 4096
LARGE = 2**20


def mount(*arguments):
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(done.stderr.strip())


class Disk:
    """A file system in memory, of any size."""

    def __init__(self, path):
        self.path = path

    def resize(self, size):
        mount("-o", f"remount,size={size}", self.path)

    @contextlib.contextmanager
    def full(self):
        """Leaves no room for one more page while the block lasts."""
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(PAGE)):
                pass
        yield
        filler.unlink()

    @contextlib.contextmanager
    def read_only(self):
        mount("-o", "remount,ro", self.path)
        yield
        mount("-o", "remount,rw", self.path)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={LARGE}", "none", path)
    except OSError as error:
        pytest.skip(f"no disk could be mounted, which takes root: {error}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The directory of an uninterrupted run of 40 iterations, and its final state."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    return directory, toy.toy_run(directory, 40)


def assert_same_run(directory, state, straight):
    expected, final = straight
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        x, y = (
            jax.random.key_data(z)
            if jax.dtypes.issubdtype(z.dtype, jax.dtypes.prng_key)
            else z
            for z in (x, y)
        )
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    log, other = (runs.read_log(d)["train_loss"] for d in (directory, expected))
    np.testing.assert_array_equal(log, other)
    names, others = (
        sorted(p.name for p in d.rglob("*") if p.parent.name != "tensorboard")
        for d in (directory, expected)
    )
    assert names == others
    for path in [*expected.glob("weights/*"), expected / "validation.csv"]:
        found = directory / path.relative_to(expected)
        assert found.read_bytes() == path.read_bytes()


# NumPy 2.0 leaves an archive open that it could not write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_at_any_moment(disk, straight):
    """On disks of 1, 2, 3 ... pages, until the run fits; given room, it goes on."""
    parts = {"checkpoints", "log.csv", "tensorboard", "weights", "validation.csv"}
    hit = set()
    for pages in itertools.count(1):
        disk.resize(pages * PAGE)
        directory = disk.path / str(pages)
        try:
            toy.toy_run(directory, 40)
        except OSError as error:
            text = str(error)
        else:
            break
        assert str(directory) in text
        hit |= {part for part in parts if f"/{part}" in text}
        before = checkpoint.iterations(directory)
        if before:
            iteration, _ = checkpoint.restore(directory, toy.initial_state())
            assert iteration == before[-1]
        disk.resize(LARGE)
        state = toy.toy_run(directory, 40, resume=(directory / "config.json").exists())
        assert_same_run(directory, state, straight)
        subprocess.run(["rm", "-r", directory], check=True)
    assert hit == parts


def test_read_only(disk, straight):
    directory = disk.path / "run"

    def stop(done, *_):
        if done == 17:
            raise KeyboardInterrupt

    with disk.read_only(), pytest.raises(OSError, match=f"Read-only .*{directory}"):
        toy.toy_run(directory, 40)
    with pytest.raises(KeyboardInterrupt):
        toy.toy_run(directory, 40, progress=stop)
    with disk.read_only(), pytest.raises(OSError, match=f"Read-only .*{directory}"):
        toy.toy_run(directory, 40, resume=True)
    assert checkpoint.iterations(directory) == (0, 10)
    assert_same_run(directory, toy.toy_run(directory, 40, resume=True), straight)


@pytest.mark.parametrize("state", ["full", "read_only"])
def test_weights(disk, state):
    """The file that was there stays whole, and nothing else stays."""
    learned = Learned("dm", dm_init(jax.random.key(0), (3,)))
    path = disk.path / "mine.npz"
    save(path, learned)
    content = path.read_bytes()
    with getattr(disk, state)(), pytest.raises(OSError, match=str(path)):
        save(path, learned._replace(training={"changed": True}))
    assert path.read_bytes() == content
    assert os.listdir(disk.path) == [path.name]
    save(path, learned._replace(training={"changed": True}))
    assert load(path).training == {"changed": True}


def test_the_binary(disk):
    """One line that names the directory, and no traceback."""
    command = [sys.executable, "-m", "experiments.meta_train", "--task=quadratic"]
    command += [f"--workdir={disk.path / 'run'}", "--hidden_sizes=3"]
    with disk.full():
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "No space left on device" in line
    assert str(disk.path / "run") in line
    assert "Traceback" not in done.stderr
