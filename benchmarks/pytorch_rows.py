"""PyTorch's side of the rows, as one who knows PyTorch would run it on a CPU.

channels_last for the CNN, inference_mode, fused AdamW, captions padded to the batch's
longest; torch.compile is tried, and the faster of the two ways is measured.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import inputs, pytorch_peer, rows
from benchmarks.pytorch_images import Pairs, collate
from benchmarks.pytorch_training import TrainStep
from benchmarks.rows import Ready, repeated
from vse_jax.config import Config, with_fields
from vse_jax.data.collate import Batch
from vse_jax.data.dataset import read_split
from vse_jax.data.tokenizers import caption_tokenizer

_TRIAL = 1.0  # seconds that each way is tried
_SLOW = 10.0  # seconds of a trial that is not done twice


def matrix_product() -> Ready:
    a, b = torch.randn(2, 2048, 2048)
    return Ready(repeated(lambda: a @ b), 2 * 2048**3)


def gpo(shape: tuple[int, int, int]) -> Ready:
    features = torch.randn(shape, requires_grad=True)
    cotangent = torch.randn(shape[0], shape[2])
    mask = torch.ones(shape[:2], dtype=torch.bool)

    def backward(pool: nn.Module) -> Callable[[], None]:
        def run():
            features.grad = None
            pool.zero_grad(set_to_none=True)
            pool(features, mask).backward(cotangent)

        return run

    # Sorting is the work, which has no FLOPs to count.
    return _faster(pytorch_peer.GPO(), backward, count=False)


def cnn(backward: bool) -> Ready:
    config = inputs.grid_config(rows.CNN_SIZE, rows.CNN_BATCH)
    network = pytorch_peer.Backbone(config)
    images = _images(inputs.images(config, rows.CNN_BATCH))
    return _pass(network, (images,), backward)


def bert(backward: bool) -> Ready:
    config = inputs.grid_config()
    tower = pytorch_peer.BertTower(config)
    batch = inputs.captions(config, rows.CAPTIONS, train=False)
    ids, lengths = _captions(batch)
    return _pass(_Features(tower), (ids, lengths), backward)


class _Features(nn.Module):
    """BERT's last hidden state, zero beyond the captions' ends."""

    def __init__(self, tower: pytorch_peer.BertTower):
        super().__init__()
        self.bert = tower.bert

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        states = self.bert(ids, attention_mask=mask.long()).last_hidden_state
        return states.masked_fill(~mask[..., None], 0)


def _pass(module: nn.Module, arguments: tuple[Tensor, ...], backward: bool) -> Ready:
    """module(*arguments), or with the gradients of its parameters."""
    module = _channels_last(module).train(backward)

    def forward_only(module: nn.Module) -> Callable[[], None]:
        @torch.inference_mode()
        def run():
            module(*arguments)

        return run

    def both(module: nn.Module) -> Callable[[], None]:
        def run():
            module.zero_grad(set_to_none=True)
            output = module(*arguments)
            output.backward(torch.ones_like(output))

        return run

    return _faster(module, both if backward else forward_only)


def training(config: Config) -> Ready:
    """A whole step: towers, loss, gradients, clipping and AdamW."""
    batch = inputs.training_batch(config)
    if config.image.kind == "grid":
        images: tuple[Tensor, ...] = (_images(batch),)
    else:
        longest = int(batch["region_lengths"].max())
        regions = torch.from_numpy(batch["regions"][:, :longest])
        images = regions, torch.from_numpy(batch["region_lengths"])
    captions = _captions(batch)

    def stepping(model: nn.Module) -> Callable[[], object]:
        step = TrainStep(model, config)
        return lambda: step(images, captions)

    return _faster(_channels_last(pytorch_peer.VSE(config)), stepping)


def _faster(
    module: nn.Module,
    ready: Callable[[nn.Module], Callable[[], object]],
    count: bool = True,
) -> Ready:
    """The module as it is or through torch.compile, whichever is faster here.

    Args:
        ready: module → what a turn does with it.
        count: the FLOP of products and convolutions, which PyTorch knows.
    """
    compiled: Any = torch.compile(module)
    ways = {"eager": ready(module), "compiled": ready(compiled)}
    flops = None
    if count:
        with FlopCounterMode(display=False) as counter:
            ways["eager"]()
        flops = float(counter.get_total_flops())
        ways["eager"]()
    ways["compiled"]()
    trials = [_trial(ways)]
    if sum(trials[0].values()) < _SLOW:  # a second chance against a machine's moods
        trials.append(_trial(ways))
    best = min(ways, key=lambda name: min(trial[name] for trial in trials))
    return Ready(repeated(ways[best]), flops, best)


def _trial(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    return {name: repeated(run, _TRIAL)() for name, run in ways.items()}


def _channels_last(module: nn.Module) -> nn.Module:
    """Kernels stored as convolutions of such images want them."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _images(batch: Batch) -> Tensor:
    """batch['images'] [b, h, w, 3] as PyTorch's [b, 3, h, w], stored as it is."""
    return torch.from_numpy(batch["images"]).permute(0, 3, 1, 2)


