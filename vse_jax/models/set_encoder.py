"""What all towers are: a set of vectors from a batch, then a pooling."""

from flax import nnx
from jaxtyping import Array, Float

from vse_jax.models.pooling import Members


class SetEncoder(nnx.Module):
    """A tower: `members` makes the sets of a batch, `gpool` pools them."""

    gpool: nnx.Module

    def __call__(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b d"]:
        """Returns the pooled vectors of a batch, float32; arguments: see `members`."""
        return self.gpool(*self.members(batch, train=train, rngs=rngs))

    def members(
        self,
        batch: dict[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Members:
        """Returns the vectors [b, k, d] that are pooled, and which are real [b, k]."""
        raise NotImplementedError
