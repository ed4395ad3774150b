"""Optimizer state and steps where the parameters are sharded over a mesh.

What is done to a coordinate needs that coordinate alone, so a device can do its own
part without a word to the others, and the state lies where its parameter does. Under
`AxisType.Explicit` the sharding is part of an array's type; under `AxisType.Auto` only
the compiler knows it, and asks.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from l2l_jax.types import PyTree

# `step(shared, g, state) -> (update, state)`: g and update have shape S, the leaves of
# the state end with S, and what is done to a coordinate depends on `shared` and on that
# coordinate alone.
Step = Callable[[PyTree, jax.Array, PyTree], tuple[jax.Array, PyTree]]
# For each axis of an array the name of what runs along it, None: must be whole.
Names = tuple[str | None, ...]


def state_sharding(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Where the state of an optimizer lies: beside the parameters.

    A leaf of the state that belongs to a parameter of shape S, and whose shape ends
    with S, is sharded like the parameter, and whole along the axes in front. All else,
    such as a count, is replicated.

    Args:
      tx: any optax transformation whose state `optax.tree.map_params` can read.
      params: the parameters, arrays or `jax.ShapeDtypeStruct`, each with a
        `NamedSharding`.

    Returns:
      A tree like the state, with a `NamedSharding` for each leaf.

    Raises:
      TypeError: a parameter has no `NamedSharding`; the message has its path.
      ValueError: there are no parameters, and so there is no mesh.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
      >>> import l2l_jax
      >>> mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), (AxisType.Auto,))
      >>> rows = NamedSharding(mesh, PartitionSpec("fsdp"))
      >>> theta = jax.device_put(jnp.ones((2 * jax.device_count(), 3)), rows)
      >>> learned = l2l_jax.load_pretrained("rnnprop")
      >>> tx = l2l_jax.rnnprop_transform(learned.params)
      >>> placed = l2l_jax.state_sharding(tx, theta)
      >>> [tuple(x.spec) for x in (placed.count, placed.m, placed.lstm[0].h)]
      [(), ('fsdp',), (None, 'fsdp')]
      >>> state = jax.jit(tx.init, out_shardings=placed)(theta)
      >>> _, state = jax.jit(tx.update, donate_argnums=1)(theta, state)
    """
    leaves = jax.tree.leaves_with_path(params)
    for path, leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            raise TypeError(
                "parameters must be arrays or jax.ShapeDtypeStruct with a"
                f" NamedSharding; {jax.tree_util.keystr(path) or '(the whole tree)'}"
                f" has {sharding}"
            )
    if not leaves:
        raise ValueError(f"params must have at least one array, got {params!r}")
    replicated = NamedSharding(leaves[0][1].sharding.mesh, PartitionSpec())

    def beside(leaf, param):
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        leading = len(leaf.shape) - len(param.shape)
        if leading < 0 or leaf.shape[leading:] != param.shape:
            return replicated
        spec = PartitionSpec(*[None] * leading, *param.sharding.spec)
        return NamedSharding(
            param.sharding.mesh, spec, memory_kind=param.sharding.memory_kind
        )

    return optax.tree.map_params(
        tx,
        beside,
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


def zeros_beside(param: Any, leading: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros of shape (*leading, *S), sharded like a parameter of shape S.

    Args:
      param: an array, or a `jax.ShapeDtypeStruct`.
      leading: sizes of the axes in front.
      dtype: of the zeros.
    """
    if isinstance(param, jax.ShapeDtypeStruct):
        there = param.sharding and _in_front(param.sharding, len(leading))
        return jnp.zeros((*leading, *param.shape), dtype, device=there)
    return _zeros_beside(param, leading, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _zeros_beside(param, leading, dtype):
    # Nothing depends on its values, and `partitioned` has no derivative.
    param = jax.lax.stop_gradient(param)
    like = jax.lax.broadcast(param, leading)

    def step(_, param, like):
        return param, jnp.zeros_like(like, dtype)

    return auto_within(partitioned(step))((), param, like)[1]


def _in_front(sharding: Any, leading: int) -> Any:
    """The sharding of an array with so many axes more, whole, in front."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = PartitionSpec(*(None,) * leading, *sharding.spec)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def is_one_part() -> bool:
    """Whether this is the program of one device: the only one, or in `shard_map`."""
    manual = _axes(jax.sharding.get_abstract_mesh(), AxisType.Manual)
    return bool(manual) or jax.device_count() == 1


def _axes(mesh: Any, kind: AxisType) -> list[str]:
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return [name for name, its_kind in pairs if its_kind == kind]


def auto_within(step: Step) -> Step:
    """The step with `AxisType.Auto` axes only; what comes out lies where the state did.

    Where no array has explicit axes it is the step as it is.
    """

    def on_all(shared, gs, states):
        update, state = step(shared, gs[0], states[0])
        return [update], [state]

    def choose(shared, g, state):
        (update,), (state,) = auto_within_all(on_all)(shared, [g], [state])
        return update, state

    return choose


def auto_within_all(step: Callable[..., tuple]) -> Callable[..., tuple]:
    """`auto_within` for a step that sees all leaves at once.

    It is `step(shared, gs, states) -> (updates, states)` of lists, one entry a leaf.
    """

    def choose(shared, gs, states):
        lasts = [jax.typeof(jax.tree.leaves(state)[-1]) for state in states]
        explicit = {a for x in lasts for a in _axes(x.sharding.mesh, AxisType.Explicit)}
        if not explicit:
            return step(shared, gs, states)

        def keep(names):
            names = names if isinstance(names, tuple) else (names,)
            return tuple(name for name in names if name in explicit) or None

        def beside(last, g, state):
            spec = [*map(keep, last.sharding.spec), *[None] * last.ndim]
            spec = spec[last.ndim - g.ndim : last.ndim]

            def place(x):
                front = [None] * (x.ndim - g.ndim)
                return NamedSharding(last.sharding.mesh, PartitionSpec(*front, *spec))

            return jax.tree.map(place, (g, state))

        places = map(beside, lasts, gs, states)
        g_places, state_places = map(list, zip(*places, strict=True))
        run = jax.sharding.auto_axes(
            step, axes=tuple(explicit), out_sharding=(g_places, state_places)
        )
        return jax.jit(run)(shared, gs, states)

    return choose


def partitioned(step: Step) -> Step:
    """The step, on each device's part where only the compiler knows the sharding.

    Not to be differentiated.
    """

    def choose(shared, g, state):
        # Without Shardy, which future versions always have, there is no asking.
        shardy = getattr(jax.config, "jax_use_shardy_partitioner", True)
        if is_one_part() or not shardy:
            return step(shared, g, state)

        def names(x, coordinates):
            front = jnp.ndim(x) - len(coordinates)
            return (None,) * front + coordinates

        coordinates = tuple(f"coordinate{i}" for i in range(g.ndim))
        operands = jax.tree.leaves((shared, g, state))
        structure: Any = jax.tree.structure((shared, g, state))
        results = jax.tree.leaves((g, state))
        few = len(operands) - len(results)
        run = _by_parts(
            lambda *leaves: tuple(jax.tree.leaves(step(*structure.unflatten(leaves)))),
            [names(x, () if i < few else coordinates) for i, x in enumerate(operands)],
            [names(x, coordinates) for x in results],
        )
        return jax.tree.unflatten(jax.tree.structure((g, state)), run(*operands))

    return choose


def _by_parts(
    f: Callable[..., tuple], operands: list[Names], results: list[Names]
) -> Callable[..., tuple]:
    """A function of arrays that devices call for their parts along the named axes.

    Axes of one name are divided alike, as the compiler finds the last result to be.
    Members of a vmap are one more named axis.
    """

    def place(mesh, last, arrays):
        found = dict(zip(results[-1], last.spec, strict=True))
        return tuple(
            NamedSharding(mesh, PartitionSpec(*(n and found[n] for n in names)))
            for names in arrays
        )

    def own_part(*leaves):
        # What a device does to its part knows nothing of the mesh around.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return f(*leaves)

    def partition(mesh, _, found):
        last = found[-1].sharding
        return mesh, own_part, place(mesh, last, results), place(mesh, last, operands)

    @jax.custom_batching.custom_vmap
    def run(*args):
        divided = custom_partitioning(f)
        divided.def_partition(partition, sharding_rule=_rule(operands, results))
        return jax.jit(divided)(*args)

    @run.def_vmap
    def _(size, batched, *args):
        del size  # a device may have fewer
        member = f"member{len(results[-1])}"
        in_axes = tuple(0 if b else None for b in batched)
        mapped = _by_parts(
            jax.vmap(f, in_axes),
            [
                (member, *names) if b else names
                for b, names in zip(batched, operands, strict=True)
            ],
            [(member, *names) for names in results],
        )
        return mapped(*args), (True,) * len(results)

    return run


def _rule(operands: list[Names], results: list[Names]) -> SdyShardingRule:
    """What the compiler is told: axes of one name are the same, others stand alone."""
    alone = itertools.count()

    def mapping(names):
        return ArrayMapping(*(name or f"alone{next(alone)}" for name in names))

    return SdyShardingRule(tuple(map(mapping, operands)), tuple(map(mapping, results)))
