"""Our InfoNCE in place of open_clip's `ClipLoss`; open_clip itself is not imported."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from svilm_fast.kernels.infonce import distributed_infonce, infonce


class FusedClipLoss(nn.Module):
    """open_clip's `ClipLoss` without its matrix of logits: same arguments, values and gradients.

    In open_clip's training: `loss = FusedClipLoss(local_loss=args.local_loss, ...)` in place of
    `ClipLoss(...)`. Over ranks, each rank keeps its image features and all-gathers the text
    features. `ClipLoss` has three meanings over ranks, and so has this class:

    * `local_loss` and `gather_with_grad`: the loss of the rank's own rows and columns. DDP's
      average of the gradients is the gradient of the loss of the global batch.
    * `gather_with_grad` alone: the loss of the global batch on every rank; the same gradients.
    * neither: the loss of the global batch; averaged gradients of the features are 1 / world_size
      of the above, the gradient of the scale is the same.

    Args:
        local_loss, gather_with_grad, rank, world_size: as in `ClipLoss`.
        cache_labels: accepted and not needed.
        use_horovod: must be false.

    Raises:
        ValueError: `local_loss` without `gather_with_grad` over ranks, whose gradient in `ClipLoss`
            lacks the terms of other ranks; Horovod; a rank or world size that is not the process
            group's.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        del cache_labels
        if use_horovod:
            raise ValueError("FusedClipLoss needs torch.distributed; it does not use Horovod")
        if world_size > 1 and local_loss and not gather_with_grad:
            raise ValueError(
                "local_loss without gather_with_grad drops the gradient of other ranks' terms, so "
                "it is not the gradient of the batch: start open_clip with --gather-with-grad too"
            )
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.rank = rank
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The symmetric contrastive loss; collective on all ranks.

        Args:
            image_features, text_features: [b, D], unit norm.
            logit_scale: 0-dim factor on the similarities.
            logit_bias: a constant on all logits, which changes no softmax.
            output_dict: return `{"contrastive_loss": loss}`.
        """
        scale: Any = logit_scale.reshape(()) if isinstance(logit_scale, Tensor) else logit_scale
        # Under autocast the encoders may end in different dtypes; a product would cast them.
        dtype = torch.promote_types(image_features.dtype, text_features.dtype)
        image_features, text_features = image_features.to(dtype), text_features.to(dtype)
        if self.world_size == 1:
            loss = infonce(image_features, text_features, scale)
        else:
            loss = self._over_ranks(image_features, text_features, scale)
        if logit_bias is not None:
            loss = loss + 0.0 * logit_bias.sum()  # DDP expects a gradient of every parameter
        return {"contrastive_loss": loss} if output_dict else loss

    def _over_ranks(self, images: Tensor, texts: Tensor, scale: Any) -> Tensor:
        found = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if found != (self.rank, self.world_size):
            raise ValueError(
                f"rank {self.rank} of {self.world_size} was asked for, but the process group has "
                f"rank {found[0]} of {found[1]}"
            )
        if not self.gather_with_grad:
            images, texts = (
                _ScaledGradient.apply(side, 1 / self.world_size) for side in (images, texts)
            )
        loss = distributed_infonce(images, texts, scale)
        if self.local_loss:
            return loss
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return loss + (mean / self.world_size - loss.detach())


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
