"""Scores normalised over a set of queries: dual softmax over the test set, QB-Norm over a bank.

Their figures change with the set. Dual softmax needs all test queries at once, so no single query
can be answered this way. Both are reported apart, in rows named `set-level ...`. The matrix of
scores is never held: a first pass over tiles finds what a score is normalised by, a second one
ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from svilm_fast.core.messages import check_known
from svilm_fast.evaluation.metrics import (
    CHUNK_ELEMENTS,
    TIE_TOLERANCE,
    QueryRanks,
    check_embeddings,
)

# Of cosine similarities: the logit scale of CLIP (CAMoE, arXiv 2109.04290), and QB-Norm's beta
# (arXiv 2112.12777).
INVERSE_TEMPERATURE = {"dsl": 100.0, "qbnorm": 20.0}
_ROUNDING = 1e-12  # of logits in float64
SET_LEVEL = tuple(INVERSE_TEMPERATURE)


def check_set_level(names: str | None) -> tuple[str, ...]:
    """Return the names in a text, separated by commas. Raises ValueError for an unknown one."""
    found = tuple(name.strip() for name in names.split(",")) if names else ()
    check_known("set-level score", found, SET_LEVEL)
    return found


def set_level_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    method: str,
    *,
    bank: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> QueryRanks:
    """Rank the right answer of every query by scores normalised over queries, in float64.

    Arguments and the rule for several right answers as in `metrics.mid_ranks`. With cosine
    similarities s_ij of query i and candidate j, and t from INVERSE_TEMPERATURE:

    - `dsl`: s_ij p_ij with p_ij = exp(t s_ij) / sum_i exp(t s_ij), over all queries i.
    - `qbnorm`: the sum is over the queries of `bank`, float [B, D], which are those of the training
      split: its captions, or from video to text its videos. A query whose best candidate is the
      best one of some query of the bank is ranked by p_ij, any other by s_ij (dynamic inverted
      softmax, k = 1).

    Two scores tie if a relative change of TIE_TOLERANCE in the embeddings explains the difference.
    Peak memory is `max(n, chunk_elements)` scores and the embeddings.

    Raises ValueError as `mid_ranks`, for an unknown method, and for `qbnorm` without a bank.
    """
    check_known("set-level score", (method,), SET_LEVEL)
    check_embeddings(queries, gallery, query_labels, gallery_labels)
    if method == "qbnorm":
        if bank is None:
            raise ValueError("qbnorm needs a bank of training queries")
        check_embeddings(bank, gallery, torch.zeros(len(bank)), gallery_labels)
    queries, gallery = _unit(queries), _unit(gallery)
    over = queries if method == "dsl" or bank is None else _unit(bank)
    times = INVERSE_TEMPERATURE[method]
    norm = torch.full((len(gallery),), -torch.inf, dtype=torch.float64, device=gallery.device)
    rows = max(1, chunk_elements // len(gallery))
    activated = torch.zeros(len(gallery), dtype=torch.bool, device=gallery.device)
    for _, scores in _tiles(over, gallery, rows):
        activated[scores.argmax(dim=1)] = True
        norm = torch.logaddexp(norm, torch.logsumexp(times * scores, dim=0))
    higher = torch.empty(len(queries), dtype=torch.int64)
    ties = torch.empty(len(queries), dtype=torch.int64)
    for chunk, scores in _tiles(queries, gallery, rows):
        if method == "qbnorm":
            plain = ~activated[scores.argmax(dim=1)]
            logits = times * scores - torch.where(plain[:, None], 0.0, norm)
        else:
            logits = times * scores - norm
        # Of p itself only the order counts: its logarithm keeps small values apart.
        values = logits if method == "qbnorm" else scores * logits.exp()
        right = query_labels[chunk, None] == gallery_labels[None, :]
        if not bool(right.any(dim=1).all()):
            raise ValueError("a query has no right answer in the gallery")
        best, place = values.masked_fill(~right, -torch.inf).max(dim=1, keepdim=True)
        if method == "qbnorm":
            # The candidate moves the bank's sum as much as it moves its own score.
            moves = times * torch.where(plain[:, None], 1.0, 2.0)
            tolerance = TIE_TOLERANCE * moves + _ROUNDING
        else:
            # A softmax near 1 hardly moves with its logit: d log p = t (1 - p) ds.
            moves = times * (1 - torch.minimum(logits, logits.gather(1, place)).exp())
            larger = torch.maximum(values.abs(), best.abs())
            tolerance = 2 * TIE_TOLERANCE * (1 + moves) * larger
        lead = (values - best).masked_fill_(right, -torch.inf)
        higher[chunk] = (lead > tolerance).sum(dim=1).cpu()
        ties[chunk] = (lead.abs() <= tolerance).sum(dim=1).cpu()
    return QueryRanks(higher, ties, len(gallery))


def _unit(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.to(torch.float64)
    return embeddings / embeddings.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _tiles(queries: Tensor, gallery: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(queries), rows):
        chunk = slice(start, start + rows)
        yield chunk, queries[chunk] @ gallery.T
