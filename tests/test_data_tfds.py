"""Data sets of TensorFlow Datasets, prepared from the official files, no network."""

import collections
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from l2l_jax.tasks.data import NUM_EXAMPLES, load_dataset, load_tfds

needs_tfds = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow_datasets"),
    reason="tensorflow-datasets is not installed",
)
needs_tensorflow = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"),
    reason="tensorflow, which prepares data sets, is not installed",
)

# Puts the official files where a download would have put them, then prepares.
PREPARE = """
import json, pathlib, shutil, sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.resource import get_dl_fname
from l2l_jax.tasks.data import load_tfds

dataset, *directories = sys.argv[1:]
official, data_dir = map(pathlib.Path, directories)
(data_dir / "downloads").mkdir(parents=True, exist_ok=True)
for url, info in tfds.builder(dataset, data_dir=data_dir).url_infos.items():
    name = url.rsplit("/", 1)[1]
    path = data_dir / "downloads" / get_dl_fname(url, info.checksum)
    shutil.copyfile(official / name, path)
    url_info = {"size": info.size, "checksum": info.checksum, "filename": name}
    content = {"urls": [url], "dataset_names": [dataset], "original_fname": name}
    path.with_name(path.name + ".INFO").write_text(
        json.dumps(content | {"url_info": url_info})
    )
assert len(load_tfds(dataset, "test", data_dir).labels) == 10_000
assert "tensorflow" in sys.modules
"""

# Reads all splits and proves that TensorFlow took no part.
READ = """
import sys
import numpy as np
from l2l_jax.tasks.data import NUM_EXAMPLES, load_dataset

dataset, data_dir, out = sys.argv[1:]
for split in NUM_EXAMPLES[dataset]:
    found = load_dataset(dataset, split, data_dir, source="tfds")
    np.savez(f"{out}/{split}.npz", **found._asdict())
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""

# No network: the proxy is a port of this machine on which nobody listens.
NO_NETWORK = """
import sys
from tensorflow_datasets.core.download import downloader
from l2l_jax.tasks.data import load_tfds

downloader.MAX_RETRIES = 0  # ten take minutes
try:
    load_tfds("mnist", "test", sys.argv[1])
except RuntimeError as error:
    print(type(error.__cause__).__name__, error)
"""

# As if TensorFlow were not installed, whether it is or not.
NO_TENSORFLOW = """
import importlib.machinery, sys

find_spec = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] == "tensorflow" else find_spec(name, *rest)
)
from l2l_jax.tasks.data import load_tfds

try:
    load_tfds("mnist", "test", sys.argv[1])
except RuntimeError as error:
    print(type(error.__cause__).__name__, error)
"""


def run(program, *arguments, **environment):
    """Output of a program in a process of its own, whose warnings are errors."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def official():
    directory = os.environ.get("L2L_DATA_DIR")
    if not directory:
        pytest.skip("L2L_DATA_DIR names no directory of the real data")
    return Path(directory)


@pytest.fixture(scope="module")
def prepared(official, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds") / "data"
    run(PREPARE, "mnist", official / "mnist", directory)
    return directory


def rows(images, labels):
    """The multiset of labelled images."""
    flat = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    return collections.Counter(row.tobytes() for row in flat.astype(np.uint8))


@needs_tfds
@needs_tensorflow
def test_prepared_mnist_is_read_without_tensorflow(official, prepared, tmp_path):
    run(READ, "mnist", prepared, tmp_path)
    total = {"tfds": collections.Counter(), "files": collections.Counter()}
    for split, count in NUM_EXAMPLES["mnist"].items():
        with np.load(tmp_path / f"{split}.npz") as found:
            images, labels = found["images"], found["labels"]
        assert (images.shape, images.dtype) == ((count, 28, 28, 1), np.uint8)
        assert (labels.shape, labels.dtype) == ((count,), np.int32)
        if split == "test":
            assert rows(images, labels) == rows(
                *load_dataset("mnist", "test", official)
            )
        else:
            total["tfds"] += rows(images, labels)
            total["files"] += rows(*load_dataset("mnist", split, official))
    assert total["tfds"] == total["files"]


@needs_tfds
@needs_tensorflow
def test_prepared_cifar10_is_read_without_tensorflow(official, tmp_path):
    # The archive as it is downloaded, gzipped; the pixels' order is in it.
    (packed,) = official.glob("cifar-10-binary.tar.*")
    with (
        tarfile.open(packed) as source,
        tarfile.open(
            tmp_path / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1
        ) as to,
    ):
        for member in source:
            to.addfile(member, source.extractfile(member) if member.isfile() else None)
    run(PREPARE, "cifar10", tmp_path, tmp_path / "data")
    run(READ, "cifar10", tmp_path / "data", tmp_path)
    for split, count in NUM_EXAMPLES["cifar10"].items():
        with np.load(tmp_path / f"{split}.npz") as found:
            images, labels = found["images"], found["labels"]
        assert (images.shape, images.dtype) == ((count, 32, 32, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((count,), np.int32)
        expected = load_dataset("cifar10", split, tmp_path)
        assert rows(images, labels) == rows(*expected)


@needs_tfds
@needs_tensorflow
def test_damaged_preparation_is_refused(prepared, tmp_path):
    (info,) = prepared.glob("mnist/*/dataset_info.json")
    content = json.loads(info.read_text())
    for split in content["splits"]:
        split["shardLengths"] = ["10"]
    folder = tmp_path / info.parent.relative_to(prepared)
    folder.mkdir(parents=True)
    for path in info.parent.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / info.name).unlink()
    (folder / info.name).write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="expected 10000 examples, found 10"):
        load_tfds("mnist", "test", tmp_path)


@needs_tfds
@needs_tensorflow
def test_without_network_the_error_says_what_to_do(tmp_path):
    out = run(NO_NETWORK, tmp_path, HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="")
    assert out.rpartition("ProxyError ")[2].startswith("TensorFlow Datasets cannot")
    for part in (
        str(tmp_path),
        "download_and_prepare()",
        "load_mnist(directory, 'test'",
    ):
        assert part in out


@needs_tfds
def test_without_tensorflow_the_error_says_what_to_do(tmp_path):
    out = run(NO_TENSORFLOW, tmp_path)
    assert out.startswith("ModuleNotFoundError TensorFlow Datasets cannot provide")
    for part in (
        "No module named 'tensorflow'",
        "pip install tensorflow-cpu",
        "load_m",
    ):
        assert part in out
    assert not list(tmp_path.glob("**/*.tmp*"))  # refused before any download


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ImportError, match=r"l2l_jax\[experiments\].*load_mnist"
    ) as info:
        load_tfds("mnist", "train")
    assert isinstance(info.value.__cause__, ImportError)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digits", "train", r"\('mnist', 'cifar10'\), got 'digits'"),
        ("cifar10", "validation", r"\('train', 'test'\), got 'validation'"),
    ],
)
def test_unknown_names_are_refused(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_tfds(name, split)


def test_importing_the_library_imports_no_data_package():
    run("""
import sys, l2l_jax.tasks.data
packages = {name.partition(".")[0] for name in sys.modules}
assert not packages & {"tensorflow_datasets", "tensorflow", "sklearn"}, packages
""")
