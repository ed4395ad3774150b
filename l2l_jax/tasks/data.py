"""Labelled images: embedded digits, MNIST and CIFAR-10 from files or from TFDS."""

import gzip
import importlib
import lzma
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.checks import check_choice

NUM_EXAMPLES: Mapping[str, Mapping[str, int]] = {
    "digits": {"train": 1_437, "test": 360},
    "mnist": {"train": 55_000, "validation": 5_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}
"""The data sets of `load_dataset`, their splits and the size of each."""

_NUM_CLASSES = 10
_MNIST_SHAPE = (28, 28)
_CIFAR10_SHAPE = (3, 32, 32)  # in the files; channels come first
_CIFAR10_FILE_RECORDS = 10_000
_DIGITS_SEED = 0
_IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_OPEN_TAR: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".tar": open,
}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError)
INSTALL = "pip install 'l2l_jax[experiments]'"


class Dataset(NamedTuple):
    """Labelled images in the memory of the host.

    Attributes:
      images: uint8 array (N, height, width, channels), from 0 to 255.
      labels: int32 array (N,), from 0 on.
    """

    images: np.ndarray
    labels: np.ndarray


def load_dataset(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    source: str = "files",
) -> Dataset:
    """Loads one split of a data set by its name.

    Args:
      name: "mnist", "cifar10", or "digits" (embedded: `data_dir` and `source` play no
        part).
      split: a key of `NUM_EXAMPLES[name]`.
      data_dir: of "files", the directory of the official files, see `load_mnist` and
        `load_cifar10`; of "tfds", that of TensorFlow Datasets, None being its default.
      source: "files" or "tfds", see `load_tfds`.

    Returns:
      All examples of the split.

    Raises:
      ValueError: the name, split or source is unknown, files are asked for without
        `data_dir`, or a file is damaged or not what it should be.
      FileNotFoundError: a file or directory is missing.
      ImportError: a package of the extra "experiments" is missing.
      RuntimeError: TensorFlow Datasets cannot provide the data.

    Example:
      >>> images, labels = load_dataset("digits", "test")
      >>> images.shape, labels.shape
      ((360, 8, 8, 1), (360,))
    """
    check_choice("name", name, tuple(NUM_EXAMPLES))
    check_choice("source", source, ("files", "tfds"))
    if name == "digits":
        return load_digits(split)
    if source == "tfds":
        return load_tfds(name, split, data_dir)
    load_files = {"mnist": load_mnist, "cifar10": load_cifar10}[name]
    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"data_dir {data_dir} is no directory")
    if data_dir is None:
        raise ValueError(
            f"data_dir must name the directory of the official files of {name}, got"
            " None"
        )
    return load_files(data_dir, split)


def load_digits(split: str) -> Dataset:
    """Loads scikit-learn's embedded handwritten digits, 8x8 pixels.

    Args:
      split: "train" (1,437 images) or "test" (360), a fixed random division.

    Returns:
      Images (N, 8, 8, 1); their values 0 to 16 are stretched to 0 to 255.

    Raises:
      ValueError: the split is unknown.
      ImportError: scikit-learn is missing.

    Example:
      >>> load_digits("train").images.shape
      (1437, 8, 8, 1)

    References:
      Alpaydin, Kaynak, Optical recognition of handwritten digits, UCI, 1998.
    """
    count = _check_split("digits", split)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"digits need scikit-learn: {INSTALL}") from error
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    # Sorting raw bits, since NumPy pins these and not `Generator.permutation`.
    bits = np.random.PCG64(_DIGITS_SEED).random_raw(len(images))
    order = np.argsort(bits, kind="stable")
    part = order[:count] if split == "train" else order[-count:]
    return Dataset(images[part], digits.target[part].astype(np.int32))


def load_mnist(directory: str | Path, split: str) -> Dataset:
    """Loads MNIST from its four official IDX files.

    Args:
      directory: holds the files, or has a subfolder "mnist" that does. Both spellings
        `train-images-idx3-ubyte` and `train-images.idx3-ubyte` will do, with ".gz" or
        without.
      split: "train", the last 55,000 of the 60,000 training images; "validation", the
        first 5,000; "test", the 10,000 test images; all in the order of the file.

    Returns:
      Images (N, 28, 28, 1).

    Raises:
      ValueError: the split is unknown, or a file is damaged or not MNIST's.
      FileNotFoundError: a file or the directory is missing.

    Example:
      >>> load_mnist("data", "train").images.shape  # doctest: +SKIP
      (55000, 28, 28, 1)

    References:
      LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document
      recognition, 1998. The division is that of Lv, Jiang, Li, `Learning Gradient
      Descent <https://arxiv.org/abs/1703.03633>`_, 2017.
    """
    count = _check_split("mnist", split)
    stem, in_file = ("t10k", count) if split == "test" else ("train", 60_000)
    labels_path = _find_mnist(Path(directory), f"{stem}-labels", 1)
    images_path = _find_mnist(Path(directory), f"{stem}-images", 3)
    labels = _labels(_read_mnist(labels_path, (in_file,)), labels_path)
    images = _read_mnist(images_path, (in_file, *_MNIST_SHAPE))
    part = slice(-count, None) if split == "train" else slice(count)
    return Dataset(images[part, ..., None].copy(), labels[part].copy())


