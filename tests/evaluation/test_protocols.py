"""The named protocols accept their own list and no other."""

from __future__ import annotations

import dataclasses

import pytest

from svilm_fast.evaluation import protocols


def test_a_list_of_another_size_is_refused(make_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(protocols.PROTOCOLS["msrvtt-1ka"], videos=(9,))
    dataset = make_dataset()
    with pytest.raises(ValueError, match="has 1,000 videos with 1,000 captions, the list has 9"):
        protocols.check_protocol("msrvtt-1ka", dataset)
    monkeypatch.setitem(protocols.PROTOCOLS, "msrvtt-1ka", small)
    assert protocols.check_protocol("msrvtt-1ka", dataset).title == "MSR-VTT 1k-A"
    with pytest.raises(ValueError, match="9 videos with 9 captions, the list has 9 with 18"):
        protocols.check_protocol("msrvtt-1ka", make_dataset(captions=2))


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match="unknown protocol '1ka': choose one of msrvtt-1ka"):
        protocols.check_protocol("1ka", None)  # type: ignore[arg-type]
