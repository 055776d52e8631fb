"""What a clip's json says, made of that of the video it is cut from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from svilm_fast.data.precut import CutClip
from svilm_fast.data.segments import END_COLUMNS, START_COLUMNS
from svilm_fast.data.segments import KEY as SEGMENT
from svilm_fast.data.source_ids import source_with
from svilm_fast.data.world.masks import decode_mask, encode_mask

MASKS_LEFT_OUT = "masks that do not fit the video left out"
BOXES_LEFT_OUT = "boxes that do not fit the video left out"


def record_of_clip(record: dict[str, Any], clip: CutClip) -> dict[str, Any]:
    """The json of a clip, without its id; `notes` counts what could not be kept.

    Captions and other columns stay. Boxes and masks of every frame (`objects`, `masks`, pixels of
    the video) become those of the clip's frames and size; `events` get times of the clip. `source`
    says where the clip lies in the video: seconds, frame rate and size; what it held stays beside.
    """
    left_out = (SEGMENT, *START_COLUMNS, *END_COLUMNS)
    made = {key: value for key, value in record.items() if key not in left_out}
    notes: Counter[str] = Counter()
    where = {
        "id": record.get("id"),
        "start": round(clip.start, 6),
        "end": round(clip.end, 6),
        "width": clip.source_size[0],
        "height": clip.source_size[1],
    }
    made["source"] = source_with(record, where)
    made |= {
        "fps": round(clip.fps, 6),
        "num_frames": clip.frames,
        "width": clip.size[0],
        "height": clip.size[1],
    }
    if isinstance(made.get("events"), list):
        made["events"] = _events(made["events"], clip)
    if isinstance(made.get("objects"), list):
        made["objects"] = [_boxes(thing, clip, notes) for thing in made["objects"]]
    if "masks" in made:
        try:
            made["masks"] = [[_mask(runs, clip) for runs in of] for of in _own(made["masks"], clip)]
        except (TypeError, ValueError):
            del made["masks"]
            notes[MASKS_LEFT_OUT] += 1
    return {**made, "notes": notes}


def _events(events: list[Any], clip: CutClip) -> list[Any]:
    """Events that overlap the clip, cut to it; what has no times stays."""
    start, end = clip.start - clip.item_start, clip.end - clip.item_start
    kept = []
    for event in events:
        times = [event.get(name) for name in ("start_s", "end_s")] if _is_object(event) else []
        if len(times) != 2 or not all(isinstance(time, int | float) for time in times):
            kept.append(event)
        elif times[0] < end and times[1] > start:
            cut = [round(min(max(time, start), end) - start, 6) for time in times]
            kept.append({**event, "start_s": cut[0], "end_s": cut[1]})
    return kept


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _boxes(thing: Any, clip: CutClip, notes: Counter[str]) -> Any:
    if not _is_object(thing) or "boxes" not in thing:
        return thing
    try:
        boxes = [None if box is None else _box(box, clip) for box in _own(thing["boxes"], clip)]
    except (TypeError, ValueError):
        notes[BOXES_LEFT_OUT] += 1
        return {key: value for key, value in thing.items() if key != "boxes"}
    return {**thing, "boxes": boxes}


def _own(values: Any, clip: CutClip) -> list[Any]:
    """The values of the clip's frames; ValueError unless there is one for every frame."""
    if not isinstance(values, list) or len(values) != clip.item_frames:
        raise ValueError("not one value for every frame")
    return values[clip.first : clip.first + clip.frames]


def _scales(clip: CutClip) -> tuple[float, float]:
    (width, height), (scaled_width, scaled_height) = clip.source_size, clip.scaled_size
    return scaled_width / width, scaled_height / height


def _box(box: list[float], clip: CutClip) -> list[float]:
    across, down = _scales(clip)
    values = [box[0] * across, box[1] * down, box[2] * across, box[3] * down]
    tops = (*clip.size, *clip.size)
    return [round(min(value, top), 3) for value, top in zip(values, tops, strict=True)]


def _mask(runs: list[int], clip: CutClip) -> list[int]:
    width, height = clip.source_size
    mask = decode_mask(runs, height, width)
    across, down = _scales(clip)
    columns = ((np.arange(clip.size[0]) + 0.5) / across).astype(int)
    rows = ((np.arange(clip.size[1]) + 0.5) / down).astype(int)
    return encode_mask(mask[rows[:, None], columns])
