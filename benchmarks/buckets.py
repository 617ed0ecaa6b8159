"""Runs in buckets that are killed, and saves over a network that loses requests.

    make setup-dev && python -m benchmarks.buckets kills|saves gs|s3 [NUMBER]

kills: a toy run in a bucket, killed NUMBER times (20) at random moments and gone on
with; its losses are compared with those of a run on a disk. saves: NUMBER checkpoints
(200) while one of twenty requests fails, each read again. The services are
fake-gcs-server and moto, on this machine.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.helpers import buckets, tiny
from tests.helpers.programs import rows
from vse_jax.base.errors import InputError
from vse_jax.base.files import any_path, local_copy
from vse_jax.checkpoints.runs import Checkpoints, TrainProgress


def kills(scheme: str, number: int, folder: Path, environment: dict[str, str]) -> None:
    root = tiny.write_root(folder / "data" / "tiny")
    command = [sys.executable, "main.py", f"--config=tests/helpers/tiny.py:{root}"]
    command += ["--config.image.pool=avg", "--config.text.pool=avg"]
    command += ["--config.checkpoint.every_steps=1"]
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    log = (folder / "log").open("w")

    def start(workdir: str) -> subprocess.Popen:
        here = [*command, f"--workdir={workdir}"]
        return subprocess.Popen(here, env=environment, stdout=log, stderr=log)

    assert start(str(folder / "disk")).wait() == 0
    workdir, draw = f"{scheme}://{buckets.BUCKET}/kills", random.Random(0)
    lost = killed = 0
    while killed < number:
        process = start(workdir)
        try:
            code = process.wait(timeout=draw.uniform(3, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            continue
        lost += code != 0
        if code == 0:
            print(f"ended after {killed} kills; another one")
            workdir += "+"
    lost += start(workdir).wait() != 0
    expected = rows(folder / "disk")
    with local_copy(any_path(workdir, "workdir")) as copy:
        found = rows(copy)
    different = sum(a != b for a, b in zip(expected, found, strict=True))
    print(
        f"{killed} kills: runs lost {lost}, of {len(expected)} rows differ {different}"
    )
    last = Path(log.name).read_text().splitlines()
    print("\n".join(line for line in last if line.startswith("error")))


def saves(scheme: str, number: int) -> None:
    workdir = any_path(f"{scheme}://{buckets.BUCKET}/saves", "workdir")
    refused, unread, seconds = 0, 0, []
    for step in range(1, number + 1):
        model = {"params": {"w": np.full((64, 64), step, np.float32)}}
        begin = time.monotonic()
        try:
            with Checkpoints(workdir) as checkpoints:
                progress = TrainProgress(step, step, 1.0, step, 1)
                checkpoints.save(model, {"step": np.int32(step)}, progress)
            with Checkpoints(workdir, read_only=True) as checkpoints:
                found, _ = checkpoints.restore_best(model)
            unread += not np.array_equal(found["params"]["w"], model["params"]["w"])
        except InputError as error:
            refused += 1
            print(step, error, flush=True)
        seconds.append(time.monotonic() - begin)
        if step % 10 == 0:
            print(f"{step}: {np.median(seconds):.1f} s a save and restore", flush=True)
    print(f"{number} saves: refused {refused}, read wrong {unread}")
    print(f"seconds: median {np.median(seconds):.1f}, most {max(seconds):.1f}")


def main() -> None:
    what, scheme = sys.argv[1:3]
    number = int((*sys.argv[3:], 20 if what == "kills" else 200)[0])
    with (
        tempfile.TemporaryDirectory() as temporary,
        buckets.gcs_server(Path(temporary) / "gcs") as gs,
        buckets.s3_server() as s3,
        buckets.network(gs if scheme == "gs" else s3, 0.05, stalls=0.01) as bad,
    ):
        services = {"gs": gs, "s3": s3}
        if what == "saves":
            services[scheme] = bad.address
        os.environ |= buckets.environment(**services)
        os.environ["JAX_PLATFORMS"] = "cpu"
        if what == "kills":
            kills(scheme, number, Path(temporary), dict(os.environ))
        else:
            saves(scheme, number)
            print(f"requests {bad.count}, failed {bad.bad}")


if __name__ == "__main__":
    main()
