"""Indexing that is killed at any moment loses a batch at most, and nothing is wrong."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.encoder import StandIn
from tests.search.indexing_test import check_vectors, draw
from vse_search.store import Store

pytestmark = pytest.mark.system

KILLS, BATCH, PICTURES = 20, 4, 400


def test_twenty_kills(tmp_path):
    model, index, log = StandIn(), tmp_path / "index", tmp_path / "log"
    log.touch()
    for number in range(PICTURES):
        draw(tmp_path / "pictures" / f"{number}.png", number)
    folder = tmp_path / "pictures"
    Store.create(index, model=model.fingerprint, name="m", dim=model.dim, folder=folder)
    rng, stages = random.Random(0), []
    program = [sys.executable, "-m", "tests.search.index_until_killed"]
    with subprocess.Popen(
        [*program, str(index), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:

        def start() -> int:
            parent.stdin.write("\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        for _ in range(KILLS):
            encoded, had = log.stat().st_size, count(index)
            process = start()
            aim = min(encoded + rng.randrange(3 * BATCH), PICTURES)
            while log.stat().st_size < aim:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(process, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            kept = count(index) - had
            assert 0 <= log.stat().st_size - encoded - kept <= BATCH
            stages.append(had)
        assert len(set(stages)) > KILLS // 2  # most kills fell into the work
        start()
        assert parent.stdout.readline() == "ended\n"
        parent.stdin.close()
    assert count(index) == PICTURES


def count(index) -> int:
    """Pictures of the index, each of which has its vector."""
    with Store.open(index, read_only=True) as store:
        return len(check_vectors(store))
