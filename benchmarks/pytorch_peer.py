"""The grid, region and BERT towers in PyTorch, to compare numbers and speed with.

Written after the paper (VSE∞, CVPR 2021) with the names of the official checkpoints, so
that the tables of vse_jax/checkpoints/torch/keys.py give them the weights of ours.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import BertConfig, BertModel

from vse_jax.config import Config


class Bottleneck(nn.Module):
    """1×1 → 3×3 → 1×1 with a residual connection.

    Args:
        inner: channels of the 3×3.
        stride_first: the stride is on the first 1×1 (Caffe), else on the 3×3.
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        channels: int,
        stride: int,
        *,
        groups: int,
        stride_first: bool,
    ):
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, second, padding=1, groups=groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()  # the identity
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

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
        channels = c.width
        stages = []
        for stage, count in enumerate(c.layers):
            planes = c.width * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(
                    Bottleneck(
                        channels,
                        planes * c.group_width // 64 * c.groups,
                        4 * planes,
                        stride=2 if stage > 0 and index == 0 else 1,
                        groups=c.groups,
                        stride_first=caffe,
                    )
                )
                channels = 4 * planes
            stages.append(nn.Sequential(*blocks))
        self.base = nn.Sequential(
            nn.Conv2d(3, c.width, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(c.width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=0 if caffe else 1, ceil_mode=caffe),
            *stages[:-1],
        )
        self.top = nn.Sequential(stages[-1])
        self.channels = channels

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
        """`mask` [b, k]: the members of each set, in any places."""
        count, size, _ = features.shape
        lengths = mask.sum(dim=1)
        beyond = torch.arange(size, device=mask.device) >= lengths[:, None]
        packed = pack_padded_sequence(
            self._encoding(size).to(features).expand(count, -1, -1),
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

    def _encoding(self, size: int) -> Tensor:
        """Sines and cosines of the positions, interleaved [size, positions]."""
        even = torch.arange(0, self.positions, 2, dtype=torch.float64)
        frequencies = 10000.0 ** (-even / self.positions)
        angles = torch.arange(size)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


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
        tokens = self.features(token_ids, lengths)
        return _unit(self.gpool(self.linear(tokens), _mask(tokens, lengths)))

    def features(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """BERT's last hidden state [b, t, h]."""
        mask = _mask(token_ids, lengths).long()
        return self.bert(token_ids, attention_mask=mask).last_hidden_state


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
