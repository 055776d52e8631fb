"""Linear probes on stored features: MMV's, MIL-NCE's, a softmax layer, and an attentive one.

The first two follow the published code: eval_ucf101.py of MMV (github.com/google-deepmind/
deepmind-research, mmv) and eval_hmdb.py of MIL-NCE (github.com/antoine77340/MIL-NCE_HowTo100M).
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.core.errors import UserError


@dataclass(frozen=True)
class ProbeFit:
    """score: features [n, ...] to scores [n, C]. notes: facts of the fit for the protocol."""

    score: Callable[[np.ndarray], np.ndarray]
    notes: dict[str, Any]


def linear_svm(
    features: np.ndarray, labels: np.ndarray, classes: int, *, c: float, standardise: bool
) -> ProbeFit:
    """Fit scikit-learn's LinearSVC with its defaults besides `c`.

    features: [n, D]; labels: int [n], at least two different ones. The scores are its decision
    values, and below all others for a class without training features.
    """
    svm = _module("svm")
    return _fitted(
        svm.LinearSVC(C=c, random_state=0),
        features,
        labels,
        classes,
        "decision_function",
        standardise,
    )


def softmax_layer(
    features: np.ndarray, labels: np.ndarray, classes: int, *, c: float = 1.0
) -> ProbeFit:
    """Fit a linear softmax layer on standardised features: L-BFGS, L2 penalty 1 / c.

    The arguments are as for `linear_svm`. The scores are probabilities, 0 for a class without
    training features.
    """
    linear = _module("linear_model")
    layer = linear.LogisticRegression(C=c, max_iter=1000)
    return _fitted(layer, features, labels, classes, "predict_proba", True)


def attentive(
    tokens: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    seed: int = 0,
    epochs: int = 60,
    batch: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    heads: int = 4,
) -> ProbeFit:
    """Fit a learned query that attends to the tokens of a clip, and a softmax layer.

    tokens: float [n, T, D]; labels: int [n]. AdamW with a cosine schedule. The scores are
    probabilities. Our own extra; no published protocol.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens.shape[-1], classes, heads)
    mean, scale = _moments(tokens.reshape(-1, tokens.shape[-1]))
    inputs = torch.from_numpy(((tokens - mean) / scale).astype(np.float32))
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=weight_decay)
    steps = epochs * math.ceil(len(inputs) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=order).split(batch):
            loss = F.cross_entropy(probe(inputs[rows]), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def score(given: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(((given - mean) / scale).astype(np.float32))
        return torch.cat([probe(part).softmax(-1) for part in scaled.split(4096)]).double().numpy()

    recipe = f"AdamW {lr:g}, decay {weight_decay:g}, {epochs} epochs, batch {batch}, seed {seed}"
    return ProbeFit(score, {"optimisation": recipe, "last_training_loss": round(loss.item(), 4)})


class AttentiveProbe(nn.Module):
    """One learned query, attention to the tokens of a clip, and a linear layer."""

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        heads = math.gcd(width, heads)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [b, C] of tokens [b, T, D]."""
        query = self.query.expand(len(tokens), -1, -1)
        found, _ = self.attention(query, tokens, tokens, need_weights=False)
        return self.classify(self.norm(found[:, 0]))


def _fitted(
    model: Any,
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    method: str,
    standardise: bool,
) -> ProbeFit:
    present = np.unique(labels)
    if len(present) < 2:
        raise UserError("a probe needs training videos of at least two classes")
    mean, scale = _moments(features) if standardise else (0.0, 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit((features - mean) / scale, labels)
    converged = not any("converge" in str(each.message).lower() for each in caught)

    def score(given: np.ndarray) -> np.ndarray:
        values = getattr(model, method)((given - mean) / scale)
        if values.ndim == 1:  # two classes have one decision value
            values = np.stack([-values, values], axis=1)
        lowest = 0.0 if method == "predict_proba" else values.min(axis=1, keepdims=True) - 1
        found = np.zeros((len(given), classes)) + lowest
        found[:, present] = values
        return found

    iterations = int(np.max(model.n_iter_))
    state = f"{iterations} iterations" if converged else f"no after {iterations} iterations"
    return ProbeFit(score, {"converged": state})


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column; a constant column is not scaled."""
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    # The mean of equal numbers is off by rounding, so its deviation is not exactly zero.
    tiny = 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean, np.where(scale > tiny, scale, 1.0)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ModuleNotFoundError:
        raise UserError(
            "linear probes need scikit-learn; install it with: pip install 'svilm-fast[probe]'"
        ) from None
