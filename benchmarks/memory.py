"""Memory of a training step by microbatches and rematerialisation.

python -m benchmarks.memory [coco_grid coco_region …]

XLA's own analysis of the compiled step on one device, at full size; nothing is run. The
state (parameters, Adam's moments, statistics) and the batch are there all the time; the
rest is what the step needs at its peak.
"""

import importlib
import sys
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from vse_jax.optimizer import Optimizer, Schedule
from vse_jax.sharding import make_mesh
from vse_jax.state import abstract_model, abstract_state
from vse_jax.train import compile_step

MICROBATCHES = (1, 2, 4, 8, 16)
TOKENS = 32  # padded length of a caption
GB = 1e9


def analysis(config: ConfigDict):
    """XLA's memory analysis of the step with all parameters open."""
    mesh = make_mesh(config, jax.devices()[:1])
    graphdef, model = abstract_model(config)
    optimizer = Optimizer(config.optimizer, model["params"])
    state = abstract_state(config, optimizer, mesh)
    schedule = Schedule.from_config(config, 4425, 4426)
    step = compile_step(config, graphdef, optimizer, schedule, mesh, state)
    b, image = config.batch_size, config.image
    shapes = {"token_ids": ((b, TOKENS), np.int32), "token_lengths": ((b,), np.int32)}
    if image.kind == "grid":
        shapes["images"] = ((b, image.size, image.size, 3), np.float32)
    else:
        size = (b, image.max_regions, image.feature_dim)
        shapes |= {"regions": (size, np.float32), "region_lengths": ((b,), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    groups = optimizer.open_groups(config.num_epochs)
    return step.lower(state, batch, groups).compile().memory_analysis()


def main(names: list[str]) -> None:
    print(
        "| config | remat | microbatches | state + batch, GB | peak of the rest, GB |"
    )
    print("|---|---|---|---|---|", flush=True)
    for name in names or ["coco_region", "coco_grid"]:
        for remat in (False, True):
            for count in MICROBATCHES:
                config = importlib.import_module(f"configs.{name}").get_config()
                config.microbatches, config.remat = count, remat
                start = time.perf_counter()
                memory = analysis(config)
                print(
                    f"| {name} | {'yes' if remat else 'no'} | {count} | "
                    f"{memory.argument_size_in_bytes / GB:.2f} | "
                    f"{memory.temp_size_in_bytes / GB:.2f} |",
                    flush=True,
                )
                seconds = time.perf_counter() - start
                print(f"compiled in {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
