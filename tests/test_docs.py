"""The pages of the documentation: their code runs, and is as short as they say."""

import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

DOCS = pathlib.Path(__file__).parents[1] / "docs"
CODE = {
    page.stem: re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    for page in sorted(DOCS.glob("*.md"))
}
# Lines that say something: of the example itself, without what only uses it.
LENGTHS = {"own_task": ("def regression", "tx = ", 15), "own_optimizer": ("", "", 30)}


def run(page, directory, monkeypatch):
    monkeypatch.chdir(directory)
    names = {}
    with jax.numpy_rank_promotion("allow"):  # a reader has no such setting
        for block in CODE[page]:
            exec(compile(block, f"{page}.md", "exec"), names)
    return names


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text().splitlines()
    assert {page for page in CODE if page not in index} == {"index"}


@pytest.mark.parametrize("page", [page for page, blocks in CODE.items() if blocks])
def test_code(page, tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(64):
            shade = 255 * (name == "dog")
            path = tmp_path / "photos" / name / f"{i}.png"
            Image.new("RGB", (40, 30), (shade, i, i)).save(path)
    names = run(page, tmp_path, monkeypatch)
    if page == "own_optimizer":
        assert np.isfinite(names["metrics"]["train_loss"])
        assert np.any(names["state"].phi.output != 0)
        assert np.isfinite(names["result"].final).all()
        np.testing.assert_array_equal(names["phi"].hidden, names["state"].phi.hidden)
    elif page == "training_loop":
        assert np.all(names["params"]["w"] < 1)
    elif page == "own_task":
        result = names["result"]
        assert result.final.mean() < 0.5 * result.curves[:, 0].mean()
        assert names["task"].data.images.shape == (128, 32, 32, 3)
    elif page == "pictures":
        assert (tmp_path / "look.png").stat().st_size > 10_000
    elif page == "meta_training":
        assert (tmp_path / "mine.npz").exists()
    elif page == "sharding":
        assert names["updates"]["w"].sharding.spec[0] == "data"


@pytest.mark.parametrize("page", LENGTHS)
def test_lengths(page):
    first, last, most = LENGTHS[page]
    block = CODE[page][0]
    lines = block[block.index(first) : block.rindex(last) if last else None]
    lines = [line for line in lines.splitlines() if line.strip()]
    if page == "own_optimizer":
        imports = ("import", "from")
        lines = [line for line in lines if not line.startswith(imports)]
    assert len(lines) <= most
