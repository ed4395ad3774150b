"""Images of one's own, from a directory."""

from pathlib import Path

import numpy as np

from l2l_jax.checks import check_choice, check_sizes
from l2l_jax.tasks.data import INSTALL, Dataset

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def load_images(
    directory: str | Path,
    *,
    size: tuple[int, int] | None = None,
    mode: str = "RGB",
) -> Dataset:
    """Loads labelled images from a directory with a folder for each class.

    ::

        directory/cat/1.png, directory/cat/2.png, …, directory/dog/1.png, …

    Args:
      directory: its folders, sorted by name, are the classes 0, 1, 2, …, empty ones
        too, so that training and test images with the same folders have the same
        labels; hidden ones are none. Files in them whose names end as images' do are
        taken, sorted by name, others left alone.
      size: (height, width) to which images are resized; None: they must have one size.
      mode: "RGB" or "L", one channel of grey, to which they are converted.

    Returns:
      All images, in memory, for `classification_task`.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: no folder has images, a file cannot be read or has more than 8 bits a
        channel, or sizes differ; the message names the file.
      ImportError: Pillow, of the extra "experiments", is missing.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     for name, shade in (("black", 0), ("white", 255)):
      ...         Path(directory, name).mkdir()
      ...         Image.new("L", (8, 6), shade).save(f"{directory}/{name}/1.png")
      ...     images, labels = load_images(directory, mode="L")
      >>> images.shape, labels.tolist(), int(images[1].min())
      ((2, 6, 8, 1), [0, 1], 255)
    """
    check_choice("mode", mode, ("RGB", "L"))
    if size is not None:
        check_sizes("size", size)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"images need Pillow: {INSTALL}") from error
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    # Hidden ones are no classes: notebooks leave such behind.
    folders = sorted(
        path
        for path in directory.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    for label, folder in enumerate(folders):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                with Image.open(path) as file:
                    image, depth = file.convert(mode), file.mode
            # Pillow's errors at damaged files are of many types.
            except Exception as error:
                raise ValueError(f"{path} is no image, or damaged: {error}") from error
            if depth[0] in "IF":
                raise ValueError(
                    f"{path} must have 8 bits a channel, got Pillow's mode {depth},"
                    " which would be cut at 255"
                )
            if size is not None:
                image = image.resize((size[1], size[0]))
            array = np.asarray(image, np.uint8)
            if images and array.shape != images[0].shape:
                raise ValueError(
                    f"{path} has {array.shape[:2]} pixels, those before"
                    f" {images[0].shape[:2]}; size=(height, width) resizes them"
                )
            images.append(array)
            labels.append(label)
    if not images:
        raise ValueError(
            f"{directory} must have a folder for each class with images in it"
            f" ({', '.join(SUFFIXES)})"
        )
    stacked = np.stack(images)
    stacked = stacked[..., None] if stacked.ndim == 3 else stacked
    return Dataset(stacked, np.asarray(labels, np.int32))
