"""The captions and nouns of a sample's json or list row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from svilm_fast.core.text import counted
from svilm_fast.data import text
from svilm_fast.data.errors import CaptionError, CaptionWeightError
from svilm_fast.data.lists import ListRow
from svilm_fast.data.nouns import nouns_from_json

REPAIRED = "captions repaired (control characters or half surrogate pairs)"


@dataclass(frozen=True)
class Captions:
    """What `pick_captions` found; `repaired` captions held characters that no text has.

    nouns: a tuple per caption, None where the record brings none. weights: a number per caption, in
    proportion to which training draws them; None: all are drawn equally often.
    """

    texts: tuple[str, ...]
    nouns: tuple[tuple[str, ...] | None, ...]
    repaired: int = 0
    weights: tuple[float, ...] | None = None


def pick_captions(record: dict[str, Any], grain: str, label: str) -> Captions:
    """Captions and stored nouns of a sample's json.

    `captions: {coarse, fine, fused}` is used where it exists, else `caption` (a text or a list of
    texts). Texts are cleaned (`text.clean`); those without a visible character are no captions.
    `caption_weights` has a number per text, by grain where the captions are.
    Raises CaptionError when nothing is left, SampleJsonError for malformed nouns, and
    CaptionWeightError.
    """
    grains = record.get("captions")
    nouns, weights = record.get("nouns"), record.get("caption_weights")
    if isinstance(grains, dict):
        if grain not in grains:
            have = ", ".join(map(str, grains)) or "none"
            raise CaptionError(f"{label}: no {grain!r} caption (data.captions); it has: {have}")
        texts, nouns = grains[grain], nouns.get(grain) if isinstance(nouns, dict) else nouns
        weights = weights.get(grain) if isinstance(weights, dict) else weights
    else:
        texts = record.get("caption") if record.get("caption") is not None else grains
    several = isinstance(texts, list)
    texts = texts if isinstance(texts, list) else [texts]
    if any(caption is not None and not isinstance(caption, str) for caption in texts):
        raise CaptionError(f"{label}: a caption must be a text or a list of texts")
    # nouns of several captions are a list per caption
    stored: list[Any] = list(nouns) if several and isinstance(nouns, list) else [nouns]
    stored += [None] * (len(texts) - len(stored))
    cleaned = [(text.clean(caption or ""), found) for caption, found in zip(texts, stored)]
    visible = [text.is_visible(caption) for caption, _ in cleaned]
    kept = [pair for pair, is_visible in zip(cleaned, visible) if is_visible]
    if not kept:
        raise CaptionError(
            f"{label}: no caption: add a 'caption' text to its json or list line, or set "
            "data.captions=none where captions are not needed"
        )
    return Captions(
        tuple(caption for caption, _ in kept),
        tuple(
            None if found is None else tuple(n.text for n in nouns_from_json(found, label))
            for _, found in kept
        ),
        sum(text.is_damaged(caption) for caption in texts if caption),
        _weights(weights, visible, label),
    )


def _weights(value: Any, visible: list[bool], label: str) -> tuple[float, ...] | None:
    """The weights of the visible captions. A cell of a CSV list is a number as text."""
    if value is None or value == "":
        return None
    values = value if isinstance(value, list) else [value]
    if len(values) != len(visible):
        raise CaptionWeightError(
            f"{label}: {counted(len(values), 'number')} in caption_weights for "
            f"{counted(len(visible), 'caption')}: give one for each"
        )
    try:
        numbers = [float("x" if isinstance(each, bool) else each) for each in values]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(0.0 <= number < math.inf for number in numbers):
        raise CaptionWeightError(
            f"{label}: caption_weights {value!r:.60} must be numbers, none of them negative"
        )
    weights = tuple(number for number, is_visible in zip(numbers, visible) if is_visible)
    if not 0.0 < sum(weights) < math.inf:
        raise CaptionWeightError(
            f"{label}: caption_weights {value!r:.60} must have a sum above 0 that is finite"
        )
    return weights


def row_record(row: ListRow) -> dict[str, Any]:
    """A list's row as the json of a sample."""
    record = {**row.extra, "video": row.video}
    if row.caption is not None:
        record["caption"] = row.caption
    return record
