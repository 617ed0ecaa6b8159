"""python -m tests.search.index_in_memory INDEX MAX_PIXELS FOLDER…

Indexes each folder, the first one before anything is measured. Prints in JSON: by how
many bytes the process grew at most, and the pictures that were left out, with reasons.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np

from tests.helpers.encoder import StandIn
from vse_jax.data.images import own_process, preprocess
from vse_search.indexing import update
from vse_search.store import Store


class Small(StandIn):
    """Takes pictures as a model of 256 px does."""

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return preprocess(pixels, 256, "imagenet")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(index: str, max_pixels: str, *folders: str) -> None:
    own_process()
    model, bad = Small(), {}
    for number, folder in enumerate(folders):
        if number == 1:
            before = peak()
        path = Path(index, str(number))
        Store.create(
            path,
            model=model.fingerprint,
            name=model.name,
            dim=model.dim,
            folder=Path(folder),
        )
        with Store.open(path, read_only=False) as store:
            bad |= update(store, model, max_pixels=int(max_pixels)).bad
    print(json.dumps({"grown": peak() - before, "bad": bad}))


if __name__ == "__main__":
    main(*sys.argv[1:])
