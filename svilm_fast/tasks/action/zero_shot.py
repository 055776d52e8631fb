"""Recognition without training: videos against the embeddings of prompted class names."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats.common import checked, once, parse_strict, read_lines, read_text
from svilm_fast.evaluation.embed import evaluation_mode
from svilm_fast.models.precision import unit_norm
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.action.classes import ClassNames, check_labels
from svilm_fast.tasks.action.evaluation import encode_views, labels_of_split, views_text
from svilm_fast.tasks.action.result import RecognitionResult, recognition_result
from svilm_fast.tasks.base import TaskConfig
from svilm_fast.tasks.clips import autocast_dtype
from svilm_fast.tasks.split import split_text

PLACE = "{}"
PACKAGED = "templates.json"
TEXTS = 256  # prompts that are encoded at once
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")


@dataclass(frozen=True)
class Templates:
    """Distinct prompts with `{}` in the place of a class."""

    prompts: tuple[str, ...]
    source: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the prompts in their order, as a JSON list in UTF-8."""
        text = json.dumps(list(self.prompts), ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def packaged(cls) -> Templates:
        """Return the short list of this package."""
        file = importlib.resources.files("svilm_fast.tasks.action") / PACKAGED
        prompts = json.loads(file.read_text(encoding="utf-8"))
        return cls(tuple(prompts), "the packaged list")

    @classmethod
    def read(cls, path: str | Path) -> Templates:
        """Read a text file with one prompt a line, or a JSON list of them.

        Raises ListFormatError that names the line for a prompt without `{}` and for one that
        repeats.
        """
        name = str(path)
        if name.lower().endswith(".json"):
            entries = checked(parse_strict(read_text(name), name), list, name)
            rows = [
                (f"{name}, [{place}]", checked(entry, str, f"{name}, [{place}]").strip())
                for place, entry in enumerate(entries)
            ]
        else:
            rows = [(f"{name}, line {line}", text) for line, text in read_lines(name)]
        seen: dict[str, int] = {}
        for number, (where, text) in enumerate(rows, 1):
            if text.count(PLACE) != 1:
                raise ListFormatError(f"{where}: expected one {PLACE} for the class: {text!r:.60}")
            once(seen, text, number, where)
        if not seen:
            raise ListFormatError(f"{name}: no templates")
        return cls(tuple(seen), name)


def readable(name: str) -> str:
    """Return a class as words: `ApplyEyeMakeup` and `apply_eye_makeup` are `apply eye makeup`."""
    return " ".join(_WORDS.sub(" ", name).lower().split())


@torch.no_grad()
def class_embeddings(
    encoder: Any,
    dataset: ClipDataset,
    classes: ClassNames,
    templates: Templates,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[Tensor, int]:
    """Return the embedding of each class, float32 [C, D], and how many prompts were cut.

    It is the normalised mean of the normalised embeddings of all its prompts.
    """
    tokenizer, length = dataset.tokenizer, dataset.config.tokenizer.length
    cut_before = tokenizer.truncated
    names = [readable(name) for name in classes.names]
    texts = [prompt.replace(PLACE, name) for name in names for prompt in templates.prompts]
    parts = []
    with evaluation_mode(encoder):
        for start in range(0, len(texts), TEXTS):
            tokens, mask = tokenizer.encode_batch(texts[start : start + TEXTS], length)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                encoded = encoder.encode_text(tokens.to(device, torch.int64), mask.to(device))
            parts.append(unit_norm(encoded).cpu())
    every = torch.cat(parts).unflatten(0, (len(classes), len(templates.prompts)))
    return unit_norm(every.mean(dim=1)), tokenizer.truncated - cut_before


def recognise(
    encoder: Any,
    config: TaskConfig,
    dataset: ClipDataset,
    classes: ClassNames | None,
    templates: Templates,
    device: torch.device,
    *,
    field: str,
    max_clips: int | None = None,
) -> RecognitionResult:
    """Classify the videos of a split by the cosine of their embedding with those of the classes.

    classes: None: the sorted labels of the split. field: of a sample's JSON with its class.
    max_clips: `dataset` has only the first clips of the split; None: it has all, so that videos
    that were refused when it was listed count too.
    """
    labels, refused = labels_of_split(config, dataset, field, whole=max_clips is None)
    given = classes is not None
    if classes is None:
        classes = ClassNames.of(label for label in labels.values() if label is not None)
    else:
        listed = getattr(config.data, dataset.split)
        check_labels(labels, classes, listed, dataset.split, field, "given classes")
    autocast = autocast_dtype(config)
    of_classes, cut = class_embeddings(encoder, dataset, classes, templates, device, autocast)
    outputs = VideoOutputs(groups=False, segments=False)
    found, reasons = encode_views(
        encoder,
        dataset,
        lambda frames: encoder.encode_video(frames, None, outputs).video,
        device,
        batch_size=config.evaluation.batch_size,
        autocast=autocast,
        mean=True,
    )
    table = of_classes.double().numpy()
    scores = {
        video: table @ unit_norm(torch.from_numpy(mean).double()).numpy()
        for video, mean in found.items()
    }
    sources: Sequence[str] = ("the given file", "the labels of the split, sorted")
    return recognition_result(
        "zero_shot_action",
        classes,
        labels,
        scores,
        reasons | refused,
        {
            "split": split_text(dataset.split, max_clips),
            "label_field": field,
            "classes_from": sources[not given],
            "class_names": "CamelCase and _ become spaces, lower case",
            "templates": len(templates.prompts),
            "templates_sha256": templates.sha256,
            "templates_from": templates.source,
            "prompts_cut": cut,
            "class_embedding": "mean of the normalised embeddings of its prompts, normalised",
            "views": views_text(dataset),
            "scores": "cosine of the class with the normalised mean of the views' embeddings",
        },
    )
