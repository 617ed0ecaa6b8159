"""Pictures and captions for the peer: a Dataset with PIL transforms."""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from vse_jax.config import Config
from vse_jax.data.dataset import Split
from vse_jax.data.tokenizers import CaptionTokens

_BGR_MEAN = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]


class Pairs(Dataset):
    """A picture and a caption for every caption, as the official program has them.

    Args:
        config: size of the pictures, and the training crop's.
        split: where they lie.
        tokens: of its captions.
        train: crop and mirror.
    """

    def __init__(
        self, config: Config, split: Split, tokens: CaptionTokens, train: bool
    ):
        self._image = config.image
        assert isinstance(split.images, list)
        self._pictures = [str(path) for path in split.images]
        self._per_image = split.captions_per_image
        self._ids = [
            torch.from_numpy(tokens.ids[tokens.span(caption)])
            for caption in range(len(tokens))
        ]
        self._train = train

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, caption: int) -> tuple[Tensor, Tensor]:
        path = self._pictures[caption // self._per_image]
        with Image.open(path) as picture:
            pixels = self._transformed(picture.convert("RGB"))
        return pixels, self._ids[caption]

    def _transformed(self, picture: Image.Image) -> Tensor:
        """Crop → resize → mirror → [3, s, s] float32, BGR minus the means."""
        size = self._image.size
        if self._train:
            picture = picture.crop(_crop(*picture.size, self._image.crop_min))
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        if self._train and random.random() < self._image.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels.flip(0).float().sub_(_BGR_MEAN)


def _crop(width: int, height: int, least: float) -> tuple[int, int, int, int]:
    """A box of one ratio for both sides, at a uniform place."""
    ratio = random.uniform(least, 1)
    crop_width, crop_height = int(width * ratio), int(height * ratio)
    left = random.randint(0, width - crop_width)
    top = random.randint(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def collate(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [b, 3, s, s], token ids padded to the longest [b, t], lengths [b]."""
    images, ids = zip(*pairs, strict=True)
    lengths = torch.tensor([len(row) for row in ids])
    return torch.stack(images), pad_sequence(list(ids), batch_first=True), lengths
