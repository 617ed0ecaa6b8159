"""Image towers: from pixels or region features to pooled vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from vse_jax.models.batch_norm import BatchNorm
from vse_jax.models.initializers import constant, uniform
from vse_jax.models.layers import linear
from vse_jax.models.pooling import Members
from vse_jax.models.resnet import ResNet
from vse_jax.models.set_encoder import SetEncoder
from vse_jax.models.vit import ViT

# Share of the training images whose grid is never thinned (the official constant).
_WHOLE_GRIDS = 0.2


class GridEncoder(SetEncoder):
    """CNN → linear → pooling over the cells of the last feature map.

    `drop`: size augmentation (paper, section 4.3); 0: none.
    """

    def __init__(
        self, backbone: ResNet, fc: nnx.Linear, pool: nnx.Module, *, drop: float
    ):
        self.backbone = backbone
        self.fc = fc
        self.gpool = pool
        self.drop = drop

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the cells of batch['images'] [b, h, w, 3], row by row."""
        grid = self.backbone(batch["images"], train=train)
        cells = grid.reshape(grid.shape[0], -1, grid.shape[-1])
        return self.fc(cells), _cells(cells, self.drop if train else 0, rngs)


class ViTEncoder(SetEncoder):
    """ViT → linear → pooling over the patches; without `fc` the tokens are pooled.

    `drop`: as in `GridEncoder`.
    """

    def __init__(
        self, vit: ViT, fc: nnx.Linear | None, pool: nnx.Module, *, drop: float
    ):
        self.vit = vit
        self.fc = fc
        self.gpool = pool
        self.drop = drop

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the patches of batch['images'] [b, s, s, 3], row by row."""
        tokens = self.vit(batch["images"], train=train)
        mask = _cells(tokens, self.drop if train else 0, rngs)
        return tokens if self.fc is None else self.fc(tokens), mask


class RegionEncoder(SetEncoder):
    """Linear + residual perceptron on each region → pooling."""

    def __init__(self, fc: nnx.Linear, mlp: "MLP", pool: nnx.Module):
        self.fc = fc
        self.mlp = mlp
        self.gpool = pool

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the vectors of batch['regions'] [b, k, f].

        batch['region_lengths'] [b] holds the set sizes; what lies beyond has no effect.
        """
        lengths = batch["region_lengths"]
        position = jnp.arange(batch["regions"].shape[1])
        mask = position < lengths[:, None]
        regions = jnp.where(mask[..., None], batch["regions"], 0)
        # The official batch statistics count zero rows, up to the batch's longest set.
        counted = jnp.broadcast_to(position < lengths.max(), mask.shape)
        return self.fc(regions) + self.mlp(regions, counted, train=train), mask


class MLP(nnx.Module):
    """Linear → batch normalisation → ReLU → linear."""

    def __init__(self, in_features, hidden, out_features, *, dtype, rngs):
        self.hidden = linear(in_features, hidden, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(hidden)
        self.output = linear(hidden, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x, counted, *, train):
        x = self.bn(self.hidden(x), train=train, mask=counted)
        return self.output(jax.nn.relu(x))


def xavier_linear(
    in_features: int, out_features: int, *, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer that starts from U(±√(6 / (in + out))), its bias from 0."""
    bound = (6 / (in_features + out_features)) ** 0.5
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=uniform(bound),
        bias_init=constant(0.0),
        dtype=dtype,
        rngs=rngs,
    )


def _cells(cells, drop, rngs):
    """[b, k]: all of the cells, or those that size augmentation leaves."""
    mask = jnp.ones(cells.shape[:2], bool)
    if drop > 0:
        assert rngs is not None
        mask = _thin(rngs.size(), mask, drop)
    return mask


def _thin(key: Array, mask: Bool[Array, "b k"], drop: float) -> Bool[Array, "b k"]:
    """Drops cells from full masks: size augmentation (VSE∞, section 4.3).

    An image draws u ~ U(0, 1); above `_WHOLE_GRIDS` each of its cells is dropped with
    probability drop · u. The cell with the highest draw always stays.
    """
    image_key, cell_key = jax.random.split(key)
    u = jax.random.uniform(image_key, (len(mask), 1))
    threshold = jnp.where(u > _WHOLE_GRIDS, drop * u, 0)
    draws = jax.random.uniform(cell_key, mask.shape)
    return draws >= jnp.minimum(threshold, draws.max(axis=1, keepdims=True))
