"""What is measured: a line each of docs/performance.md.

Both sides, `our_rows` and `pytorch_rows`, make a row ready under its name here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """goal: PyTorch's time over ours, at least; of a row that is only ours, seconds, at
    most. items: images of which the table gives the number a second and core.
    rounds: at most, where one takes a minute. asked: measured only when named.
    """

    name: str
    goal: float | None = None
    ours_only: bool = False
    items: int = 0
    rounds: int | None = None
    asked: bool = False


PEAK = "matrix product, 2048 × 2048 × 2048"
GPO_SHAPES = ((128, 36, 1024), (128, 32, 1024), (32, 256, 1024))
CAPTIONS = 32  # of the BERT rows
CNN_BATCH, CNN_SIZE = 4, 256
ENCODED = 20  # images, five captions each
PIPELINE_BATCHES, PIPELINE_BATCH = 8, 32
PIPELINE_SIZES = (256, 512)


def gpo(shape: tuple[int, int, int]) -> str:
    return f"GPO forward + backward, {' × '.join(map(str, shape))}"


def pipeline(size: int) -> str:
    return f"input pipeline, 640 × 480 JPEG to {size} px"


CNN_FORWARD = f"ResNet-101 forward, {CNN_BATCH} images of {CNN_SIZE}²"
CNN_BOTH = f"ResNet-101 forward + backward, {CNN_BATCH} images of {CNN_SIZE}²"
BERT_FORWARD = f"BERT-base forward, {CAPTIONS} captions of 8–25 tokens"
BERT_BOTH = f"BERT-base forward + backward, {CAPTIONS} captions of 8–25 tokens"
REGION_STEP = "region training step, batch 128"
GRID_STEP = "grid training step, batch 16, 256²"
FIRST_STEP = "first grid step from a new process, nothing compiled"
METRICS = "COCO 1K and 5K metrics (peer: argsort by rows)"
ENCODE = f"encode {ENCODED} images of 256² + {5 * ENCODED} captions (peer: each × 5)"
DEMO = "the demo's training, 540 steps"

ROWS = (
    Row(PEAK),
    Row(gpo(GPO_SHAPES[0]), 3.0),
    Row(gpo(GPO_SHAPES[1]), 3.0),
    Row(gpo(GPO_SHAPES[2]), 2.0),
    Row(CNN_FORWARD, 1.1),
    Row(CNN_BOTH, 1.0),
    Row(BERT_FORWARD, 1.3),
    Row(BERT_BOTH, 1.2),
    Row(REGION_STEP, 1.2),
    Row(GRID_STEP, 1.0),
    Row(FIRST_STEP, 45.0, ours_only=True, rounds=3),
    Row(METRICS, 15.0),
    Row(ENCODE, 4.0),
    *(
        Row(pipeline(size), 1.5, items=PIPELINE_BATCHES * PIPELINE_BATCH)
        for size in PIPELINE_SIZES
    ),
    Row(DEMO, 240.0, ours_only=True, rounds=1, asked=True),
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
