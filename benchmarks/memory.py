"""Memory of a training step by microbatches and rematerialisation.

python -m benchmarks.memory [coco_grid coco_region …]

At full size; nothing is run. Microbatches: XLA's own analysis of the compiled step on
one device; the state (parameters, Adam's moments, statistics) and the batch are there
all the time, the rest is what the step needs at its peak. Rematerialisation: what the
towers' forward pass keeps for the backward pass (XLA's compiler for CPUs reorders the
recomputation, so that its analysis says nothing about other devices).
"""

import importlib
import sys
import time

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vse_jax.devices.mesh import make_mesh
from vse_jax.models.build import abstract_model, merge_model
from vse_jax.training.optimizer import Optimizer, Schedule
from vse_jax.training.state import abstract_state
from vse_jax.training.step import compile_step

MICROBATCHES = (1, 2, 4, 8, 16)
TOKENS = 32  # padded length of a caption
GB = 1e9


def batch_of(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch."""
    b, image = config.batch_size, config.image
    shapes: dict[str, tuple] = {
        "token_ids": ((b, TOKENS), np.int32),
        "token_lengths": ((b,), np.int32),
    }
    if image.kind == "grid":
        shapes["images"] = ((b, image.size, image.size, 3), np.float32)
    else:
        size = (b, image.max_regions, image.feature_dim)
        shapes |= {"regions": (size, np.float32), "region_lengths": ((b,), np.int32)}
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def analysis(config: ConfigDict):
    """XLA's memory analysis of the step with all parameters open."""
    mesh = make_mesh(config, jax.devices()[:1])
    graphdef, model = abstract_model(config)
    optimizer = Optimizer(config.optimizer, model["params"])
    state = abstract_state(optimizer, model, mesh)
    schedule = Schedule.from_config(config, 4425, 4426)
    step = compile_step(config, graphdef, optimizer, schedule, mesh, state)
    groups = optimizer.open_groups(config.num_epochs)
    return step.lower(state, batch_of(config), groups).compile().memory_analysis()


def kept_bytes(config: ConfigDict) -> int:
    """What the backward pass of the towers needs, but for the parameters."""
    graphdef, model = abstract_model(config)

    def forward(params, batch):
        def embed(params):
            towers = merge_model(graphdef, model | {"params": params})
            rngs = nnx.Rngs(dropout=0, size=1)
            return towers(batch, train=True, rngs=rngs)

        return jax.vjp(embed, params)[1]

    stats = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model["batch_stats"])
    model["batch_stats"] = stats
    kept = jax.tree.leaves(jax.eval_shape(forward, model["params"], batch_of(config)))
    parameters = {(x.shape, x.dtype) for x in jax.tree.leaves(model["params"])}
    return sum(
        x.size * x.dtype.itemsize
        for x in kept
        if hasattr(x, "size") and (x.shape, x.dtype) not in parameters
    )


def main(names: list[str]) -> None:
    names = names or ["coco_region", "coco_grid"]
    print("| config | remat | kept for the backward pass, GB |\n|---|---|---|")
    for name in names:
        for remat in (False, True):
            config = importlib.import_module(f"configs.{name}").get_config()
            config.remat = remat
            kept = kept_bytes(config) / GB
            print(f"| {name} | {'yes' if remat else 'no'} | {kept:.2f} |", flush=True)
    print("\n| config | microbatches | state + batch, GB | peak of the rest, GB |")
    print("|---|---|---|---|", flush=True)
    for name in names:
        for count in MICROBATCHES:
            config = importlib.import_module(f"configs.{name}").get_config()
            config.microbatches = count
            start = time.perf_counter()
            memory = analysis(config)
            print(
                f"| {name} | {count} | {memory.argument_size_in_bytes / GB:.2f} | "
                f"{memory.temp_size_in_bytes / GB:.2f} |",
                flush=True,
            )
            seconds = time.perf_counter() - start
            print(f"compiled in {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
