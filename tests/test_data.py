"""Loading of digits, MNIST and CIFAR-10, and the refusal of bad files."""

import collections
import gzip
import io
import lzma
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from l2l_jax.tasks.data import (
    NUM_EXAMPLES,
    load_cifar10,
    load_dataset,
    load_digits,
    load_mnist,
    read_idx,
)

IDX_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def idx(array):
    """The content of an IDX file."""
    code = IDX_CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + np.array(array, array.dtype.newbyteorder(">")).tobytes()


def zipped(content):
    return gzip.compress(content, 1, mtime=0)


def numbered_images(count, shape):
    """Images that are black but for their index, in the first pixels."""
    images = np.zeros((count, *shape), np.uint8)
    flat = images.reshape(count, -1)
    flat[:, 0], flat[:, 1] = np.divmod(np.arange(count), 256)
    return images


def cifar10_content(batch):
    """A file of 10,000 records, the image i of which holds i, channel by channel."""
    records = np.zeros((10_000, 3073), np.uint8)
    number = np.arange(10_000)
    records[:, 0] = (number + batch) % 10
    records[:, 1 + 0 * 1024 + 32 * 1 + 2] = number // 256  # red, row 1, column 2
    records[:, 1 + 1 * 1024 + 32 * 31 + 0] = number % 256  # green, last row
    records[:, 1 + 2 * 1024 + 32 * 0 + 31] = 100 + batch  # blue, last column
    return records.tobytes()


