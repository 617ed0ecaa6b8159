"""python -m tests.search.index_until_killed INDEX LOG: a program for kill_test.py.

Each line on its standard input starts an update in a process of its own, whose id it
prints; the next line waits for the end of that process first. LOG gets a byte for each
picture that was encoded.
"""

import os
import sys
import time
from pathlib import Path

from tests.helpers.encoder import StandIn
from vse_search.indexing import update
from vse_search.store import Store


class Slow(StandIn):
    """Tells what it encodes, and takes its time."""

    log = Path(os.devnull)

    def encode_images(self, pictures, **options):
        time.sleep(0.004)
        vectors = super().encode_images(pictures, **options)
        with self.log.open("ab") as file:
            file.write(b"." * len(pictures))
        return vectors


def main(index: Path, log: Path) -> None:
    for _ in sys.stdin:
        process = os.fork()
        if not process:
            model = Slow()
            model.log = log
            with Store.open(index, read_only=False) as store:
                update(store, model, batch=4)
            os._exit(0)
        print(process, flush=True)
        os.waitpid(process, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
