"""The weights that ship with the package."""

import hashlib
import pathlib

import jax
import numpy as np
import pytest

import l2l_jax
from l2l_jax import evaluator, load_pretrained
from l2l_jax.tasks import MLP, classification_task, load_dataset

pytestmark = pytest.mark.usefixtures("optimized")

DIRECTORY = pathlib.Path(l2l_jax.__file__).parent / "pretrained"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.npz"))


def test_all_optimizers_ship():
    assert {"rnnprop", "dm", "longrun"} <= set(NAMES)
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) < 5_000_000
    with pytest.raises(ValueError, match=r"'dm'.*'longrun'.*'rnnprop'.*'adam'"):
        load_pretrained("adam")


@pytest.mark.parametrize("name", NAMES)
def test_card_and_log_belong_to_the_weights(name):
    card = (DIRECTORY / f"{name}.md").read_text()
    weights = (DIRECTORY / f"{name}.npz").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in card
    learned = load_pretrained(name)
    assert f"| {learned.training['iterations']} of " in card
    log = np.genfromtxt(DIRECTORY / f"{name}.csv", delimiter=",", names=True)
    assert log["iteration"].size >= learned.training["iterations"]
    assert np.isfinite(log["train_loss"]).all()


@pytest.mark.parametrize(
    "name", ["rnnprop", "longrun", pytest.param("dm", marks=pytest.mark.soak)]
)
def test_they_optimize_what_they_never_saw(name):
    """A network on other images; an untrained φ does not come near this."""
    task = classification_task(MLP(), load_dataset("digits", "train"))
    learned = load_pretrained(name)
    run = evaluator(task, lambda phi: learned._replace(params=phi).transform())
    result = run.evaluate(learned.params, jax.random.key(0), 100, 4)
    assert result.curves[:, 0].mean() > 2.2
    assert result.final.mean() < 0.5