def _captions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Token ids up to the longest caption, and lengths."""
    lengths = batch["token_lengths"]
    ids = np.ascontiguousarray(batch["token_ids"][:, : lengths.max()])
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def metrics() -> Ready:
    """As the official program has it, in NumPy: a sort for every query."""
    images, captions = inputs.embeddings(5000, 1024)

    def run():
        _ranks(images, captions)
        for fold in range(0, len(images), 1000):
            own = slice(5 * fold, 5 * (fold + 1000))
            _ranks(images[fold : fold + 1000], captions[own])

    # Every pair of the 5K protocol once; the folds' are among them.
    flops = 2.0 * len(images) * len(captions) * images.shape[1]
    return Ready(repeated(run), flops)


def _ranks(images: np.ndarray, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks from 0, image → captions and caption → images."""
    similarity = images @ captions.T
    of_images = np.zeros(len(images), int)
    for image, row in enumerate(similarity):
        order = np.argsort(row)[::-1]
        own = range(5 * image, 5 * image + 5)
        of_images[image] = min(np.where(order == c)[0][0] for c in own)
    of_captions = np.zeros(len(captions), int)
    for caption, row in enumerate(similarity.T):
        order = np.argsort(row)[::-1]
        of_captions[caption] = np.where(order == caption // 5)[0][0]
    return of_images, of_captions


def encode() -> Ready:
    """As the official program has it: each image once for each of its captions."""
    config = inputs.grid_config()
    root, pairs = _photographs(config, rows.ENCODED, train=False)
    loader = _loader(pairs, rows.ENCODED, shuffle=False)

    def ready(model: nn.Module) -> Callable[[], None]:
        @torch.inference_mode()
        def run():
            assert root.name  # its files are there as long as this function
            for images, ids, lengths in loader:
                images = images.contiguous(memory_format=torch.channels_last)
                model((images,), (ids, lengths))

        return run

    model = _channels_last(pytorch_peer.VSE(config)).eval()
    return _faster(model, ready, count=False)


def pipeline(size: int) -> Ready:
    """Batches of a DataLoader with a process for each core, after two that start it."""
    config = inputs.grid_config(size, rows.PIPELINE_BATCH)
    root, pairs = _photographs(config, 2 * rows.PIPELINE_BATCH, train=True)
    loader = _loader(pairs, rows.PIPELINE_BATCH, shuffle=True)

    def turn() -> float:
        assert root.name
        batches = iter(loader)
        for _ in range(2):
            next(batches)
        return repeated(
            lambda: [next(batches) for _ in range(rows.PIPELINE_BATCHES)], 0
        )()

    turn()
    return Ready(turn)


def _loader(pairs: Pairs, batch_size: int, shuffle: bool) -> DataLoader:
    """A process for each core, which stays for the next epoch."""
    return DataLoader(
        pairs,
        batch_size,
        shuffle=shuffle,
        collate_fn=collate,
        num_workers=torch.get_num_threads(),
        persistent_workers=True,
    )


def _photographs(
    config: Config, count: int, train: bool
) -> tuple[tempfile.TemporaryDirectory, Pairs]:
    """(folder that goes with the object, its pictures and captions)."""
    folder = tempfile.TemporaryDirectory()
    config = with_fields(config, {"data.root": f"{folder.name}/photographs"})
    inputs.write_photographs(Path(config.data.root), count)
    split = read_split(config, "train")
    tokens = caption_tokenizer(config)(split.captions)
    return folder, Pairs(config, split, tokens, train)


def prepare() -> None:
    """Start values that are the same in every run."""
    torch.manual_seed(0)


ROWS: dict[str, Callable[[], Ready]] = {
    rows.PEAK: matrix_product,
    **{rows.gpo(shape): partial(gpo, shape) for shape in rows.GPO_SHAPES},
    rows.CNN_FORWARD: partial(cnn, backward=False),
    rows.CNN_BOTH: partial(cnn, backward=True),
    rows.BERT_FORWARD: partial(bert, backward=False),
    rows.BERT_BOTH: partial(bert, backward=True),
    rows.REGION_STEP: lambda: training(inputs.region_config()),
    rows.GRID_STEP: lambda: training(inputs.grid_config()),
    rows.METRICS: metrics,
    rows.ENCODE: encode,
    **{rows.pipeline(size): partial(pipeline, size) for size in rows.PIPELINE_SIZES},
}
