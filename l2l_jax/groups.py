"""An optimizer of its own for each group of parameters, learned together."""

from collections.abc import Callable, Mapping

import jax
import optax

from l2l_jax.checks import check_choice
from l2l_jax.types import LearnedOptimizer, PyTree


def partitioned(
    members: Mapping[str, LearnedOptimizer | optax.GradientTransformation],
    labels: PyTree | Callable[[PyTree], PyTree],
) -> LearnedOptimizer:
    """Several optimizers as one, each for the parameters of its label.

    With φ = {name: φ_name} it is `optax.partition`, and any meta-training learns all φ
    at once, from the one meta-loss::

        Δθ_i, h_i = tx_{label(i)}(g_i, h_i; φ_{label(i)})

    Args:
      members: by name, families of optimizers to be learned, of any kinds, or finished
        optax transformations, which have no part in φ: `optax.adam(0.01)`,
        `load_pretrained("rnnprop").transform()`, `optax.set_to_zero()`.
      labels: the names, as a tree like the parameters or a prefix of it, or as a
        function that returns one for the parameters; it gets gradients, too. A task
        that is transformed (`combine`) has other parameters: paths are safest.

    Returns:
      A `LearnedOptimizer`; it is not coordinatewise, so meta-training goes the general
      way, the parameters as a tree.

    Raises:
      TypeError: a member is neither.
      ValueError: there is no member, or a label names none; the message has its path.
        For a function, when the transformation is used.

    Example:
      One for the convolutions of a Flax network (`Conv_0`, …) and one for the rest:

      >>> import jax, jax.numpy as jnp
      >>> from l2l_jax import learned_optimizer, partitioned
      >>> def labels(params):
      ...     return jax.tree.map_with_path(
      ...         lambda path, _: "conv" if "Conv" in jax.tree_util.keystr(path)
      ...         else "dense", params)
      >>> small = learned_optimizer("dm", {"hidden_sizes": (4,)})
      >>> optimizer = partitioned({"conv": small, "dense": small}, labels)
      >>> phi = optimizer.init(jax.random.key(0))
      >>> theta = {"Conv_0": {"bias": jnp.ones(3)}, "Dense_0": {"bias": jnp.ones(2)}}
      >>> state = optimizer.transform(phi).init(theta)

      After `meta_trainer`, each is saved and loaded like any other:

      >>> import tempfile
      >>> from l2l_jax import Learned, load, save
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     for name in phi:
      ...         save(f"{directory}/{name}.npz", Learned("dm", phi[name]))
      ...     again = {name: load(f"{directory}/{name}.npz").params for name in phi}
      >>> tx = optimizer.transform(again)

    References:
      Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
      <https://arxiv.org/abs/1606.04474>`_, 2016, section 3.3: one optimizer for the
      convolutional and one for the fully-connected parameters.
    """
    names = tuple(members)
    if not names:
        raise ValueError("members must name at least one optimizer, got none")
    learned = {}
    for name, member in members.items():
        if isinstance(member, LearnedOptimizer):
            learned[name] = member
        elif not isinstance(member, optax.GradientTransformation):
            raise TypeError(
                f"members[{name!r}] must be a LearnedOptimizer or an optax"
                f" transformation, got {type(member).__name__}"
            )

    def checked(tree: PyTree) -> PyTree:
        # None, what a function without a last return gives, would be no leaf.
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
        for path, label in leaves:
            where = jax.tree_util.keystr(path) or "(the whole tree)"
            check_choice(f"the label of {where}", label, names)
        return tree

    if not callable(labels):
        checked(labels)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(names))
        return {
            name: learned[name].init(k)
            for name, k in zip(names, keys, strict=True)
            if name in learned
        }

    def transform(phi: PyTree) -> optax.GradientTransformationExtraArgs:
        finished = {
            name: learned[name].transform(phi[name]) if name in learned else member
            for name, member in members.items()
        }
        return optax.partition(
            finished,
            lambda params: checked(labels(params)) if callable(labels) else labels,
        )

    return LearnedOptimizer(init, transform)
