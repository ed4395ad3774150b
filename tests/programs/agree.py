"""One of two processes that differ, see test_processes: prints what they agree on."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax import checkpoint, processes

address, me = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(address, 2, me)

state = {
    "w": jnp.array([-0.0, jnp.nan, 1 + me]),
    "key": jax.random.key(me),
    "none": np.zeros((0, 2)),
    "flag": np.array(me == 0),
}
iteration, state = checkpoint.from_first(5 - me, state)
assert isinstance(state["none"], np.ndarray)
print(iteration, np.asarray(state["w"]).tobytes().hex(), state["flag"])
print(jax.random.key_data(state["key"]), processes.largest(3 + me))

mesh = jax.sharding.Mesh(jax.devices(), "x")
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
placed = processes.replicate(state, everywhere)
assert processes.replicate(placed, everywhere)["w"] is placed["w"]
assert not placed["key"].is_fully_addressable
print(jax.random.normal(processes.here(placed)["key"], 2))

processes.check_same("the weights", state["w"])
try:
    processes.check_same("the number", np.float32(me))
except ValueError as error:
    print(error)
