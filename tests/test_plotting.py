"""Pictures hold the numbers that they are given; a probe sees what a rule does."""

import io

import numpy as np
import optax
import pytest

from l2l_jax import Evaluation, load_pretrained, plotting
from l2l_jax.baselines import Tuning
from l2l_jax.probe import step_response


def evaluation(*final):
    final = np.array(final, float)
    return Evaluation(final, np.ones((len(final), 3)), None)


def drawn(*panels, **options):
    figure = plotting.draw(panels, **options)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def test_curves_are_those_of_runs_that_stay_finite():
    curves = {
        "good": np.array([[4.0, 1.0], [2.0, 3.0], [9.0, np.nan]]),
        "lost": np.full((2, 2), np.inf),
    }
    panel = plotting.loss_curves(curves, "both")
    assert [line.label for line in panel.lines] == ["good"]
    np.testing.assert_array_equal(panel.lines[0].y, [3, 2])
    np.testing.assert_allclose(panel.lines[0].error, [1, 1])
    (axis,) = drawn(panel).axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [3, 2])
    assert axis.get_ylim()[1] == panel.top == 6
    assert axis.get_xlabel() == "step"
    assert axis.get_ylabel() == "minibatch loss (nats)"


def test_whole_numbers_have_whole_ticks():
    """Steps; on an axis with fractions, such as seconds, ticks may be fractions."""
    line = plotting.Line("a", np.arange(3), np.ones(3))
    panel = plotting.Panel("", "step", "loss", [line])
    half = panel._replace(lines=[line._replace(x=np.arange(3) / 4)])
    whole, fractions = drawn(panel, half).axes
    assert not np.any(whole.get_xticks() % 1)
    assert np.any(fractions.get_xticks() % 1)


def test_rates_that_lose_runs_are_left_out():
    table = [
        {"rate": 0.1, "mean": 2.0, "stderr": 0.1, "not_finite": 0},
        {"rate": 0.2, "mean": 1.0, "stderr": None, "not_finite": 0},
        {"rate": 0.4, "mean": 0.1, "stderr": 0.1, "not_finite": 1},
    ]
    tuning = Tuning("adam", 0.2, False, table)
    panel = plotting.rate_sensitivity([tuning], {"learned": evaluation(1, 2)})
    level, line = panel.lines
    np.testing.assert_array_equal(level.x, [0.1, 0.4])
    np.testing.assert_array_equal(level.y, [1.5, 1.5])
    np.testing.assert_array_equal(line.x, [0.1, 0.2])
    np.testing.assert_array_equal(line.error, [0.1, 0])
    (axis,) = drawn(panel).axes
    assert axis.get_xscale() == axis.get_yscale() == "log"
    lost = Tuning("sgd", None, True, table[2:])
    panel = plotting.rate_sensitivity([lost])
    assert [line.label for line in panel.lines] == ["sgd (diverged)"]
    drawn(panel)


def test_a_point_an_optimizer():
    panel = plotting.cost_quality({"a": (1.0, 0.3, 0.01), "b": (20.0, 0.2, 0.01)})
    figure = drawn(panel)
    points = [line.get_xydata()[0].tolist() for line in figure.axes[0].lines[::3]]
    assert [1.0, 0.3] in points
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_panels_in_rows_share_a_legend():
    panels = [plotting.loss_curves({"a": np.ones((2, 3))}, t) for t in "xyz"]
    figure = drawn(*panels, columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["x", "y", "z"]
    assert [bool(axis.get_ylabel()) for axis in figure.axes] == [True, False, True]
    assert len(figure.legends[0].get_texts()) == 1
    with pytest.raises(ValueError, match="got 0 and 2"):
        plotting.draw([], columns=2)
    with pytest.raises(TypeError, match=r"such as \[panel\], got one Panel"):
        plotting.draw(panels[0])
    with pytest.raises(ValueError, match=r"curves\['a'\] .* got \(3,\)"):
        plotting.loss_curves({"a": np.ones(3)})


def test_response_of_adam():
    fresh = step_response(optax.adam(0.1), 0, points=5, draws=1)
    np.testing.assert_allclose(fresh.step[0], 0.1, rtol=1e-4)
    np.testing.assert_allclose(fresh.step[-1], -0.1, rtol=1e-4)
    old = step_response(optax.adam(0.1), 100, points=5)
    # The direction of the past, but for a tenth of the gradient now.
    assert old.step[2, 0] > 0.06
    np.testing.assert_allclose(old.step[2, 0], -old.step[2, -1], rtol=1e-4)
    assert old.step[0, 2] > old.step[-1, 2]


def test_relative_rules_do_not_see_the_scale():
    tx = load_pretrained("rnnprop").transform()
    one, large = (
        step_response(tx, 3, points=3, draws=2, scale=scale) for scale in (1.0, 64.0)
    )
    np.testing.assert_allclose(one.step, large.step, rtol=1e-4, atol=1e-6)
    assert one.step[0, 0] > 0 > one.step[-1, -1]
    figure = drawn(plotting.step_map(one, "RNNprop"), plotting.step_map(large))
    mesh = figure.axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array().reshape(3, 3), one.step)
    assert mesh.get_clim()[0] == -mesh.get_clim()[1]


def test_probing_refuses_what_is_none():
    for wrong in ({"age": -1}, {"age": 1, "points": 0}, {"age": 1, "scale": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            step_response(optax.sgd(0.1), **wrong)


def test_y_labels_stand_where_they_change():
    losses = plotting.loss_curves({"a": np.ones((2, 3))})
    points = plotting.cost_quality({"a": (1.0, 0.3, 0.01)})
    axes = drawn(losses, losses, points, points, losses, columns=3).axes
    loss, final = losses.y_label, points.y_label
    assert [axis.get_ylabel() for axis in axes] == [loss, "", final, final, loss]
