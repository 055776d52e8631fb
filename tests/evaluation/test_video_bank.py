"""QB-Norm from video to text: its bank is training videos, never the test set alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from svilm_fast.core.errors import UserError
from svilm_fast.evaluation import RetrievalOptions, evaluate_dataset, query_bank, video_bank
from svilm_fast.evaluation.protocols import protocol_lines
from svilm_fast.evaluation.query_bank import QueryBank
from svilm_fast.evaluation.result import summarise_queries
from svilm_fast.evaluation.set_level import set_level_ranks
from svilm_fast.evaluation.video_bank import open_video_bank

CAPTIONS = QueryBank("train.jsonl", ["a dog", "a cat"], 2)


@pytest.fixture
def told(monkeypatch) -> list[str]:
    found: list[str] = []
    for module in (query_bank, video_bank):
        monkeypatch.setattr(
            module.log, "warning", lambda text, *values: found.append(text % values)
        )
    return found


def test_training_videos_are_embedded_and_named(make_dataset, colour_model, tmp_path, told) -> None:
    dataset = make_dataset(captions=2)
    for number in range(6):  # the files are others, one of them broken, and one is a test video
        content = (tmp_path / f"video{number:04d}.mp4").read_bytes()
        end = len(content) // 3 if number == 2 else len(content)
        (tmp_path / f"train{number}.mp4").write_bytes(content[:end])
    names = [*(f"train{number}" for number in range(6)), "train0", "video0008"]
    bank = tmp_path / "bank.csv"
    bank.write_text("video\n" + "".join(f"{name}.mp4\n" for name in names))
    opened = open_video_bank(dataset, str(bank))
    assert (len(opened.dataset.table), opened.total) == (7, 7)
    assert "its bank contains 1 video of the test set" in told[0]
    options = RetrievalOptions(set_level=("qbnorm",), bank=CAPTIONS, video_bank=opened)
    result = evaluate_dataset(colour_model, dataset, options, batch_size=4)
    assert list(result.apart) == ["set-level qbnorm t2v", "set-level qbnorm v2t"]
    facts = result.to_json()["protocol"]["video_bank"]
    counts = {name: facts[name] for name in facts if name != "sha256"}
    assert counts == {
        "source": "bank.csv",
        "videos": 6,
        "not_decoded": 1,
        "of": 7,
        "test_videos_among_them": 1,
    }
    lines = "\n".join(protocol_lines(result.facts))
    assert "QB-Norm bank of videos: 6 of 7 videos of bank.csv" in lines
    assert "1 could not be decoded" in lines
    # A copy of a test video has its embedding: the bank that was used is known.
    found = result.embeddings
    rows = [found.video_ids.index(f"video{number:04d}#0") for number in (0, 1, 3, 4, 5, 8)]
    back = set_level_ranks(
        found.videos,
        found.texts,
        torch.arange(len(found.videos)),
        found.video_of_text,
        "qbnorm",
        bank=found.videos[rows],
    )
    expected = summarise_queries(back, None, {}, 0).recall
    assert result.apart["set-level qbnorm v2t"].recall == expected
    some = open_video_bank(dataset, str(bank), most=3)
    assert (len(some.dataset.table), some.total) == (3, 7)


def test_a_bank_of_test_videos_is_refused(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset()
    shutil.copy(tmp_path / "list.csv", tmp_path / "bank.csv")
    with pytest.raises(UserError, match="holds only videos of the test set"):
        open_video_bank(dataset, str(tmp_path / "bank.csv"))
