"""The triplet hinge losses VSE0 and VSE++."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def hinge_loss(
    images: Float[Array, "b d"],
    captions: Float[Array, "b d"],
    margin: float,
    hardest: bool | Bool[Array, ""],
) -> Float[Array, ""]:
    """Returns the loss of a batch of matching pairs, summed over the batch.

    Every other caption of the batch is a negative of an image and every other image one
    of a caption; a negative costs max(0, margin + its similarity − the pair's).

    Args:
      images: embeddings; row i matches row i of `captions`.
      captions: embeddings.
      margin: of the hinge, in units of similarity.
      hardest: sum over the most violating negative of each row and column only
        (VSE++) instead of over all of them (VSE0). May be traced.
    """
    similarity = jnp.matmul(images, captions.T, precision=jax.lax.Precision.HIGHEST)
    pairs = jnp.diagonal(similarity)
    same = jnp.eye(len(images), dtype=bool)

    def cost(positives):
        return jnp.where(same, 0, jax.nn.relu(margin + similarity - positives))

    per_image, per_caption = cost(pairs[:, None]), cost(pairs[None, :])
    return jnp.where(
        hardest,
        per_image.max(axis=1).sum() + per_caption.max(axis=0).sum(),
        per_image.sum() + per_caption.sum(),
    )
