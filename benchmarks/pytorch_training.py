"""The peer's training step: loss, clipping and AdamW of the published recipe."""

import torch
from torch import Tensor, nn

from vse_jax.config import Config


def hinge_loss(
    images: Tensor, captions: Tensor, margin: float, hardest: bool
) -> Tensor:
    """Triplet loss (Eq. 5) of embeddings [b, d], summed over the batch.

    `hardest`: of the negatives only the hardest of each row and column.
    """
    scores = images @ captions.T
    right = scores.diagonal()
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    by_image = (margin + scores - right[:, None]).clamp(min=0).masked_fill(own, 0)
    by_caption = (margin + scores - right).clamp(min=0).masked_fill(own, 0)
    if hardest:
        return by_image.max(dim=1).values.sum() + by_caption.max(dim=0).values.sum()
    return by_image.sum() + by_caption.sum()


class TrainStep:
    """One optimizer step of a model, every parameter of which trains.

    Args:
        model: the peer, or torch.compile's version of it.
        config: its margin, clipping and optimizer; the learning-rate factors are the
            groups' of config.optimizer.rules.
    """

    def __init__(self, model: nn.Module, config: Config):
        self._model = model.train()
        self._margin, self._clip = config.loss.margin, config.optimizer.clip
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            groups.setdefault(_factor(name), []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": members, "lr": factor * config.optimizer.learning_rate}
                for factor, members in groups.items()
            ],
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )

    def scale_rate(self, factor: float) -> None:
        """Multiplies every group's learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] *= factor

    def __call__(
        self,
        images: tuple[Tensor, ...],
        captions: tuple[Tensor, ...],
        hardest: bool = True,
    ) -> tuple[float, float]:
        """The batch's loss, and the gradients' norm before clipping."""
        self._optimizer.zero_grad(set_to_none=True)
        embedded, spoken = self._model(images, captions)
        loss = hinge_loss(embedded, spoken, self._margin, hardest)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        return loss.item(), norm.item()


def _factor(name: str) -> float:
    """A parameter's share of the learning rate (`common.grid_rules`)."""
    if ".backbone." in name:
        return 0.01
    return 0.1 if ".bert." in name else 1.0