def tar(files):
    """The content of a tar archive of (name, content) pairs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                member.size = len(content)
            archive.addfile(member, None if content is None else io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="module")
def mnist_files():
    """The four files of a synthetic MNIST of full size, by name."""
    files = {}
    for stem, count in (("train", 60_000), ("t10k", 10_000)):
        images = numbered_images(count, (28, 28))
        labels = (np.arange(count) * 7 % 10).astype(np.uint8)
        files[f"{stem}-images-idx3-ubyte.gz"] = zipped(idx(images))
        files[f"{stem}-labels-idx1-ubyte.gz"] = zipped(idx(labels))
    return files


@pytest.fixture(scope="module")
def cifar_batch():
    return cifar10_content(6)


@pytest.fixture(scope="module")
def cifar_tar(cifar_batch):
    return tar([("batches.meta.txt", b"airplane\n"), ("test_batch.bin", cifar_batch)])


def rows(images, labels):
    """The multiset of labelled images."""
    flat = images.reshape(len(images), -1).astype(int).tolist()
    pairs = zip(labels.tolist(), map(tuple, flat), strict=True)
    return collections.Counter(pairs)


def write(directory, files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


# ---- IDX


@pytest.mark.parametrize("dtype", list(IDX_CODES))
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("pack", [bytes, zipped])
def test_read_idx_returns_what_was_written(tmp_path, dtype, shape, pack):
    array = 100 + np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    (tmp_path / "file").write_bytes(pack(idx(array)))
    found = read_idx(tmp_path / "file")
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: .* found 0x$"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\0\0\x07\1\0\0\0\0", "expected a magic number 0x0000TTDD.*found 0x00000701"),
        (b"PK\x03\x04....", "not an IDX file.*found 0x504b0304"),
        (b"\0\0\x08\2\0\0\0\1", "expected a header of 12 bytes, found 8"),
        (b"\0\0\x08\1\0\0\0\3..", r"shape \(3,\), so expected 11 bytes, found 10"),
        (b"\0\0\x08\1\0\0\0\1..", "expected 9 bytes, found 10"),
        (b"\0\0\x0c\1\0\0\0\1..", "says int32 .*expected 12 bytes, found 10"),
        (b"\0\0\x08\3" + b"\xff" * 12, "so expected 7922816"),
        (zipped(b"\0\0\x08\1\0\0\0\0")[:-3], "damaged gzip"),
        (zipped(b"\0\0\x08\1\0\0\0\0") + b"more", "damaged gzip"),
    ],
)
def test_read_idx_refuses_bad_content(tmp_path, content, message):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"some-file .*{message}"):
        read_idx(path)


# ---- MNIST


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_mnist_splits(tmp_path, mnist_files, split):
    images, labels = load_mnist(write(tmp_path, mnist_files), split)
    first, last = {
        "train": (5_000, 60_000),
        "validation": (0, 5_000),
        "test": (0, 10_000),
    }[split]
    number = np.arange(first, last)
    assert (images.shape, images.dtype) == ((last - first, 28, 28, 1), np.uint8)
    assert labels.dtype == np.int32
    found = images[:, 0, :2, 0].astype(int) @ [256, 1]
    np.testing.assert_array_equal(found, number)
    np.testing.assert_array_equal(labels, number * 7 % 10)
    assert NUM_EXAMPLES["mnist"][split] == last - first
    assert images[:, 1:].max() == 0


@pytest.mark.parametrize("folder", ["", "mnist"])
@pytest.mark.parametrize("dash", "-.")
@pytest.mark.parametrize("pack", [True, False])
def test_mnist_is_found(tmp_path, mnist_files, folder, dash, pack):
    files = {
        name.replace("-idx", f"{dash}idx")[: None if pack else -3]: (
            content if pack else gzip.decompress(content)
        )
        for name, content in mnist_files.items()
        if name.startswith("t10k")
    }
    write(tmp_path / folder, files)
    assert load_mnist(str(tmp_path), "test").labels[3] == 1


def test_mnist_files_of_two_folders_are_never_mixed(tmp_path, mnist_files):
    write(tmp_path, {TEST_LABELS: mnist_files[TEST_LABELS]})
    write(tmp_path / "mnist", mnist_files)
    with pytest.raises(FileNotFoundError, match=f"{TEST_IMAGES}.*none in {tmp_path}$"):
        load_mnist(tmp_path, "test")


def _middle_flipped(content):
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 0x55]) + content[half + 1 :]


def _labels(change, count=10_000):
    labels = np.zeros(count, np.uint8)
    labels[change] = 10
    return zipped(idx(labels))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TEST_IMAGES, lambda c: c[:-10], "damaged gzip"),
        (TEST_IMAGES, lambda c: c[:1000], "damaged gzip"),
        (TEST_IMAGES, _middle_flipped, "damaged gzip"),
        (TEST_LABELS, lambda c: c[:-10], "damaged gzip"),
        (TEST_IMAGES, lambda c: b"<html>404</html>", "found 0x3c68746d"),
        (
            TEST_IMAGES,
            lambda c: gzip.decompress(c)[:-1],
            "7840016 bytes, found 7840015",
        ),
        (
            TEST_IMAGES,
            lambda c: zipped(idx(np.zeros((10_000, 27, 28), np.uint8))),
            r"\(10000, 28, 28\), found uint8 of shape \(10000, 27, 28\)",
        ),
        (
            TEST_IMAGES,
            lambda c: zipped(idx(np.zeros((10_000, 28, 28), np.int8))),
            "must hold uint8 .*found int8",
        ),
        (TEST_IMAGES, lambda c: _labels([]), r"found uint8 of shape \(10000,\)"),
        (
            TEST_LABELS,
            lambda c: _labels([], 9_999),
            r"\(10000,\), found uint8 of shape \(9999,\)",
        ),
        (TEST_LABELS, lambda c: _labels(17), "from 0 to 9, found 10 at index 17"),
    ],
)
def test_damaged_mnist_is_refused(tmp_path, mnist_files, name, change, message):
    files = {n: mnist_files[n] for n in (TEST_IMAGES, TEST_LABELS)}
    write(tmp_path, files | {name: change(files[name])})
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        load_mnist(tmp_path, "test")


@pytest.mark.parametrize("lacking", [TEST_IMAGES, TEST_LABELS])
def test_lacking_mnist_file_is_named(tmp_path, mnist_files, lacking):
    write(tmp_path / "mnist", {n: c for n, c in mnist_files.items() if n != lacking})
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: expected .*{lacking}"):
        load_mnist(tmp_path, "test")
    assert load_mnist(tmp_path, "validation").labels.shape == (5_000,)


# ---- CIFAR-10


@pytest.mark.parametrize(
    "place",
    ["", "cifar-10-batches-bin", ".tar", ".tar.gz", ".tar.xz"],
)
def test_cifar10_is_found_and_laid_out(tmp_path, cifar_batch, cifar_tar, place):
    if place.startswith("."):
        pack = {".gz": zipped, ".xz": lambda c: lzma.compress(c, preset=0)}
        content = pack.get(Path(place).suffix, bytes)(cifar_tar)
        write(tmp_path, {f"cifar-10-binary{place}": content})
    else:
        write(tmp_path / place, {"test_batch.bin": cifar_batch})
    before = sorted(tmp_path.rglob("*"))
    images, labels = load_cifar10(tmp_path, "test")
    expected = np.zeros((10_000, 32, 32, 3), np.uint8)
    expected[:, 1, 2, 0], expected[:, 31, 0, 1] = np.divmod(np.arange(10_000), 256)
    expected[:, 0, 31, 2] = 106
    np.testing.assert_array_equal(images, expected, strict=True)
    np.testing.assert_array_equal(
        labels, ((np.arange(10_000) + 6) % 10).astype(np.int32), strict=True
    )
    assert images.flags.c_contiguous
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_cifar10_training_files_come_in_their_order(tmp_path):
    files = [(f"data_batch_{i}.bin", cifar10_content(i)) for i in (3, 1, 5, 4, 2)]
    write(tmp_path, {"cifar-10-binary.tar.gz": zipped(tar(files))})
    images, labels = load_cifar10(tmp_path, "train")
    assert images.shape == (50_000, 32, 32, 3)
    np.testing.assert_array_equal(
        images[:, 0, 31, 2], np.repeat(np.arange(101, 106), 10_000)
    )
    np.testing.assert_array_equal(labels[::10_000], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "must have 30730000 bytes, .*, found 30729999"),
        (lambda c: c + c[:3073], "found 30733073"),
        (lambda c: c[: 3073 * 5] + b"\xff" + c[3073 * 5 + 1 :], "found 255 at index 5"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_cifar10_is_refused(tmp_path, cifar_batch, change, message, packed):
    content = change(cifar_batch)
    if packed:
        files = {"cifar-10-binary.tar": tar([("test_batch.bin", content)])}
    else:
        files = {"test_batch.bin": content}
    place = "test_batch.bin in .*tar" if packed else "test_batch.bin"
    with pytest.raises(ValueError, match=f"{place} .*{message}"):
        load_cifar10(write(tmp_path, files), "test")


@pytest.mark.parametrize(
    ("name", "pack", "change"),
    [
        (".tar.gz", zipped, lambda c: c[:-9]),
        (".tar.gz", zipped, lambda c: c[: len(c) // 2]),
        (".tar.gz", zipped, _middle_flipped),
        # A wrong checksum at the end: the content is read in full before that.
        (".tar.gz", zipped, lambda c: c[:-8] + bytes(8)),
        (".tar.gz", zipped, lambda c: b"no archive"),
        (".tar.xz", lambda c: lzma.compress(c, preset=0), lambda c: c[:-30]),
        (".tar.xz", lambda c: lzma.compress(c, preset=0), _middle_flipped),
        (".tar", bytes, lambda c: c[:20_000_000]),
        (".tar", bytes, lambda c: b"no archive"),
    ],
)
def test_damaged_archive_is_refused(tmp_path, cifar_tar, name, pack, change):
    write(tmp_path, {f"cifar-10-binary{name}": change(pack(cifar_tar))})
    with pytest.raises(ValueError, match=f"cifar-10-binary{name} is a damaged archive"):
        load_cifar10(tmp_path, "test")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([("test_batch.bin", None)], FileNotFoundError, "lacks test_batch.bin"),
        ([("batches.meta.txt", b"")], FileNotFoundError, "lacks test_batch.bin"),
    ],
)
def test_only_regular_members_count(tmp_path, files, error, message):
    write(tmp_path, {"cifar-10-binary.tar": tar(files)})
    with pytest.raises(error, match=message):
        load_cifar10(tmp_path, "test")


def test_a_file_twice_in_an_archive_is_refused(tmp_path, cifar_batch):
    content = tar([("test_batch.bin", cifar_batch)] * 2)
    write(tmp_path, {"cifar-10-binary.tar": content})
    with pytest.raises(ValueError, match=r"test_batch.bin in .* twice"):
        load_cifar10(tmp_path, "test")


def test_lacking_cifar10_files_are_named(tmp_path, cifar_batch):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*cifar-10-binary.tar.xz"):
        load_cifar10(tmp_path, "train")
    names = [f"data_batch_{i}.bin" for i in (1, 2, 4)]
    write(tmp_path, dict.fromkeys(names, cifar_batch))
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin, data_batch_5.bin"):
        load_cifar10(tmp_path, "train")


# ---- digits and the front door


def test_digits_are_divided_once_and_for_all():
    datasets = pytest.importorskip("sklearn.datasets")
    train, test = load_digits("train"), load_digits("test")
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    original = datasets.load_digits()
    bright = np.round(original.images * 255 / 16)
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert rows(images, labels) == rows(bright, original.target)
    assert train.labels[:10].tolist() == [0, 6, 3, 8, 1, 8, 4, 1, 5, 8]
    assert np.bincount(test.labels).min() > 20


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'l2l_jax\[experiments\]'"):
        load_digits("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnst", "train"), r"name must be one of .*'mnist'.*got 'mnst'"),
        (("mnist", "train", ".", "web"), r"source must be .*'tfds'\), got 'web'"),
        (("mnist", "train"), "data_dir must name the directory .* mnist"),
        (("cifar10", "test"), "data_dir must name the directory .* cifar10"),
        (("mnist", "dev", "."), r"\('train', 'validation', 'test'\), got 'dev'"),
        (("cifar10", "validation", "."), r"cifar10 .*\('train', 'test'\), got 'val"),
        (("cifar10", "validation", None, "tfds"), r"\('train', 'test'\), got 'val"),
        (("digits", "validation"), r"digits .*\('train', 'test'\), got 'validation'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(*arguments)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_directory_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'nowhere'}"):
        load_dataset(name, "test", tmp_path / "nowhere")


# ---- the real files


@pytest.fixture(scope="module")
def data_dir():
    directory = os.environ.get("L2L_DATA_DIR")
    if not directory:
        pytest.skip("L2L_DATA_DIR names no directory of the real data")
    return directory


def test_real_mnist(data_dir):
    splits = {s: load_dataset("mnist", s, data_dir) for s in NUM_EXAMPLES["mnist"]}
    assert splits["validation"].labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert splits["test"].labels[:5].tolist() == [7, 2, 1, 0, 4]
    labels = np.concatenate([splits["validation"].labels, splits["train"].labels])
    assert np.bincount(labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(splits["test"].labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    images = np.concatenate([splits["validation"].images, splits["train"].images])
    assert images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert images.std() / 255 == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.soak
def test_real_cifar10(data_dir):
    # One split only: unpacking the tar.xz takes about 17 s, whatever is asked of it.
    images, labels = load_dataset("cifar10", "train", data_dir)
    assert np.bincount(labels).tolist() == [5_000] * 10
    mean = images.mean((0, 1, 2)) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
