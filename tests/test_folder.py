"""Images from a directory of folders."""

import numpy as np
import pytest
from PIL import Image

from l2l_jax.tasks import MLP, classification_task, load_images


@pytest.fixture
def photos(tmp_path):
    """Two classes of two images, each of one colour, and what is no image."""
    colours = {"a": [(250, 0, 0), (0, 250, 0)], "b": [(0, 0, 250), (9, 9, 9)]}
    for name, shades in colours.items():
        (tmp_path / name).mkdir()
        for i, shade in enumerate(shades):
            Image.new("RGB", (4, 3), shade).save(tmp_path / name / f"{i}.PNG")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no folder")
    return tmp_path


def test_classes_are_folders_in_order(photos):
    images, labels = load_images(photos)
    assert images.shape == (4, 3, 4, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 0, 1, 1]
    assert images[:, 0, 0].tolist() == [[250, 0, 0], [0, 250, 0], [0, 0, 250], [9] * 3]


def test_grey_and_resized(photos):
    images, _ = load_images(photos, size=(6, 5), mode="L")
    assert images.shape == (4, 6, 5, 1)
    assert len({image.tobytes() for image in images}) == 4
    task = classification_task(MLP(), load_images(photos), batch_size=4)
    assert task.data.images.shape == (4, 3, 4, 3)


def test_sizes_must_agree(photos):
    Image.new("RGB", (9, 9)).save(photos / "b" / "large.png")
    with pytest.raises(ValueError, match=r"large.png has \(9, 9\) pixels"):
        load_images(photos)
    assert load_images(photos, size=(3, 4)).images.shape == (5, 3, 4, 3)


def test_what_is_none_is_refused_by_name(photos, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="a folder for each class"):
        load_images(empty)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_images(empty / "nowhere")
    with pytest.raises(ValueError, match="mode"):
        load_images(photos, mode="CMYK")
    (photos / "a" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"broken.png is no image"):
        load_images(photos)
    (photos / "a" / "broken.png").unlink()
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(photos / "a" / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png must have 8 bits .* mode I;16"):
        load_images(photos, mode="L")
