"""The captions and nouns of a sample's json or list row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from svilm_fast.data import text
from svilm_fast.data.errors import CaptionError
from svilm_fast.data.lists import ListRow
from svilm_fast.data.nouns import nouns_from_json

REPAIRED = "captions repaired (control characters or half surrogate pairs)"


@dataclass(frozen=True)
class Captions:
    """What `pick_captions` found; `repaired` captions held characters that no text has.

    nouns: a tuple per caption, None where the record brings none.
    """

    texts: tuple[str, ...]
    nouns: tuple[tuple[str, ...] | None, ...]
    repaired: int = 0


def pick_captions(record: dict[str, Any], grain: str, label: str) -> Captions:
    """Captions and stored nouns of a sample's json.

    `captions: {coarse, fine, fused}` is used where it exists, else `caption` (a text or a list of
    texts). Texts are cleaned (`text.clean`); those without a visible character are no captions.
    Raises CaptionError when nothing is left, SampleJsonError for malformed nouns.
    """
    grains = record.get("captions")
    nouns = record.get("nouns")
    if isinstance(grains, dict):
        if grain not in grains:
            have = ", ".join(map(str, grains)) or "none"
            raise CaptionError(f"{label}: no {grain!r} caption (data.captions); it has: {have}")
        texts, nouns = grains[grain], nouns.get(grain) if isinstance(nouns, dict) else nouns
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
    kept = [(caption, found) for caption, found in cleaned if text.is_visible(caption)]
    if not kept:
        raise CaptionError(f"{label}: no caption: add a 'caption' text to its json or list line")
    return Captions(
        tuple(caption for caption, _ in kept),
        tuple(
            None if found is None else tuple(n.text for n in nouns_from_json(found, label))
            for _, found in kept
        ),
        sum(text.is_damaged(caption) for caption in texts if caption),
    )


def row_record(row: ListRow) -> dict[str, Any]:
    """A list's row as the json of a sample."""
    record = {**row.extra, "video": row.video}
    if row.caption is not None:
        record["caption"] = row.caption
    return record
