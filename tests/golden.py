"""The fixture made from the authors' original program, as weights and arrays."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax import DMParams, RNNpropParams, dm_transform, rnnprop_transform
from l2l_jax.lstm import Dense, LSTMWeights

DATA = np.load(pathlib.Path(__file__).parent / "fixtures" / "golden.npz")
TRANSFORMS = {"rnnprop": rnnprop_transform, "dm": dm_transform}
_CELLS = {"rnnprop": "cellA", "dm": "cellH"}
_OUTPUTS = {"rnnprop": "fc_A", "dm": "fc"}


def names(kind):
    """φ with the original program's names in the place of arrays."""
    cell = f"{_CELLS[kind]}/MultiRNNCell/Cell{{}}/LSTMCell/"
    lstm = tuple(
        LSTMWeights(f"{cell.format(i)}W_0", f"{cell.format(i)}B") for i in (0, 1)
    )
    output = Dense(f"{_OUTPUTS[kind]}/w", f"{_OUTPUTS[kind]}/b")
    if kind == "dm":
        return DMParams(lstm, output)
    return RNNpropParams(Dense("w", "b"), lstm, output)


def weights(kind, dtype):
    """φ of the original program."""
    return jax.tree.map(
        lambda n: jnp.asarray(DATA[f"w/{kind}/{n}"], dtype), names(kind)
    )


def relative_error(found, expected):
    """Largest deviation relative to max|expected|."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
