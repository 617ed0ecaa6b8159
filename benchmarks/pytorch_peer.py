"""The model, its data and its training in PyTorch, to compare numbers and speed with.

Written after the paper (VSE∞, CVPR 2021) with the names of the official checkpoints, so
that the tables of vse_jax/checkpoints/torch/keys.py give it the weights of ours.
"""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import (
    pack_padded_sequence,
    pad_packed_sequence,
    pad_sequence,
)
from torch.utils.data import Dataset
from transformers import BertConfig, BertModel

from vse_jax.config import Config
from vse_jax.data.collate import Batch
from vse_jax.data.dataset import Split
from vse_jax.data.tokenizers import CaptionTokens

_BGR_MEAN = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]


class Bottleneck(nn.Module):
    """1×1 → 3×3 → 1×1 with a residual connection.

    The stride is on the first 1×1 (`caffe`), else on the 3×3.
    """

    def __init__(
        self, before: int, inner: int, after: int, stride: int, groups: int, caffe: bool
    ):
        super().__init__()
        first, second = (stride, 1) if caffe else (1, stride)
        self.conv1 = nn.Conv2d(before, inner, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = nn.Sequential()  # the identity
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Backbone(nn.Module):
    """ResNet of bottlenecks, as config.image.backbone says: [b, 3, h, w] → a grid.

    Its statistics stay as they are in training, too (the published recipe).
    """

    def __init__(self, config: Config):
        super().__init__()
        c = config.image.backbone
        if c.stem != "conv7" or c.block not in ("v1", "torchvision"):
            raise ValueError(f"no stem {c.stem} with blocks {c.block} here")
        caffe = c.block == "v1"
        before = c.width
        stages = []
        for stage, count in enumerate(c.layers):
            after = 4 * c.width * 2**stage
            inner = after // 4 * c.group_width // 64 * c.groups
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(before, inner, after, stride, c.groups, caffe))
                before = after
            stages.append(nn.Sequential(*blocks))
        self.base = nn.Sequential(
            nn.Conv2d(3, c.width, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(c.width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=0 if caffe else 1, ceil_mode=caffe),
            *stages[:-1],
        )
        self.top = nn.Sequential(stages[-1])
        self.channels = before

    def forward(self, images: Tensor) -> Tensor:
        return self.top(self.base(images))

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class GPO(nn.Module):
    """Generalized pooling operator (section 3): sets [b, k, d] → [b, d]."""

    def __init__(self, positions: int = 32, hidden: int = 32):
        super().__init__()
        self.positions = positions
        self.gru = nn.GRU(positions, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden, 1, bias=False)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """`mask` [b, k]: the elements of each set, anywhere."""
        # In float32, as ours is, whatever the towers compute in.
        with torch.autocast(features.device.type, enabled=False):
            count, size, _ = features.shape
            features = features.float()
            lengths = mask.sum(dim=1)
            beyond = torch.arange(size, device=mask.device) >= lengths[:, None]
            packed = pack_padded_sequence(
                self._encoding(size, features).expand(count, -1, -1),
                lengths.cpu(),
                batch_first=True,
                enforce_sorted=False,
            )
            states, _ = pad_packed_sequence(
                self.gru(packed)[0], batch_first=True, total_length=size
            )
            forward, backward = states.chunk(2, dim=-1)
            scores = self.linear((forward + backward) / 2).squeeze(-1)
            weights = scores.masked_fill(beyond, -1e4).div(0.1).softmax(dim=-1)
            lowest = torch.finfo(features.dtype).min
            features = features.masked_fill(~mask[..., None], lowest)
            # Values of a dimension side by side: sorted in half the time.
            features = features.transpose(1, 2).contiguous()
            features = features.sort(dim=-1, descending=True).values
            features = features.masked_fill(beyond[:, None], 0)
            return (features @ weights[..., None]).squeeze(-1)

    def _encoding(self, size: int, like: Tensor) -> Tensor:
        """Sines and cosines of the positions, interleaved [size, positions]."""
        exponents = torch.arange(0, self.positions, 2, device=like.device)
        frequencies = 10000.0 ** (-exponents.double() / self.positions)
        angles = torch.arange(size, device=like.device)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like)


