"""Our own video-level classifier on stored features: prompts, or a softmax layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.data.formats.activitynet import AnnotatedVideo, known_video
from svilm_fast.data.formats.common import read_lines
from svilm_fast.models.precision import unit_norm

TEMPLATES = ("a video of {}.", "it is a video of {}.", "a clip that shows {}.")
_STEPS = 300
_POOLED = 3  # mean of the best vectors of a class


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Class names, one a line. Raises UserError for an empty list or a name that occurs twice."""
    names = [name for _, name in read_lines(str(path))]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None or not names:
        raise UserError(f"{path}: {f'{repeated!r} occurs twice' if names else 'holds no class'}")
    return tuple(names)


def prompts(names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Every template with every name: those of the first name first."""
    return [template.format(name) for name in names for template in templates]


def prompt_scores(
    features: np.ndarray, texts: Tensor, classes: int, *, scale: float = 100.0
) -> np.ndarray:
    """Class probabilities of a video: softmax of the cosine with each class's mean prompt.

    The cosine of a class is the mean over the few vectors that fit it best, because an action fills
    a part of an untrimmed video only.

    Args:
        features: float [T, D] of the video, in the shared space.
        texts: float [classes * templates, D], in the order of `prompts`.
        scale: of the logits.
    """
    named = unit_norm(texts.float().unflatten(0, (classes, -1)).mean(1))
    vectors = unit_norm(torch.from_numpy(features).float())
    if vectors.shape[1] != named.shape[1]:
        raise UserError(
            f"the features have {vectors.shape[1]} numbers and the texts {named.shape[1]}: give "
            "the run that the features were extracted with"
        )
    cosines = vectors @ named.T
    best = cosines.topk(min(_POOLED, len(cosines)), dim=0).values.mean(0)
    return (scale * best).double().softmax(0).numpy()


def pooled_features(features: np.ndarray) -> Tensor:
    """Mean and maximum over time: float32 [2 C] of [T, C]."""
    rows = torch.from_numpy(features).float()
    return torch.cat([rows.mean(0), rows.amax(0)])


class SoftmaxClassifier:
    """A softmax layer on pooled features, trained on videos with one or several labels.

    The pooled features of the videos are standardised. The target of a video is the mean of its
    labels. Training is deterministic: full batches, AdamW, from zeros. videos: it was trained on.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor, videos: int
    ) -> None:
        self.weight, self.bias, self.mean, self.deviation = weight, bias, mean, deviation
        self.videos = videos

    @classmethod
    def trained(
        cls,
        pooled: Mapping[str, Tensor],
        videos: Mapping[str, AnnotatedVideo],
        classes: Sequence[str],
    ) -> SoftmaxClassifier:
        """Train on the annotated ones of the videos. Raises UserError if there are none.

        pooled: `pooled_features` of each video, by an id with or without `v_`.
        """
        number = {name: place for place, name in enumerate(classes)}
        rows, targets = [], []
        for name, row in pooled.items():
            known = known_video(name, videos)
            segments = videos[known].segments if known else ()
            labels = [number[s.label] for s in segments if s.label in number]
            if labels:
                target = torch.bincount(torch.tensor(labels), minlength=len(classes)).float()
                targets.append(target / target.sum())
                rows.append(row)
        if not rows:
            raise UserError("no video with features and annotations to train a classifier on")
        inputs, wanted = torch.stack(rows), torch.stack(targets)
        mean, deviation = inputs.mean(0), inputs.std(0, unbiased=False).clamp(min=1e-6)
        inputs = (inputs - mean) / deviation
        weight = torch.zeros(len(classes), inputs.shape[1], requires_grad=True)
        bias = torch.zeros(len(classes), requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=1e-1)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            logits = inputs @ weight.T + bias
            torch.nn.functional.cross_entropy(logits, wanted).backward()
            optimizer.step()
        return cls(weight.detach(), bias.detach(), mean, deviation, len(rows))

    def scores(self, pooled: Tensor) -> np.ndarray:
        """Class probabilities of a video from its pooled features, float64 [classes]."""
        row = (pooled - self.mean) / self.deviation
        return (self.weight @ row + self.bias).double().softmax(0).numpy()
