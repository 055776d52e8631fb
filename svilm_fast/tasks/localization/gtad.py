"""A G-TAD-class head (Xu et al., G-TAD, CVPR 2020), written from the paper; proposals only.

A video has N steps. A map over (duration, start) holds the expected IoU of every proposal. The
sub-graph alignment is done the other way round: the linear map of each sample point is applied to
the sequence first, and interpolated to the proposals then, which is the same sum at a fraction of
the memory. The sample points around a proposal are our reading: half of its length on each side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from svilm_fast.tasks.localization.heads import HeadLosses, LocalizationInputs, Proposals
from svilm_fast.tasks.localization.settings import GtadSettings

CONV_GROUPS = 32
_BOUNDARY_SHARE = 0.5  # a step is a boundary if it overlaps a boundary region by this share


def input_groups(width: int) -> int:
    """Groups of the first convolution."""
    return 4 if width % 4 == 0 else 1


class GtadTargets(NamedTuple):
    """starts, ends: float [N], overlap with boundary regions; iou: float [N, N], by duration."""

    starts: Tensor
    ends: Tensor
    iou: Tensor


class GcnextBlock(nn.Module):
    """Temporal and semantic graph convolutions in parallel, with a residual."""

    def __init__(self, width: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.temporal = nn.Sequential(
            nn.Conv1d(width, width, 1),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1, groups=CONV_GROUPS),
            nn.ReLU(),
            nn.Conv1d(width, width, 1),
        )
        self.semantic = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, groups=CONV_GROUPS),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, states: Tensor) -> Tensor:
        """[b, C, N]."""
        flat = states.detach().float()
        distances = torch.cdist(flat.transpose(1, 2), flat.transpose(1, 2))
        count = min(self.neighbours, states.shape[2])
        near = distances.topk(count, dim=2, largest=False).indices  # [b, N, k]
        index = near.flatten(1)[:, None].expand(-1, states.shape[1], -1)
        others = states.gather(2, index).unflatten(2, near.shape[1:])  # [b, C, N, k]
        own = states[..., None].expand_as(others)
        edges = self.semantic(torch.cat([own, others - own], dim=1)).amax(dim=3)
        return functional.relu(states + self.temporal(states) + edges)


class GtadHead(nn.Module):
    """See the module. steps: N."""

    def __init__(self, settings: GtadSettings, width: int, steps: int) -> None:
        super().__init__()
        self.settings, self.steps = settings, steps
        inner, hidden = settings.width, settings.hidden
        self.input = nn.Conv1d(width, inner, 3, padding=1, groups=input_groups(width))
        self.backbone = GcnextBlock(inner, settings.neighbours)
        self.boundary = nn.Sequential(
            GcnextBlock(inner, settings.neighbours), nn.Conv1d(inner, 2, 1)
        )
        self.context = GcnextBlock(inner, settings.neighbours)
        self.samples = nn.Conv1d(inner, 2 * settings.samples * hidden, 1)
        self.map = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, 2, 1),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[b, N, C] to boundary logits [b, 2, N] and map logits [b, 2, N, N] (duration, start)."""
        base = self.backbone(functional.relu(self.input(features.transpose(1, 2))))
        count, steps = 2 * self.settings.samples, self.steps
        slots = self.samples(self.context(base)).unflatten(1, (count, -1))  # [b, 2S, H, N]
        places = self.sample_places(features.device)  # [2S, N, N]
        low = places.floor().clamp(0, steps - 1)
        high = (low + 1).clamp(max=steps - 1)
        share = (places.clamp(0, steps - 1) - low)[:, None].to(slots.dtype)
        total = slots.new_zeros(len(slots), slots.shape[2], steps * steps)
        for slot in range(count):
            weight = share[slot].flatten()
            total = total + slots[:, slot, :, low[slot].long().flatten()] * (1 - weight)
            total = total + slots[:, slot, :, high[slot].long().flatten()] * weight
        return self.boundary(base), self.map(total.unflatten(2, (steps, steps)))

    def sample_places(self, device: torch.device) -> Tensor:
        """Steps at which each proposal (duration d, start s) is sampled: float [2S, N, N]."""
        count, steps = self.settings.samples, self.steps
        start = torch.arange(steps, device=device)[None].float().expand(steps, steps) - 0.5
        length = torch.arange(steps, device=device)[:, None].float().expand(steps, steps) + 1
        inner = (torch.arange(count, device=device) + 0.5) / count
        half = count // 2
        before = (torch.arange(half, device=device) + 0.5) / half * 0.5 - 0.5
        after = 1 + (torch.arange(count - half, device=device) + 0.5) / (count - half) * 0.5
        shares = torch.cat([inner, before, after])[:, None, None]
        return start[None] + shares * length[None]

    def valid(self, device: torch.device) -> Tensor:
        """bool [N, N]: proposals (duration, start) that end inside the video."""
        number = torch.arange(self.steps, device=device)
        return number[:, None] + number[None] < self.steps

    def spans(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Start and end of every proposal in steps: float [N, N] (duration, start)."""
        number = torch.arange(self.steps, device=device).float()
        start = (number[None] - 0.5).expand(self.steps, self.steps)
        return start, start + number[:, None] + 1

    def targets(self, segments: Tensor) -> GtadTargets:
        """IoU of every proposal with the best segment, and overlaps with boundary regions.

        A boundary region is 3 steps long (the paper: a tenth of the segment, at least 3).
        """
        steps, device = self.steps, segments.device
        if not len(segments):
            zero = torch.zeros(steps, device=device)
            return GtadTargets(zero, zero, torch.zeros(steps, steps, device=device))
        start, end = self.spans(device)
        low = torch.maximum(start[..., None], segments[:, 0])
        high = torch.minimum(end[..., None], segments[:, 1])
        shared = (high - low).clamp(min=0)
        length = segments[:, 1] - segments[:, 0]
        joined = (end - start)[..., None] + length - shared
        iou = (shared / joined.clamp(min=1e-6)).amax(-1) * self.valid(device)
        edges = torch.arange(steps, device=device).float()[:, None]

        def overlaps(middle: Tensor) -> Tensor:
            top = torch.minimum(edges + 0.5, middle + 1.5)
            return (top - torch.maximum(edges - 0.5, middle - 1.5)).clamp(min=0).amax(1)

        return GtadTargets(overlaps(segments[:, 0]), overlaps(segments[:, 1]), iou)

    def losses(self, inputs: LocalizationInputs) -> HeadLosses:
        """Balanced boundary entropy, IoU regression, balanced entropy of the good proposals."""
        boundary, scores = self(inputs.features)
        found = [self.targets(segments) for segments in inputs.segments]
        starts = torch.stack([target.starts for target in found])
        ends = torch.stack([target.ends for target in found])
        iou = torch.stack([target.iou for target in found])
        valid = self.valid(boundary.device)[None].expand_as(iou)
        edges = balanced_entropy(boundary[:, 0], starts > _BOUNDARY_SHARE) + balanced_entropy(
            boundary[:, 1], ends > _BOUNDARY_SHARE
        )
        picked = balanced_shares(iou, valid)
        error = (scores[:, 0].float().sigmoid() - iou) ** 2
        regression = 0.5 * (error * picked).sum() / picked.sum().clamp(min=1)
        good = balanced_entropy(scores[:, 1][valid], iou[valid] > self.settings.positive_iou)
        loss = edges + self.settings.regression_weight * regression + good
        metrics = {"boundary": edges, "regression": regression, "classification": good}
        return HeadLosses(loss, {name: value.detach() for name, value in metrics.items()})

    def proposals(self, features: Tensor, mask: Tensor) -> list[Proposals]:
        """Pairs of likely starts and ends, scored by the product of the two maps."""
        boundary, scores = self(features)
        chances = boundary.float().sigmoid()
        joint = scores[:, 0].float().sigmoid() * scores[:, 1].float().sigmoid()
        start, end = self.spans(features.device)
        valid = self.valid(features.device)
        number = torch.arange(self.steps, device=features.device)
        last = (number[:, None] + number[None]).clamp(max=self.steps - 1)
        found = []
        for row in range(len(features)):
            likely = [likely_boundaries(chances[row, side]) for side in range(2)]
            kept = valid & likely[0][None] & likely[1][last]
            values, order = joint[row][kept].sort(descending=True, stable=True)
            segments = torch.stack([start[kept], end[kept]], dim=1)[order]
            found.append(Proposals(segments, values, torch.zeros_like(order)))
        return found


def likely_boundaries(chances: Tensor) -> Tensor:
    """bool [N]: local maxima, and all above half of the maximum."""
    beside = functional.pad(chances, (1, 1), value=-1.0)
    peak = (chances > beside[:-2]) & (chances > beside[2:])
    return peak | (chances > 0.5 * chances.max())


def balanced_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Binary cross-entropy in which positives and negatives weigh the same, in float32."""
    logits = logits.float()
    share = positive.float().mean().clamp(0.001, 0.999)
    weight = torch.where(positive, 0.5 / share, 0.5 / (1 - share))
    entropy = functional.binary_cross_entropy_with_logits(
        logits, positive.float(), reduction="none"
    )
    return (weight * entropy).mean()


def balanced_shares(iou: Tensor, valid: Tensor) -> Tensor:
    """Weights [b, N, N] that give proposals of IoU above 0.7, 0.3 to 0.7 and below equal shares.

    The published code draws as many of the last two as there are of the first. Weights have the
    same expectation, and nothing is random.
    """
    high = (iou > 0.7) & valid
    middle = (iou <= 0.7) & (iou > 0.3) & valid
    low = (iou <= 0.3) & (iou > 0) & valid
    wanted = high.sum().clamp(min=1).float()
    weights = torch.zeros_like(iou)
    for part in (high, middle, low):
        weights = weights + part * (wanted / part.sum().clamp(min=1)).clamp(max=1)
    return weights
