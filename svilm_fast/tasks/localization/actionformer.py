"""An ActionFormer-class head (Zhang, Wu, Li: ActionFormer, ECCV 2022), written from the paper.

A pyramid of transformer levels over time. Every step of every level is a point that predicts class
scores and its distances to the start and the end of the action around it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from svilm_fast.core.philox import StepSeeds
from svilm_fast.tasks.localization.heads import HeadLosses, LocalizationInputs, Proposals
from svilm_fast.tasks.localization.layers import (
    ChannelNorm,
    MaskedConv,
    PyramidBlock,
    sinusoid_positions,
)
from svilm_fast.tasks.localization.losses import distance_iou_loss, sigmoid_focal_loss
from svilm_fast.tasks.localization.settings import ActionFormerSettings

_PRIOR = 0.01  # class probability at the start of training
_MOMENTUM = 0.9  # of the running mean of positive points


class Points(NamedTuple):
    """The P points of all levels: place and stride float [P], in steps; reach float [P, 2]."""

    places: Tensor
    strides: Tensor
    reach: Tensor


class PointTargets(NamedTuple):
    """classes: bool [P, classes]; distances: float [P, 2] to start and end, in steps."""

    classes: Tensor
    distances: Tensor


class ConvHead(nn.Module):
    """Convolutions that all levels share."""

    def __init__(self, width: int, outputs: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(MaskedConv(width, width, 3) for _ in range(layers - 1))
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(layers - 1))
        self.output = MaskedConv(width, outputs, 3)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """[b, C, T] to [b, T, outputs]."""
        for conv, norm in zip(self.convs, self.norms):
            states = functional.relu(norm(conv(states, mask)[0]))
        return self.output(states, mask)[0].transpose(1, 2)


class LevelScales(nn.Module):
    """A learned factor on the distances of each level."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(levels))

    def forward(self, distances: list[Tensor]) -> list[Tensor]:
        """Non-negative distances [b, T, 2] of every level."""
        return [functional.relu(each * s) for each, s in zip(distances, self.scale)]


