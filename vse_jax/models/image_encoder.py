"""Image encoders: grid cells, patches or regions become a set, which is pooled."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from vse_jax.config import Config
from vse_jax.models.layers import BatchNorm, linear
from vse_jax.models.pooling import build_pool
from vse_jax.models.resnet import ResNet
from vse_jax.models.siglip import ViT
from vse_jax.models.vse import Elements, SetEncoder

# Share of the training images whose grid keeps all cells (the official constant).
_WHOLE_GRIDS = 0.2


class GridEncoder(SetEncoder):
    """CNN → linear → pooling over the cells of the last feature map, row by row."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dtype, cnn = np.dtype(config.compute_dtype), config.image.backbone
        self.backbone = ResNet(cnn, remat=config.remat, dtype=dtype, rngs=rngs)
        channels, embed = self.backbone.channels, config.embed_dim
        self.fc = linear(channels, embed, init="xavier", dtype=dtype, rngs=rngs)
        self.gpool = build_pool(config, "image", embed, rngs=rngs)
        self.drop = config.image.drop

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns the cells of batch['images'] [b, h, w, 3]; see `SetEncoder`."""
        grid = self.backbone(batch["images"], train=train)
        cells = grid.reshape(grid.shape[0], -1, grid.shape[-1])
        return self.fc(cells), _kept_cells(cells, self.drop if train else 0.0, rngs)


class ViTEncoder(SetEncoder):
    """ViT → linear → pooling over the patches, row by row.

    SigLIP's own pooling, 'map', pools the tokens themselves; its vector is the
    embedding.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        image, vit = config.image, config.image.vit
        dtype, embed = np.dtype(config.compute_dtype), config.embed_dim
        self.vit = ViT(image, remat=config.remat, dtype=dtype, rngs=rngs)
        if image.pool == "map":
            self.fc = None
            sizes = {"heads": vit.heads, "ffn": vit.ffn}
            self.gpool = build_pool(config, "image", vit.hidden, rngs=rngs, **sizes)
        else:
            self.fc = linear(vit.hidden, embed, init="xavier", dtype=dtype, rngs=rngs)
            self.gpool = build_pool(config, "image", embed, rngs=rngs)
        self.drop = image.drop

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns the patches of batch['images'] [b, s, s, 3]; see `SetEncoder`.

        NaFlex: of batch['patches'] [b, k, p, p, 3], images of any aspect, of whose
        columns and rows batch['grid_lengths'] [b, 2] says how many patches they have.
        """
        if "patches" in batch:
            tokens, real = self.vit.any_aspect(
                batch["patches"], batch["grid_lengths"], train=train
            )
        else:
            tokens, real = self.vit(batch["images"], train=train), None
        mask = _kept_cells(tokens, self.drop if train else 0.0, rngs, real)
        return tokens if self.fc is None else self.fc(tokens), mask


class RegionEncoder(SetEncoder):
    """Linear + residual MLP on each region → pooling."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dtype = np.dtype(config.compute_dtype)
        features, embed = config.image.feature_dim, config.embed_dim
        self.fc = linear(features, embed, init="xavier", dtype=dtype, rngs=rngs)
        self.mlp = RegionMLP(features, embed // 2, embed, dtype=dtype, rngs=rngs)
        self.gpool = build_pool(config, "image", embed, rngs=rngs)

    def elements(self, batch, *, train=False, rngs=None) -> Elements:
        """Returns the mapped batch['regions'] [b, k, f]; see `SetEncoder`.

        batch['region_lengths'] [b] holds the set sizes; what lies beyond has no effect.
        """
        lengths = batch["region_lengths"]
        position = jnp.arange(batch["regions"].shape[1])
        mask = position < lengths[:, None]
        regions = jnp.where(mask[..., None], batch["regions"], 0)
        # The official batch statistics count zero rows, up to the batch's longest set.
        counted = jnp.broadcast_to(position < lengths.max(), mask.shape)
        return self.fc(regions) + self.mlp(regions, counted, train=train), mask


class RegionMLP(nnx.Module):
    """Linear → batch normalization → ReLU → linear."""

    def __init__(self, in_features, hidden, out_features, *, dtype, rngs):
        self.hidden = linear(in_features, hidden, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(hidden)
        self.output = linear(hidden, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x, counted, *, train):
        x = self.bn(self.hidden(x), train=train, mask=counted)
        return self.output(jax.nn.relu(x))


def _kept_cells(
    cells,
    drop: float,
    rngs: nnx.Rngs | None,
    real: Bool[Array, "b k"] | None = None,
) -> Bool[Array, "b k"]:
    """All cells [b, k, d], or those that size augmentation keeps (VSE∞, section 4.3).

    An image draws u ~ U(0, 1); above `_WHOLE_GRIDS` each of its cells is dropped with
    probability drop · u. The cell with the highest draw always stays. `real`: those
    that an image has; None: all.
    """
    b, k = cells.shape[:2]
    if drop == 0:
        return jnp.ones((b, k), bool) if real is None else real
    assert rngs is not None
    image_key, cell_key = jax.random.split(rngs.size())
    u = jax.random.uniform(image_key, (b, 1))
    threshold = jnp.where(u > _WHOLE_GRIDS, drop * u, 0)
    draws = jax.random.uniform(cell_key, (b, k))
    if real is not None:
        draws = jnp.where(real, draws, -1)
    return draws >= jnp.minimum(threshold, draws.max(axis=1, keepdims=True))
