"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from svilm_fast.core.text import counted
from svilm_fast.data.errors import ShortClipError
from svilm_fast.data.pack import PackReport
from svilm_fast.data.sampling import choose_frames
from svilm_fast.data.skips import SkipReport


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 videos"), (1, "1 video"), (2, "2 videos"), (12345, "12,345 videos"), (-1, "-1 videos")],
)
def test_one_is_singular_and_all_else_plural(count: int, text: str) -> None:
    assert counted(count, "video") == text


def test_an_irregular_plural_is_given() -> None:
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"


def test_messages_about_one_thing_are_singular() -> None:
    assert SkipReport(seen=1).summary() == "skipped 0 of 1 sample"
    assert PackReport(written=1, captions=1, frames=1, shards=["a"]).lines() == [
        "packed 1 clip (1 caption, 1 frame, 0.0 MB) into 1 shard; 0 captions without nouns; "
        "refused 0"
    ]
    with pytest.raises(ShortClipError, match="the video has 1 frame, 4 are needed"):
        choose_frames(1, 4, None, short_clip="skip")