class ActionFormerHead(nn.Module):
    """See the module. classes: 1 for proposals of any class."""

    normaliser: Tensor

    def __init__(self, settings: ActionFormerSettings, width: int, classes: int) -> None:
        super().__init__()
        self.settings, self.classes = settings, classes
        inner, levels = settings.width, settings.levels
        sizes = [width] + [inner] * settings.embedding_layers
        self.embedding = nn.ModuleList(
            MaskedConv(before, after, 3) for before, after in pairwise(sizes)
        )
        self.embedding_norms = nn.ModuleList(ChannelNorm(inner) for _ in sizes[1:])
        count = settings.stem_layers + levels - 1
        self.blocks = nn.ModuleList(
            PyramidBlock(
                inner,
                settings.heads,
                None if layer == count - 1 and levels > 1 else settings.window,
                stride=1 if layer < settings.stem_layers else 2,
                drop_path=settings.drop_path,
                initial_scale=settings.residual_scale,
                layer=layer,
            )
            for layer in range(count)
        )
        self.level_norms = nn.ModuleList(ChannelNorm(inner) for _ in range(levels))
        self.class_head = ConvHead(inner, classes, settings.head_layers)
        self.distance_head = ConvHead(inner, 2, settings.head_layers)
        self.level_scales = LevelScales(levels)
        self.register_buffer("normaliser", torch.tensor(settings.normaliser))
        for module in self.modules():
            if isinstance(module, nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        bias = self.class_head.output.conv.bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(
        self, features: Tensor, mask: Tensor, seeds: StepSeeds | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [b, P, classes], distances [b, P, 2] in strides, and mask [b, P]."""
        states = features.transpose(1, 2)
        for conv, norm in zip(self.embedding, self.embedding_norms):
            states = functional.relu(norm(conv(states, mask)[0]))
        positions = sinusoid_positions(states.shape[1], states.shape[2], states.device)
        states = (states + positions.to(states.dtype)) * mask[:, None]
        levels: list[tuple[Tensor, Tensor]] = []
        if not self.settings.stem_layers:
            levels.append((states, mask))
        kept = mask
        for layer, block in enumerate(self.blocks, 1):
            states, kept = block(states, kept, seeds)
            if layer >= self.settings.stem_layers:
                levels.append((states, kept))
        normed = [(norm(states), kept) for norm, (states, kept) in zip(self.level_norms, levels)]
        logits = torch.cat([self.class_head(*level) for level in normed], dim=1)
        distances = self.level_scales([self.distance_head(*level) for level in normed])
        return logits, torch.cat(distances, dim=1), torch.cat([kept for _, kept in normed], dim=1)

    def points(self, steps: int, device: torch.device) -> Points:
        """The points of a sequence of T steps: level l has T / 2^l, 2^l steps apart."""
        places, strides, reach = [], [], []
        levels = self.settings.levels
        for level in range(levels):
            stride = 2.0**level
            count = steps // 2**level
            places.append(torch.arange(count, device=device) * stride)
            strides.append(torch.full((count,), stride, device=device))
            low = 0.0 if level == 0 else self.settings.ranges * 2.0 ** (level - 1)
            high = math.inf if level == levels - 1 else self.settings.ranges * stride
            reach.append(torch.tensor([low, high], device=device).expand(count, 2))
        return Points(torch.cat(places), torch.cat(strides), torch.cat(reach))

    def targets(self, points: Points, segments: Tensor, labels: Tensor) -> PointTargets:
        """Assign the shortest segment to every point near its middle, of its level's length."""
        count = len(points.places)
        classes = torch.zeros(count, self.classes, dtype=torch.bool, device=segments.device)
        if not len(segments):
            return PointTargets(classes, segments.new_zeros(count, 2))
        place = points.places[:, None]
        left, right = place - segments[None, :, 0], segments[None, :, 1] - place  # [P, n]
        middle = segments.mean(dim=1)[None]
        radius = points.strides[:, None] * self.settings.centre_radius
        inside = (left > 0) & (right > 0) & ((place - middle).abs() < radius)
        longest = torch.maximum(left, right)
        fits = (longest >= points.reach[:, :1]) & (longest <= points.reach[:, 1:])
        length = (segments[:, 1] - segments[:, 0])[None].expand_as(left)
        length = length.masked_fill(~(inside & fits), math.inf)
        shortest, chosen = length.min(dim=1)
        positive = shortest.isfinite()
        # Segments of equal place and length but other label are all right.
        equal = (length <= shortest[:, None] + 1e-3) & length.isfinite()
        number = labels.clamp(max=self.classes - 1)
        for column in range(len(segments)):
            classes[:, number[column]] |= equal[:, column] & positive
        row = torch.arange(count, device=segments.device)
        return PointTargets(classes, torch.stack([left[row, chosen], right[row, chosen]], dim=1))

    def losses(self, inputs: LocalizationInputs) -> HeadLosses:
        """Focal loss of the classes and distance-IoU loss of the positive points."""
        logits, distances, mask = self(inputs.features, inputs.mask, inputs.seeds)
        points = self.points(inputs.features.shape[1], logits.device)
        targets = [self.targets(points, *each) for each in zip(inputs.segments, inputs.labels)]
        wanted = torch.stack([target.classes for target in targets])
        positive = wanted.any(-1) & mask
        smooth = self.settings.label_smoothing
        smoothed = wanted.float() * (1 - smooth) + smooth / (self.classes + 1)
        focal = sigmoid_focal_loss(logits[mask], smoothed[mask]).sum()
        goal = torch.stack([t.distances for t in targets]) / points.strides[None, :, None]
        iou = distance_iou_loss(distances[positive], goal[positive]).sum()
        total, ranks = self._running_mean(positive.sum())
        # The gradients of the ranks are averaged, and the normaliser counts the whole batch.
        focal, iou = ranks * focal / total, ranks * iou / total
        loss = focal + self.settings.regression_weight * iou
        metrics = {"classification": focal.detach(), "regression": iou.detach()}
        return HeadLosses(loss, metrics)

    def _running_mean(self, positives: Tensor) -> tuple[Tensor, int]:
        """Update and return the mean number of positive points of a global batch, and the ranks."""
        count, ranks = positives.float(), 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            ranks = dist.get_world_size()
        if self.training:
            with torch.no_grad():
                mean = _MOMENTUM * self.normaliser + (1 - _MOMENTUM) * count.clamp(min=1)
                self.normaliser.copy_(mean)
        return self.normaliser.clone(), ranks

    def proposals(self, features: Tensor, mask: Tensor) -> list[Proposals]:
        """One proposal for every point and class."""
        logits, distances, kept = self(features, mask)
        points = self.points(features.shape[1], logits.device)
        offsets = distances.float() * points.strides[None, :, None]
        found = []
        for row in range(len(features)):
            shares = logits[row][kept[row]].float().sigmoid()
            place, offset = points.places[kept[row]], offsets[row][kept[row]]
            segments = torch.stack([place - offset[:, 0], place + offset[:, 1]], dim=1)
            labels = torch.arange(self.classes, device=shares.device).expand_as(shares)
            scores, order = shares.flatten().sort(descending=True, stable=True)
            found.append(
                Proposals(segments[order // self.classes], scores, labels.flatten()[order])
            )
        return found
