"""What a packed sample says of its video: the json with captions and nouns, and the key."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from svilm_fast.data.annotations import ANNOTATIONS, to_columns
from svilm_fast.data.captions import REPAIRED, Captions, pick_captions, row_record
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import AnnotationError, CaptionError
from svilm_fast.data.lists import ListRow, has_video_extension
from svilm_fast.data.nouns import (
    OTHER_LANGUAGE,
    NounExtractor,
    in_other_language,
    nouns_to_json,
)
from svilm_fast.data.segments import KEY as SEGMENT
from svilm_fast.data.segments import Segment, segment_to_json
from svilm_fast.data.text import storable

# A member's name has 100 bytes in a ustar header: room for `_12345678` and an extension is left.
_KEY_BYTES = 80
_DIGEST_BYTES = 5


@dataclass
class Description:
    """The json of a sample, and what is counted about its captions."""

    record: dict[str, Any]
    captions: int
    without_nouns: int
    notes: Counter[str] = field(default_factory=Counter)


def describe(
    rows: Sequence[ListRow],
    segment: Segment | None,
    config: DataConfig,
    extract: NounExtractor,
    label: str,
) -> Description:
    """Join the rows of one video, or of one segment of it, to one json with nouns.

    The captions of all rows are kept; of other columns, the first row's. Captions of rows without
    weights get weight 1 where others have weights. Raises DataError.
    """
    record: dict[str, Any] = {}
    for row in reversed(rows):
        record |= row_record(row)
    if segment is not None:
        record[SEGMENT] = segment_to_json(segment)
    _check_annotations(rows, label)
    if isinstance(record.get("captions"), dict):
        return _by_grain(rows, record, config, extract, label)
    picked = _picked(rows, config, label)
    if not picked:
        return Description(storable(record), captions=0, without_nouns=0)
    texts = [caption for found in picked for caption in found.texts]
    several = len(texts) > 1
    nouns = [each for found in picked for each in _nouns(found, extract)]
    given = record.get("nouns")
    # Given nouns of one row are kept with their spans, unless they are of other captions too.
    if given is None or len(rows) > 1 or (several and len(given) != len(texts)):
        record["nouns"] = nouns if several else nouns[0]
    record.pop("captions", None)
    record["caption"] = texts if several else texts[0]
    record.pop("caption_weights", None)
    if several and any(found.weights for found in picked):
        record["caption_weights"] = [
            weight for found in picked for weight in found.weights or (1.0,) * len(found.texts)
        ]
    counts = _counts(config, picked, list(zip(texts, nouns)))
    return Description(storable(record), len(texts), sum(not found for found in nouns), counts)


def _check_annotations(rows: Sequence[ListRow], label: str) -> None:
    """Raise AnnotationError where the lines of one video are labelled differently."""
    given = [to_columns(row_record(row)) for row in rows]
    differing = [name for name in ANNOTATIONS if len({each[name] for each in given}) > 1]
    if differing:
        raise AnnotationError(
            f"{label}: {len(rows)} lines describe it with different {' and '.join(differing)}, of "
            "which one sample has one: name the list itself as data.train, where every line is a "
            "sample, or pack one line per video"
        )


def _picked(rows: Sequence[ListRow], config: DataConfig, label: str) -> list[Captions]:
    """The captions of every row that has one; none are needed with `captions="none"`."""
    picked, missing = [], None
    for row in rows:
        try:
            picked.append(pick_captions(row_record(row), config.captions, label))
        except CaptionError as error:
            missing = missing or error
    if missing is not None and not picked and config.captions != "none":
        raise missing
    return picked


def _by_grain(
    rows: Sequence[ListRow],
    record: dict[str, Any],
    config: DataConfig,
    extract: NounExtractor,
    label: str,
) -> Description:
    grains = record["captions"]
    if any(row_record(row).get("captions") != grains for row in rows):
        raise CaptionError(
            f"{label}: several lines describe it, and captions by grain are among them: put all of "
            "its captions on one line"
        )
    found, missing = {}, None
    for grain in grains:
        try:
            found[grain] = pick_captions(record, grain, label)
        except CaptionError as error:  # as in an index, it is usable with the others
            missing = missing or error
    if not found and missing is not None:
        raise missing
    record["captions"] = {
        grain: list(captions.texts) if isinstance(grains[grain], list) else captions.texts[0]
        for grain, captions in found.items()
    }
    if any(captions.weights for captions in found.values()):
        record["caption_weights"] = {
            grain: list(captions.weights) for grain, captions in found.items() if captions.weights
        }
    nouns = {grain: _nouns(captions, extract) for grain, captions in found.items()}
    given = record.get("nouns")
    if given is None or isinstance(given, dict):
        # Given nouns are kept with their spans, unless captions beside them were left out.
        given = given or {}
        whole = {g for g in given if g in found and len(_listed(grains[g])) == len(nouns[g])}
        shown = {g: each if isinstance(grains[g], list) else each[0] for g, each in nouns.items()}
        record["nouns"] = shown | {grain: given[grain] for grain in whole}
    pairs = [
        pair for grain, each in nouns.items() for pair in zip(found[grain].texts, each, strict=True)
    ]
    counts = _counts(config, list(found.values()), pairs)
    return Description(storable(record), 1, sum(not n for _, n in pairs), counts)


def _listed(captions: Any) -> list[Any]:
    return captions if isinstance(captions, list) else [captions]


def _nouns(captions: Captions, extract: NounExtractor) -> list[list[Any]]:
    """The nouns of every caption, as JSON; found where none are given."""
    return [
        nouns_to_json(extract(caption)) if known is None else [{"text": noun} for noun in known]
        for caption, known in zip(captions.texts, captions.nouns, strict=True)
    ]


def _counts(
    config: DataConfig, picked: Sequence[Captions], pairs: Sequence[tuple[str, list[Any]]]
) -> Counter[str]:
    other = sum(not nouns and in_other_language(config.nouns, caption) for caption, nouns in pairs)
    return +Counter({REPAIRED: sum(found.repaired for found in picked), OTHER_LANGUAGE: other})


def key_of(name: str, segment: Segment | None, used: set[str]) -> str:
    """A key for a video's name that is not in `used`, to which it is added.

    Letters, digits, `_` and `-` of the name stay. A long name is cut and gets a digest of all of
    it, the same in every run.
    """
    stem = name.rpartition(".")[0] if has_video_extension(name) else name
    if segment is not None:
        stem += f"_{segment[0]:g}-{segment[1]:g}"
    stem = re.sub(r"[^\w-]+", "_", stem) or "_"
    data = stem.encode()
    if len(data) > _KEY_BYTES:
        whole = f"{name}{segment or ''}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(whole, digest_size=_DIGEST_BYTES).hexdigest()
        stem = f"{data[: _KEY_BYTES - len(digest) - 1].decode('utf-8', 'ignore')}_{digest}"
    key, number = stem, 1
    while key in used:
        number += 1
        key = f"{stem}_{number}"
    used.add(key)
    return key
