"""Probes of a frozen video tower by the protocols of MMV and MIL-NCE, and two further ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np

from svilm_fast.core.errors import UserError
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.evaluation.probes import ProbeFit, attentive, linear_svm, softmax_layer
from svilm_fast.tasks.action.classes import ClassNames, check_labels, labels_in
from svilm_fast.tasks.action.evaluation import labels_of_split
from svilm_fast.tasks.action.features import ClipFeatures
from svilm_fast.tasks.action.result import RecognitionResult, recognition_result
from svilm_fast.tasks.base import TaskConfig


class Probe(StrEnum):
    """A way to fit a classifier on frozen features."""

    MMV = "mmv"
    MIL_NCE = "mil-nce"
    SOFTMAX = "softmax"
    ATTENTIVE = "attentive"


@dataclass(frozen=True)
class ProbeRecipe:
    """A probe: what it reads, how it is fitted, and its protocol in words.

    passes: training views drawn at random of every training video; 0: `windows` evaluation views.
    windows: evaluation views of a test video. tokens: it reads the time steps, not the pooled
    tokens. average: the scores of the windows are averaged, otherwise summed. c: default of the
    regularisation; None: it has none.
    """

    passes: int
    windows: int
    fit: Callable[[np.ndarray, np.ndarray, int, float], ProbeFit]
    classifier: str
    published: str
    tokens: bool = False
    average: bool = True
    c: float | None = None


RECIPES = {
    Probe.MMV: ProbeRecipe(
        passes=10,
        windows=10,
        fit=lambda x, y, n, c: linear_svm(x, y, n, c=c, standardise=True),
        classifier="scikit-learn LinearSVC, features standardised by training mean and deviation",
        published="MMV, eval_ucf101.py: windows of 32 frames at stride 2, 224 pixels, C = 0.001",
        c=0.001,
    ),
    Probe.MIL_NCE: ProbeRecipe(
        passes=0,
        windows=4,
        fit=lambda x, y, n, c: linear_svm(x, y, n, c=c, standardise=False),
        classifier="scikit-learn LinearSVC, features as they are, every window an example",
        published="MIL-NCE, eval_hmdb.py: windows of 16 frames at the native rate, C = 100",
        average=False,
        c=100.0,
    ),
    Probe.SOFTMAX: ProbeRecipe(
        passes=0,
        windows=4,
        fit=lambda x, y, n, c: softmax_layer(x, y, n, c=c),
        classifier="scikit-learn LogisticRegression, standardised features, a window an example",
        published="none",
        c=1.0,
    ),
    Probe.ATTENTIVE: ProbeRecipe(
        passes=0,
        windows=4,
        fit=lambda x, y, n, c: attentive(x, y, n),
        classifier="one query that attends to the time steps (tokens averaged over space), softmax",
        published="none, our own",
        tokens=True,
    ),
}


# How the windows share the frames of a video.
SPREADS = {"interleaved": "each over the whole video", "consecutive": "one after another"}


@dataclass(frozen=True)
class ProbeLabels:
    """Labels of the training videos, the classes, and the test videos that count.

    refused: test videos that were refused when the split was listed, with the reason.
    """

    field: str
    train: dict[str, str]
    classes: ClassNames
    test: dict[str, str | None]
    refused: dict[str, str]

    @classmethod
    def read(cls, config: TaskConfig, train: ClipDataset, test: ClipDataset, field: str) -> Self:
        """Read the labels of both splits, refused test videos included.

        Raises AnnotationError for a video without a label, and UserError for fewer than two
        classes or where no test label is among them; some that are not are a warning.
        """
        of_train = labels_in(train.table, field, config.data.train)
        labels, refused = labels_of_split(config, test, field, whole=True)
        classes = ClassNames.of(of_train)
        check_labels(labels, classes, getattr(config.data, test.split), test.split, field)
        return cls(field, dict(zip(train.ids, of_train, strict=True)), classes, labels, refused)


@dataclass(frozen=True)
class ProbeData:
    """Test videos, labels, and features by (split, passes, windows), as `needed` lists them."""

    test: ClipDataset
    labels: ProbeLabels
    features: Mapping[tuple[str, int, int], ClipFeatures]


def needed(probes: Sequence[Probe]) -> list[tuple[str, int, int]]:
    """Return (split, passes, windows) of all features that probes read, without repeats."""
    found = []
    for probe in probes:
        recipe = RECIPES[probe]
        train = ("train", recipe.passes, 0 if recipe.passes else recipe.windows)
        found += [train, ("test", 0, recipe.windows)]
    return list(dict.fromkeys(found))


def check_strength(probes: Sequence[Probe], c: float | None) -> None:
    """Raise UserError where C is given for a probe that has no regularisation."""
    without = [probe.value for probe in probes if RECIPES[probe].c is None]
    if c is not None and without:
        having = ", ".join(probe.value for probe in Probe if RECIPES[probe].c is not None)
        raise UserError(
            f"--c {c:g}: the probe {without[0]} has no C. Leave out --c, or name the probes that "
            f"have one with --protocol: {having}"
        )


def run_probe(probe: Probe, data: ProbeData, c: float | None = None) -> RecognitionResult:
    """Fit a probe on the training videos and score the test videos.

    c: in the place of the published regularisation. Raises UserError for a probe without one.
    """
    check_strength([probe], c)
    recipe = RECIPES[probe]
    strength = recipe.c if c is None else c
    train, test = (data.features[key] for key in needed([probe]))
    labels, classes = data.labels, data.labels.classes
    numbers = classes.numbers([labels.train[video] for video in train.ids])
    x, y = _examples(train, numbers, recipe.tokens)
    fitted = recipe.fit(x, y, len(classes), strength or 0.0)
    windows = test.steps if recipe.tokens else test.pooled
    scores = fitted.score(windows.reshape(-1, *windows.shape[2:]))
    scores = scores.reshape(len(windows), -1, len(classes))
    combined = scores.mean(axis=1) if recipe.average else scores.sum(axis=1)
    how = "averaged" if recipe.average else "summed"
    frames = f"{data.test.frames} frames"
    drawn = f"{recipe.passes} passes of random frames, crops and flips, {frames} each"
    spread = SPREADS[data.test.views.spread]
    even = f"{recipe.windows} windows of {frames}, {spread}, centre crop"
    return recognition_result(
        f"probe_{probe.value.replace('-', '_')}",
        classes,
        labels.test,
        dict(zip(test.ids, combined, strict=True)),
        test.reasons | labels.refused,
        {
            "split": data.test.split,
            "label_field": labels.field,
            "classifier": recipe.classifier,
            **({"C": strength} if strength is not None else {}),
            **fitted.notes,
            "published": recipe.published,
            "features": f"{'time steps' if recipe.tokens else 'pooled tokens'}, "
            f"{x.shape[-1]} numbers, {data.test.image_size} pixels",
            "training_features": drawn if recipe.passes else even,
            "training_videos": len(train.ids),
            "training_videos_not_decoded": f"{len(train.reasons)}, left out",
            "test_features": even,
            "scores": f"of the classifier, {how} over the windows",
        },
    )


def _examples(
    train: ClipFeatures, labels: np.ndarray, tokens: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Every view of every training video as an example, [n * V, ...] and int64 [n * V]."""
    views = train.steps if tokens else train.pooled
    return views.reshape(-1, *views.shape[2:]), labels.repeat(views.shape[1])
