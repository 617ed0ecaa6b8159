"""What is measured: a line each of docs/lab/performance.md."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CAPTIONS = 32  # of the BERT rows
CNN_BATCH, CNN_SIZE = 4, 256
ENCODED = 20  # images, five captions each
PIPELINE_BATCHES, PIPELINE_BATCH = 8, 32


@dataclass(frozen=True)
class Row:
    """A row and how it is made ready: by `our_rows.BUILD(*arguments)` on our side, by
    `pytorch_rows.BUILD(*arguments)` on PyTorch's.

    goal: PyTorch's time over ours, at least; of a row that is only ours, seconds, at
    most. items: images of which the table gives the number a second and core.
    rounds: at most, where one takes a minute.
    """

    name: str
    build: str
    arguments: tuple[Any, ...] = ()
    goal: float | None = None
    ours_only: bool = False
    items: int = 0
    rounds: int | None = None


def _gpo(goal: float, *shape: int) -> Row:
    name = f"GPO forward + backward, {' × '.join(map(str, shape))}"
    return Row(name, "gpo", shape, goal)


def _pipeline(size: int) -> Row:
    name = f"input pipeline, 640 × 480 JPEG to {size} px"
    images = PIPELINE_BATCHES * PIPELINE_BATCH
    return Row(name, "pipeline", (size,), 1.5, items=images)


_IMAGES = f"{CNN_BATCH} images of {CNN_SIZE}²"
_CAPTIONS = f"{CAPTIONS} captions of 8–25 tokens"
_ENCODED = f"{ENCODED} images of 256² + {5 * ENCODED} captions"
PEAK = Row("matrix product, 2048 × 2048 × 2048", "matrix_product")
ROWS = (
    PEAK,
    _gpo(3.0, 128, 36, 1024),
    _gpo(3.0, 128, 32, 1024),
    _gpo(2.0, 32, 256, 1024),
    Row(f"ResNet-101 forward, {_IMAGES}", "cnn", (False,), 1.1),
    Row(f"ResNet-101 forward + backward, {_IMAGES}", "cnn", (True,), 1.0),
    Row(f"BERT-base forward, {_CAPTIONS}", "bert", (False,), 1.3),
    Row(f"BERT-base forward + backward, {_CAPTIONS}", "bert", (True,), 1.2),
    Row("region training step, batch 128", "training", ("region",), 1.2),
    Row("grid training step, batch 16, 256²", "training", ("grid",), 1.0),
    Row(
        "first grid step from a new process, nothing compiled",
        "first_step",
        goal=45.0,
        ours_only=True,
        rounds=3,
    ),
    Row("COCO 1K and 5K metrics (peer: argsort by rows)", "metrics", goal=15.0),
    Row(f"encode {_ENCODED} (peer: each × 5)", "encode", goal=4.0),
    _pipeline(256),
    _pipeline(512),
)


@dataclass(frozen=True)
class Ready:
    """A row that one side has built and warmed up.

    turn: does it once and returns the seconds. flops: of the algorithm, where a product
    of matrices or a convolution is the work. variant: which of several ways was kept.
    """

    turn: Callable[[], float]
    flops: float | None = None
    variant: str = ""


def repeated(function: Callable[[], object], least: float = 0.5) -> Callable[[], float]:
    """A turn: the mean time of calls that together take `least` seconds."""

    def turn() -> float:
        start, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - start < least:
            function()
            calls += 1
        return (time.perf_counter() - start) / calls

    return turn