class GridEncoder(nn.Module):
    """Linear → GPO → unit length, over the cells of a feature map.

    `drop`: size augmentation in training (section 4.3).
    """

    def __init__(self, channels: int, embed_dim: int, drop: float):
        super().__init__()
        self.fc = nn.Linear(channels, embed_dim)
        self.gpool = GPO()
        self.drop = drop

    def forward(self, grid: Tensor) -> Tensor:
        cells = grid.flatten(2).transpose(1, 2)
        draws = torch.ones(cells.shape[:2], device=cells.device)
        threshold = torch.zeros(len(cells), 1, device=cells.device)
        if self.training and self.drop > 0:
            u = torch.rand_like(threshold)
            draws, threshold = torch.rand_like(draws), self.drop * u * (u > 0.2)
        mask = draws >= threshold.minimum(draws.amax(dim=1, keepdim=True))
        return _unit(self.gpool(self.fc(cells), mask))


class GridTower(nn.Module):
    """Preprocessed images [b, 3, h, w] → embeddings [b, d]."""

    def __init__(self, config: Config):
        super().__init__()
        self.backbone = Backbone(config)
        self.image_encoder = GridEncoder(
            self.backbone.channels, config.embed_dim, config.image.drop
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.image_encoder(self.backbone(images))


class MLP(nn.Module):
    """Linear → batch normalisation → ReLU → linear."""

    def __init__(self, in_features: int, hidden: int, out_features: int):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(in_features, hidden), nn.Linear(hidden, out_features)]
        )
        self.bns = nn.ModuleList([nn.BatchNorm1d(hidden)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bns[0](self.layers[0](x).flatten(0, 1))
        return self.layers[1](F.relu(hidden)).unflatten(0, x.shape[:2])


class RegionTower(nn.Module):
    """Region features [b, k, f], zero-padded to the longest set, and lengths [b]."""

    def __init__(self, config: Config):
        super().__init__()
        features, embed_dim = config.image.feature_dim, config.embed_dim
        self.fc = nn.Linear(features, embed_dim)
        self.mlp = MLP(features, embed_dim // 2, embed_dim)
        self.gpool = GPO()

    def forward(self, regions: Tensor, lengths: Tensor) -> Tensor:
        x = self.fc(regions) + self.mlp(regions)
        return _unit(self.gpool(x, _mask(x, lengths)))


class BertTower(nn.Module):
    """Token ids [b, t], zero-padded, and lengths [b] → embeddings [b, d]."""

    def __init__(self, config: Config):
        super().__init__()
        text = config.text
        self.bert = BertModel(
            BertConfig(
                vocab_size=text.vocab_size,
                hidden_size=text.hidden,
                num_hidden_layers=text.layers,
                num_attention_heads=text.heads,
                intermediate_size=text.ffn,
                max_position_embeddings=text.max_positions,
                hidden_dropout_prob=text.dropout,
                attention_probs_dropout_prob=text.dropout,
            ),
            add_pooling_layer=False,
        )
        self.linear = nn.Linear(text.hidden, config.embed_dim)
        self.gpool = GPO()

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        mask = _mask(token_ids, lengths)
        tokens = self.bert(token_ids, attention_mask=mask.long()).last_hidden_state
        return _unit(self.gpool(self.linear(tokens), mask))


class VSE(nn.Module):
    """Both towers, under the names of the official trajectories."""

    def __init__(self, config: Config):
        super().__init__()
        grid = config.image.kind == "grid"
        self.img_enc = GridTower(config) if grid else RegionTower(config)
        self.txt_enc = BertTower(config)

    def forward(
        self, images: tuple[Tensor, ...], captions: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [b, d] of the towers' inputs."""
        return self.img_enc(*images), self.txt_enc(*captions)


def _mask(sets: Tensor, lengths: Tensor) -> Tensor:
    """[b, k]: the first `lengths` of each set."""
    return torch.arange(sets.shape[1], device=sets.device) < lengths[:, None]


def _unit(x: Tensor) -> Tensor:
    """Rows divided by their norm + 1e-8 (the official constant)."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-8)


# ---- Data ----------------------------------------------------------------------------


def image_tensors(batch: Batch) -> tuple[Tensor, ...]:
    """The image tower's inputs; images [b, h, w, 3] become [b, 3, h, w] in place."""
    if "images" in batch:
        return (torch.from_numpy(batch["images"]).permute(0, 3, 1, 2),)
    lengths = batch["region_lengths"]
    regions = batch["regions"][:, : lengths.max()]
    return torch.from_numpy(regions), torch.from_numpy(lengths)


def caption_tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """The text tower's inputs: token ids up to the longest caption, and lengths."""
    lengths = batch["token_lengths"]
    ids = np.ascontiguousarray(batch["token_ids"][:, : lengths.max()])
    return torch.from_numpy(ids), torch.from_numpy(lengths)


class Pairs(Dataset):
    """An image and a caption for every caption, as the official program has them.

    `train`: crop and mirror.
    """

    def __init__(
        self, config: Config, split: Split, tokens: CaptionTokens, train: bool
    ):
        self._config, self._train = config.image, train
        assert isinstance(split.images, list)
        self._paths = [str(path) for path in split.images]
        self._image_of = split.caption_images.tolist()
        spans = map(tokens.span, range(len(tokens)))
        self._ids = [torch.from_numpy(tokens.ids[span]) for span in spans]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, caption: int) -> tuple[Tensor, Tensor]:
        """[3, s, s] float32, BGR minus the means; token ids."""
        size = self._config.size
        with Image.open(self._paths[self._image_of[caption]]) as file:
            image = file.convert("RGB")
        if self._train:
            # A box of one ratio for both sides, uniformly placed.
            ratio = random.uniform(self._config.crop_min, 1)
            width, height = int(image.width * ratio), int(image.height * ratio)
            left = random.randint(0, image.width - width)
            top = random.randint(0, image.height - height)
            image = image.crop((left, top, left + width, top + height))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        if self._train and random.random() < self._config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.flip(0).float().sub_(_BGR_MEAN), self._ids[caption]


def collate(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [b, 3, s, s], token ids padded to the longest [b, t], lengths [b]."""
    images, ids = zip(*pairs, strict=True)
    lengths = torch.tensor([len(row) for row in ids])
    return torch.stack(images), pad_sequence(list(ids), batch_first=True), lengths


# ---- Training ------------------------------------------------------------------------


def hinge_loss(
    images: Tensor, captions: Tensor, margin: float, hardest: bool
) -> Tensor:
    """Triplet loss (Eq. 5) of embeddings [b, d], summed over the batch.

    `hardest`: of the negatives only the hardest of each row and column.
    """
    scores = images @ captions.T
    positive = scores.diagonal()
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    by_image = (margin + scores - positive[:, None]).clamp(min=0).masked_fill(own, 0)
    by_caption = (margin + scores - positive).clamp(min=0).masked_fill(own, 0)
    if hardest:
        return by_image.max(dim=1).values.sum() + by_caption.max(dim=0).values.sum()
    return by_image.sum() + by_caption.sum()


class TrainStep:
    """One step of AdamW in a model, every parameter of which trains.

    Args:
        model: VSE, or torch.compile's version of it.
        config: its dtype, margin, clipping and optimizer; the learning-rate factors are
            those of `grid_rules`.
    """

    def __init__(self, model: nn.Module, config: Config):
        self._model = model.train()
        self._margin, self._clip = config.loss.margin, config.optimizer.clip
        self._bfloat16 = config.compute_dtype == "bfloat16"
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            factor = 0.01 if ".backbone." in name else 0.1 if ".bert." in name else 1.0
            groups.setdefault(factor, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": group, "lr": factor * config.optimizer.learning_rate}
                for factor, group in groups.items()
            ],
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )

    def __call__(
        self,
        images: tuple[Tensor, ...],
        captions: tuple[Tensor, ...],
        hardest: bool = True,
    ) -> tuple[float, float]:
        """The batch's loss, and the gradients' norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            images[0].device.type, torch.bfloat16, enabled=self._bfloat16
        ):
            embedded, spoken = self._model(images, captions)
        loss = hinge_loss(embedded, spoken, self._margin, hardest)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self.optimizer.step()
        return loss.item(), norm.item()
