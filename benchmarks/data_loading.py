"""Images a second that the training pipeline makes, by kind and number of its workers.

python -m benchmarks.data_loading

JPEG files of COCO's size, just written, become batches of 16 images of 512 px. Numbers
of workers double up to 16, or to the cores where there are more.
"""

import statistics
import time
from collections.abc import Iterator

from absl import flags

from benchmarks import inputs
from vse_jax.base.cores import usable_cores
from vse_jax.config import Config, with_fields
from vse_jax.data.dataset import read_split
from vse_jax.data.images import own_process
from vse_jax.data.loader import TrainData
from vse_jax.data.tokenizers import caption_tokenizer

SIZE, BATCH, PHOTOGRAPHS = 512, 16, 64
ROUNDS = 3


def rates(
    config: Config, kinds: tuple[str, ...], workers: list[int]
) -> Iterator[tuple[str, list[float]]]:
    """Yields ('4 threads', images a second of each round), of a config's training."""
    split = read_split(config, "train")
    tokens = caption_tokenizer(config)(split.captions)
    for kind in kinds:
        for count in workers:
            changes = {"data.workers": kind, "data.num_workers": count}
            # With less room fewer workers would run.
            changed = with_fields(config, changes | {"data.buffer_mb": 2**30})
            batches, found = max(count, 16), []
            with TrainData(changed, split, tokens).batches() as made:
                for _ in range(2 * count + 2):  # start-up and what was made ahead
                    next(made)
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    for _ in range(batches):
                        next(made)
                    seconds = time.perf_counter() - start
                    found.append(batches * config.batch_size / seconds)
            yield f"{count} {kind}", found


def main() -> None:
    flags.FLAGS.mark_as_parsed()  # grain's processes read absl flags
    own_process()
    config = inputs.with_photographs(inputs.grid_config(SIZE, BATCH), PHOTOGRAPHS)
    print(f"{usable_cores()} cores")
    workers = [2**n for n in range(max(usable_cores(), 16).bit_length())]
    for name, found in rates(config, ("threads", "processes"), workers):
        middle, least, most = statistics.median(found), min(found), max(found)
        print(f"{name}: {middle:.0f} images/s ({least:.0f}–{most:.0f})", flush=True)


if __name__ == "__main__":
    main()
