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


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_every_protocol_has_its_rules(name: str) -> None:
    protocol = protocols.PROTOCOLS[name]
    facts = protocols.protocol_facts(protocol, queries=4, videos=3, missing=2, manifest="m")
    assert (facts["name"], facts["listed_videos"], facts["missing"]) == (name, 5, 2)
    assert all(facts[rule] for rule in ("query_rule", "tie_rule", "missing_rule"))
    shown = "\n".join(protocols.protocol_lines(facts))
    for text in (name, protocol.title, protocol.query_rule, protocol.tie_rule, protocol.note):
        assert text in shown
    assert "3 of 5 listed videos found" in shown


@pytest.mark.parametrize(
    "sizes, per_video, captions, refused",
    [
        ((9,), 1, 1, None),
        ((9,), None, 3, None),
        ((8, 9), 2, 2, None),
        ((9,), 2, 3, "has 9 videos with 18 captions, the list has 9 with 27"),
        ((7, 8), 1, 1, "has 7 or 8 videos with 1 caption each, the list has 9 with 9"),
        ((8,), None, 3, "has 8 videos, the list has 9 with 27"),
    ],
)
def test_sizes(make_dataset, monkeypatch, sizes, per_video, captions, refused) -> None:
    protocol = protocols.RetrievalProtocol("x", "X", sizes, per_video)
    monkeypatch.setitem(protocols.PROTOCOLS, "x", protocol)
    if refused is None:
        assert protocols.check_protocol("x", make_dataset(captions=captions)) is protocol
    else:
        with pytest.raises(ValueError, match=refused):
            protocols.check_protocol("x", make_dataset(captions=captions))


def test_a_missing_file_counts_towards_the_size(make_dataset, monkeypatch) -> None:
    protocol = protocols.RetrievalProtocol("x", "X", (9,), 1)
    monkeypatch.setitem(protocols.PROTOCOLS, "x", protocol)
    assert protocols.check_protocol("x", make_dataset(gone=(3,))) is protocol
