"""Which clips are of one source video: their key, and what an index knows of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from svilm_fast.data.errors import SampleJsonError
from svilm_fast.data.keys import sample_key

KEY = "source_id"  # of a list's column and a sample's json


def source_key(record: Mapping[str, Any], fallback: str, label: str) -> int:
    """The key of a sample's source video, equal for clips of one.

    `source_id` (a text or a whole number) names it, else `source.id`, as `pack --precut` writes it,
    else `fallback`. Raises SampleJsonError.
    """
    name = source_name(record)
    name = fallback if name is None else name
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise SampleJsonError(f"{label}: {KEY}={name!r:.60} must be a text or a whole number")
    return sample_key(str(name))


def source_name(record: Mapping[str, Any]) -> Any:
    """What a sample's json says its source video is; None where it says nothing."""
    name = record.get(KEY)
    if name is None or name == "":
        source = record.get("source")
        name = source.get("id") if isinstance(source, dict) else None
    return name


def source_with(record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The `source` of a clip that is made of a sample: facts beside what the sample's own says.

    A source that is no object, such as the name of a data set, becomes its `name`; an `id` stays.
    """
    own = record.get("source")
    own = {} if own is None else own if isinstance(own, dict) else {"name": own}
    kept = {} if own.get("id") is None else {"id": own["id"]}
    return {**own, **facts, **kept}


def sources_facts(sources: np.ndarray) -> dict[str, Any]:
    """What an order needs to know of int64 [n], the sources of samples in their order.

    together: whether the samples of every source follow one another. most: samples of the source
    with most of them.
    """
    if not len(sources):
        return {"together": True, "most": 0}
    starts = np.flatnonzero(np.concatenate([[True], sources[1:] != sources[:-1]]))
    named = np.sort(sources[starts])
    if not (named[1:] == named[:-1]).any():
        return {"together": True, "most": int(np.diff(starts, append=len(sources)).max())}
    ordered = np.sort(sources)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return {"together": False, "most": int(np.diff(starts, append=len(sources)).max())}