def load_cifar10(directory: str | Path, split: str) -> Dataset:
    """Loads CIFAR-10 from the six official binary files.

    Args:
      directory: holds the files `data_batch_1.bin` ... `data_batch_5.bin` and
        `test_batch.bin`, or the subfolder `cifar-10-batches-bin` with them, or
        `cifar-10-binary.tar.gz`, `.tar.xz` or `.tar`, which is read without unpacking
        anything to the disk. The first of these that is there is taken.
      split: "train" (all 50,000 images) or "test" (10,000).

    Returns:
      Images (N, 32, 32, 3), red, green, blue.

    Raises:
      ValueError: the split is unknown, or a file is damaged or not CIFAR-10's.
      FileNotFoundError: a file or the directory is missing.

    Example:
      >>> load_cifar10("data", "test").images.shape  # doctest: +SKIP
      (10000, 32, 32, 3)

    References:
      Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    _check_split("cifar10", split)
    names = (
        ("test_batch.bin",)
        if split == "test"
        else tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    )
    parts: dict[str, Dataset] = {}
    for name, where, content in _cifar10_files(Path(directory), names):
        if name in parts:
            raise ValueError(f"{where} is there twice, expected once")
        parts[name] = _parse_cifar10(content, where)
    missing = [name for name in names if name not in parts]
    if missing:
        raise FileNotFoundError(f"CIFAR-10 in {directory} lacks {', '.join(missing)}")
    return Dataset(*map(np.concatenate, zip(*(parts[n] for n in names), strict=True)))


def load_tfds(name: str, split: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads MNIST or CIFAR-10 from TensorFlow Datasets.

    What is prepared in `data_dir` is read without TensorFlow; else it is downloaded and
    prepared there first, which takes a network and TensorFlow. Reading 55,000 images,
    each of them a PNG, takes about 12 s.

    Args:
      name: "mnist" or "cifar10".
      split: as for `load_mnist` and `load_cifar10`, but in the order of TensorFlow
        Datasets, which shuffles: "train" and "validation" of MNIST are other images
        than those of `load_mnist`.
      data_dir: directory of TensorFlow Datasets; None: its default.

    Returns:
      Images (N, height, width, channels).

    Raises:
      ValueError: the name or split is unknown.
      ImportError: tensorflow-datasets or a package that it needs is missing.
      RuntimeError: the data are not prepared and cannot be, or cannot be read; the
        cause is chained.

    Example:
      >>> load_tfds("mnist", "validation").images.shape  # doctest: +SKIP
      (5000, 28, 28, 1)
    """
    check_choice("name", name, ("mnist", "cifar10"))
    count = _check_split(name, split)
    instead = f"or use the official files with load_{name}(directory, {split!r})"
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"tensorflow-datasets cannot be imported ({error}): {INSTALL}, {instead}"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            # Without it the download would run all the same, and then fail obscurely.
            importlib.import_module("tensorflow")
            # The default format may be one that only TensorFlow reads.
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
        first = NUM_EXAMPLES[name].get("validation", 0)
        examples = builder.as_data_source(
            {
                "train": f"train[{first}:]",
                "validation": f"train[:{first}]",
                "test": "test",
            }[split]
        )
        if len(examples) != count:
            raise ValueError(f"expected {count} examples, found {len(examples)}")
        # All at once: one at a time takes 2.5 times as long.
        examples = examples.__getitems__(range(count))
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples], np.int32)
    except Exception as error:  # TFDS documents no list of what it raises
        raise RuntimeError(
            f"TensorFlow Datasets cannot provide {split!r} of {name} in"
            f" {data_dir or 'its default directory'} ({type(error).__name__}: {error})."
            f" Prepare it once, with a network and TensorFlow (pip install"
            f" tensorflow-cpu): tensorflow_datasets.builder({name!r}, data_dir=...,"
            f" file_format='array_record').download_and_prepare(); {instead}."
        ) from error
    return Dataset(images, labels)


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an array from a file in the IDX format, gzipped or not.

    Args:
      path: the file; whether it is gzipped is seen from its content.

    Returns:
      The array, of any shape, of uint8, int8, int16, int32, float32 or float64; it may
      be read-only.

    Raises:
      ValueError: the file is damaged or not in the IDX format.
      FileNotFoundError: it is missing.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "two"
      >>> path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 4]))
      10
      >>> read_idx(path)
      array([3, 4], dtype=uint8)

    References:
      LeCun, Cortes, Burges, The MNIST database of handwritten digits, "File formats".
    """
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except _DAMAGED as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_DTYPES:
        raise ValueError(
            f"{path} is not an IDX file: expected a magic number 0x0000TTDD, type TT of"
            f" {', '.join(f'{t:02x}' for t in _IDX_DTYPES)}, DD dimensions, found"
            f" 0x{content[:4].hex()}"
        )
    dtype, ndim = np.dtype(_IDX_DTYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(
            f"{path} is truncated: expected a header of {start} bytes, found"
            f" {len(content)}"
        )
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{path} is damaged: its header says {dtype.name} of shape {shape}, so"
            f" expected {expected} bytes, found {len(content)}"
        )
    array = np.ndarray(shape, dtype, content, start)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _check_split(name: str, split: str) -> int:
    check_choice(f"split of {name}", split, tuple(NUM_EXAMPLES[name]))
    return NUM_EXAMPLES[name][split]


def _labels(labels: np.ndarray, where: str | Path) -> np.ndarray:
    wrong = np.flatnonzero(labels >= _NUM_CLASSES)
    if wrong.size:
        raise ValueError(
            f"{where} must have labels from 0 to {_NUM_CLASSES - 1}, found"
            f" {labels[wrong[0]]} at index {wrong[0]}"
        )
    return labels.astype(np.int32)


def _mnist_names(stem: str, ndim: int) -> list[str]:
    return [f"{stem}{dash}idx{ndim}-ubyte{gz}" for gz in ("", ".gz") for dash in "-."]


def _find_mnist(directory: Path, stem: str, ndim: int) -> Path:
    names = _mnist_names(stem, ndim)
    any_names = [
        name
        for part in ("train", "t10k")
        for kind, n in (("images", 3), ("labels", 1))
        for name in _mnist_names(f"{part}-{kind}", n)
    ]
    # All files come from one folder, so that parts of two copies never mix.
    folders = (directory, directory / "mnist")
    folder = next(
        (f for f in folders if any((f / name).is_file() for name in any_names)),
        directory,
    )
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"MNIST is not in {directory}: expected one of {', '.join(names)} there or in"
        f" its subfolder mnist, found none in {folder}"
    )


def _read_mnist(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    array = read_idx(path)
    if array.dtype != np.uint8 or array.shape != shape:
        raise ValueError(
            f"{path} must hold uint8 of shape {shape}, found {array.dtype} of shape"
            f" {array.shape}"
        )
    return array


def _cifar10_files(
    directory: Path, names: tuple[str, ...]
) -> Iterator[tuple[str, str, bytes]]:
    """Yields name, description and content of those `names` that there are."""
    for folder in (directory, directory / "cifar-10-batches-bin"):
        paths = [folder / name for name in names if (folder / name).is_file()]
        if paths:
            yield from ((p.name, str(p), p.read_bytes()) for p in paths)
            return
    archives = [directory / f"cifar-10-binary.tar{end}" for end in (".gz", ".xz", "")]
    for archive in archives:
        if archive.is_file():
            yield from _tar_files(archive, names)
            return
    raise FileNotFoundError(
        f"CIFAR-10 is not in {directory}: expected {', '.join(names)} there or in its"
        " subfolder cifar-10-batches-bin, or one of"
        f" {', '.join(a.name for a in archives)}"
    )


def _tar_files(
    archive: Path, names: tuple[str, ...]
) -> Iterator[tuple[str, str, bytes]]:
    try:
        with (
            _OPEN_TAR[archive.suffix](archive, "rb") as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                name = PurePosixPath(member.name).name
                if name not in names or not member.isreg():
                    continue
                if (file := tar.extractfile(member)) is not None:
                    yield name, f"{member.name} in {archive}", file.read()
            # The checksum comes after the last member and is checked at the very end.
            while stream.read(2**20):
                pass
    except _DAMAGED as error:
        raise ValueError(f"{archive} is a damaged archive: {error}") from error


def _parse_cifar10(content: bytes, where: str) -> Dataset:
    record = 1 + math.prod(_CIFAR10_SHAPE)
    expected = _CIFAR10_FILE_RECORDS * record
    if len(content) != expected:
        raise ValueError(
            f"{where} must have {expected} bytes, {_CIFAR10_FILE_RECORDS} records of"
            f" {record}, found {len(content)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    images = records[:, 1:].reshape(-1, *_CIFAR10_SHAPE).transpose(0, 2, 3, 1)
    return Dataset(np.ascontiguousarray(images), _labels(records[:, 0], where))
