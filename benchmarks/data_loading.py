"""Time to make a training batch of 128 images, 96 px from 128-px files.

python main.py --config=configs/openmoji.py --mode=prepare
python -m benchmarks.data_loading
"""

import os
import time

from absl import flags

from configs import openmoji
from vse_jax.config import typed, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import own_process
from vse_jax.data.loader import TrainData
from vse_jax.data.tokenizers import caption_tokenizer

BATCHES = 20


def main() -> None:
    flags.FLAGS.mark_as_parsed()  # grain's processes read absl flags
    own_process()
    config = typed(openmoji.get_config())
    split = read_split(config, "train")
    tokens = caption_tokenizer(config)(split.captions)
    for kind in ("threads", "processes"):
        for workers in (1, 2):
            changes = {"data.workers": kind, "data.num_workers": workers}
            config = with_fields(config, changes)
            with TrainData(config, split, tokens).batches() as batches:
                for _ in range(5):  # start-up and what was made ahead
                    next(batches)
                start, spent = time.perf_counter(), os.times()
                for _ in range(BATCHES):
                    next(batches)
                wall = (time.perf_counter() - start) / BATCHES
                cpu = (os.times().user - spent.user) / BATCHES
            note = f", CPU {1e3 * cpu:.0f} ms" if kind == "threads" else ""
            print(f"{workers} {kind}: {1e3 * wall:.0f} ms a batch{note}")


if __name__ == "__main__":
    main()
