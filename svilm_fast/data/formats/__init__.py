"""Public annotation formats, each read into the rows of a JSONL list.

A reader is a function `read(paths, notes, **options)`. It yields dictionaries with `video`, with
`caption` or `captions`, `start` and `end` (seconds), `label` or `questions` as its data set has
them, and with any further fields. It counts in `notes` what it left out or found odd. Its options
are keyword-only parameters with texts as defaults. The first line of its docstring says which files
it reads.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from svilm_fast.core.errors import UserError

Notes = Counter[str]
Rows = Iterator[dict[str, Any]]

# Name, and the module and function that are imported on use.
FORMATS = {
    "activitynet-captions": "svilm_fast.data.formats.activitynet_captions:read",
    "didemo": "svilm_fast.data.formats.didemo:read",
    "hmdb51": "svilm_fast.data.formats.hmdb51:read",
    "internvid": "svilm_fast.data.formats.internvid:read",
    "kinetics": "svilm_fast.data.formats.kinetics:read",
    "kinetics-index": "svilm_fast.data.formats.kinetics:read_index",
    "lsmdc": "svilm_fast.data.formats.lsmdc:read",
    "activitynet": "svilm_fast.data.formats.activitynet:read",
    "msrvtt": "svilm_fast.data.formats.msrvtt:read",
    "msvd": "svilm_fast.data.formats.msvd:read",
    "ssv2": "svilm_fast.data.formats.ssv2:read",
    "ucf101": "svilm_fast.data.formats.ucf101:read",
    "vatex": "svilm_fast.data.formats.vatex:read",
    "qa-alpro-msvd": "svilm_fast.data.formats.qa:read_alpro_msvd",
    "qa-clipbert": "svilm_fast.data.formats.qa:read_clipbert",
    "qa-just-ask": "svilm_fast.data.formats.qa:read_just_ask",
    "qa-original": "svilm_fast.data.formats.qa:read_original",
    "qa-violet": "svilm_fast.data.formats.qa:read_violet",
    "thumos": "svilm_fast.data.formats.thumos:read",
}


def reader_of(name: str) -> Callable[..., Rows]:
    """Import and return the reader of a format. Raises UserError for an unknown name."""
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; formats: {', '.join(sorted(FORMATS))}")
    module, _, function = FORMATS[name].partition(":")
    reader: Callable[..., Rows] = getattr(importlib.import_module(module), function)
    return reader
