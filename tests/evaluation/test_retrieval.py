"""From a data set to a result: what is ranked, what is missing, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from svilm_fast.evaluation import (
    Embeddings,
    RetrievalOptions,
    evaluate_dataset,
    rank_embeddings,
    retrieval_table,
)
from svilm_fast.evaluation.embed import CaptionTable
from svilm_fast.evaluation.missing import MissingVideo, missing_videos
from svilm_fast.evaluation.protocols import RetrievalProtocol, listed_size, protocol_lines
from svilm_fast.evaluation.result import missing_notes
from svilm_fast.evaluation.retrieval import manifest_hash


def fake_embeddings(count: int = 20, colours: bool = True) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    videos = torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1)
    noise = 0.1 * torch.randn(count, 16, generator=generator)
    names = ["red", "blue"] if colours else ["", ""]
    objects = [{"objects": [{"color": names[i % 2]}]} if colours else {} for i in range(count)]
    return Embeddings(
        video_ids=[f"v{i}" for i in range(count)],
        captions=[f"a {names[i % 2]} ring, {i}" for i in range(count)],
        videos=videos,
        texts=torch.nn.functional.normalize(videos + noise, dim=1),
        video_of_text=torch.arange(count),
        metadata=objects,
    )


def test_every_clip_of_a_csv_list_is_ranked(make_dataset, colour_model) -> None:
    dataset = make_dataset()
    pictures = RetrievalOptions(keep_frames=2)
    result = evaluate_dataset(colour_model, dataset, pictures, batch_size=4)
    assert result.missing == {}
    assert result.text_to_video.queries == result.text_to_video.gallery_size == 9
    assert result.embeddings.frames is not None
    assert result.embeddings.frames.shape == (9, 2, 32, 32, 3)
    assert result.top_videos.shape == (9, 5)
    assert result.protocol == "test split"
    assert result.colours is None


def test_several_captions_make_several_queries(make_dataset, colour_model) -> None:
    result = evaluate_dataset(colour_model, make_dataset(captions=4), batch_size=4)
    assert result.text_to_video.queries == 36
    assert result.text_to_video.gallery_size == 9
    assert result.video_to_text.queries == 9
    assert result.video_to_text.gallery_size == 36


def test_an_unreadable_video_is_reported_and_not_dropped_silently(
    make_dataset, colour_model
) -> None:
    result = evaluate_dataset(colour_model, make_dataset(broken=(2, 5)), batch_size=4)
    assert list(result.missing) == ["video0002", "video0005"]
    assert all(v.reason and "\n" not in v.reason for v in result.missing.values())
    assert result.text_to_video.gallery_size == 7
    counted = result.recall_counting_missing()[10]
    assert counted == pytest.approx(100 * 7 / 9)
    assert "2 videos missing (video0002, video0005)" in missing_notes(result)[0]
    written = result.to_json()
    assert written["missing"] == {name: v.reason for name, v in result.missing.items()}
    assert written["text_to_video_counting_missing"]["R@10"] == counted


def test_a_listed_video_without_a_file_is_missing_too(make_dataset, colour_model) -> None:
    result = evaluate_dataset(colour_model, make_dataset(gone=(3,), broken=(5,)), batch_size=4)
    assert set(result.missing) == {"video0003", "video0005"}
    assert "no video 'video0003'" in result.missing["video0003"].reason
    assert result.text_to_video.gallery_size == 7
    assert result.recall_counting_missing()[10] == pytest.approx(100 * 7 / 9)


def test_a_broken_video_of_several_captions_is_missing_once(make_dataset, colour_model) -> None:
    result = evaluate_dataset(colour_model, make_dataset(captions=3, broken=(4,)), batch_size=4)
    assert list(result.missing) == ["video0004#0"]
    assert result.text_to_video.queries == 24
    assert result.missing_queries == 3
    assert result.recall_counting_missing()[10] == pytest.approx(100 * 24 / 27)


def test_the_first_clips_are_a_part_of_the_whole(make_dataset, colour_model) -> None:
    dataset = make_dataset(captions=2)
    part = evaluate_dataset(colour_model, dataset, batch_size=4, max_clips=5)
    whole = evaluate_dataset(colour_model, dataset, batch_size=4)
    assert part.embeddings.video_ids == whole.embeddings.video_ids[:3]
    assert part.text_to_video.queries == 5
    assert part.missing == {}
    torch.testing.assert_close(part.embeddings.texts, whole.embeddings.texts[:5])
    assert len(dataset) == 18
    assert part.manifest != whole.manifest


def test_a_video_that_never_arrives_is_missing_once_with_its_reason(make_dataset) -> None:
    captions = CaptionTable.of(make_dataset(captions=2, count=3))
    skipped, refused = {"video0001#1": "cut short"}, {"unlisted": MissingVideo("no file")}
    found = missing_videos(["video0000#0"], captions, skipped, refused)
    assert {name: (video.reason, video.queries) for name, video in found.items()} == {
        "video0001#0": ("cut short", 2),
        "video0002#0": ("not delivered by the loader", 2),
        "unlisted": ("no file", 1),
    }


@pytest.mark.parametrize("kind", ["gone", "broken"])
def test_a_missing_video_of_several_rows_is_one_video(make_dataset, colour_model, kind) -> None:
    dataset = make_dataset(captions=3, **{kind: (4,)})
    result = evaluate_dataset(colour_model, dataset, batch_size=4)
    assert list(result.missing) == ["video0004#0"]
    assert (result.facts["listed_videos"], result.missing_queries) == (9, 3)
    assert listed_size(dataset, None) == (9, 27)


@pytest.mark.parametrize("kind", ["gone", "broken"])
def test_a_protocol_counts_missing_videos_as_failed_queries(
    make_dataset, colour_model, kind
) -> None:
    dataset = make_dataset(captions=2, **{kind: (2, 5)})
    left_out = evaluate_dataset(colour_model, dataset, batch_size=4)
    rules = RetrievalOptions(rules=RetrievalProtocol("x", "X"), set_level=("dsl",))
    result = evaluate_dataset(colour_model, dataset, rules, batch_size=4)
    for k in (1, 5, 10):
        shown = result.text_to_video.recall[k]
        assert shown == pytest.approx(left_out.text_to_video.recall[k] * 14 / 18)
        assert shown == pytest.approx(left_out.recall_counting_missing()[k])
        assert result.recall_counting_missing(False)[k] == pytest.approx(
            left_out.text_to_video.recall[k]
        )
    assert left_out.text_to_video.recall[10] == 100.0
    assert (result.text_to_video.queries, result.text_to_video.failed_queries) == (18, 4)
    assert result.text_to_video.gallery_size == 7
    # Captions of the missing videos are candidates, and the videos failed queries.
    assert (result.video_to_text.queries, result.video_to_text.gallery_size) == (9, 18)
    assert result.apart["set-level dsl v2t"].queries == 9
    assert result.video_to_text.recall[10] <= 100 * 7 / 9
    means = left_out.text_to_video.mean_rank * 14 / 18 + 9 * 4 / 18
    assert result.text_to_video.mean_rank == pytest.approx(means)
    assert "their 4 captions count as failed queries" in missing_notes(result)[0]
    assert result.facts["queries"] == 18


def test_the_candidates_of_a_video_hold_the_captions_of_missing_videos() -> None:
    found = fake_embeddings()
    missing = {"gone": MissingVideo("cut short", ["a", "b"])}
    rules = RetrievalProtocol("x", "X")
    others = found.videos[:2]  # they fit the first two videos better than their own captions
    result = rank_embeddings(found, rules=rules, missing=missing, other_texts=others, resamples=0)
    whole = rank_embeddings(found, resamples=0)
    assert whole.video_to_text.recall[1] == 100.0
    assert result.video_to_text.recall[1] == pytest.approx(100 * 18 / 21)
    assert result.video_to_text.recall[5] == pytest.approx(100 * 20 / 21)
    assert result.text_to_video.recall[1] == pytest.approx(100 * 20 / 22)


def test_captions_that_are_cut_are_in_the_protocol(make_dataset, colour_model) -> None:
    short = {"vocab_size": 300, "length": 4}
    for tokenizer, cut in ((short, 9), ({"vocab_size": 300, "length": 256}, 0)):
        dataset = make_dataset(tokenizer=tokenizer)
        result = evaluate_dataset(colour_model, dataset, batch_size=4)
        assert result.facts["captions_cut"] == cut
        shown = "\n".join(protocol_lines(result.facts))
        assert ("9 captions longer than 4 tokens, cut there" in shown) == (cut > 0)


def test_a_protocol_ends_videos_early(make_dataset, colour_model) -> None:
    whole = evaluate_dataset(colour_model, make_dataset(), batch_size=4)
    rules = RetrievalProtocol("x", "X", first_seconds=0.25)
    dataset = make_dataset()
    cut = evaluate_dataset(colour_model, dataset, RetrievalOptions(rules=rules), batch_size=4)
    assert dataset.config.first_seconds is None
    assert not torch.equal(whole.embeddings.videos, cut.embeddings.videos)
    listed = make_dataset(first_seconds=0.25)
    same = evaluate_dataset(colour_model, listed, batch_size=4)
    torch.testing.assert_close(same.embeddings.videos, cut.embeddings.videos)
    assert "the first 0.25 s of every video" in "\n".join(protocol_lines(cut.facts))
    longer = make_dataset(first_seconds=30.0)
    uncut = evaluate_dataset(colour_model, longer, batch_size=4)
    torch.testing.assert_close(uncut.embeddings.videos, whole.embeddings.videos)


def test_a_training_data_set_is_refused(make_dataset, colour_model) -> None:
    dataset = make_dataset()
    dataset.train = True
    with pytest.raises(ValueError, match="train=False"):
        evaluate_dataset(colour_model, dataset)


def test_the_table_and_the_files_say_the_same(tmp_path: Path) -> None:
    result = rank_embeddings(
        fake_embeddings(), protocol="toy", missing={"gone": MissingVideo("cut short")}
    )
    result.write(tmp_path / "evaluation")
    written = json.loads((tmp_path / "evaluation" / "retrieval.json").read_text())
    assert written["protocol"]["title"] == "toy"
    assert (written["protocol"]["videos"], written["protocol"]["listed_videos"]) == (20, 21)
    assert written["videos"] == written["captions"] == written["distinct_captions"] == 20
    assert written["text_to_video"]["recall"]["R@1"] == result.text_to_video.recall[1]
    assert written["colour_set_baseline"]["recall"]["1"] == pytest.approx(10.0)
    assert [interval["expected"] for interval in written["chance"]] == [5.0, 25.0, 50.0]
    queries = written["queries"]
    assert [query["rank"] for query in queries] == (result.text_rank + 1).tolist()
    assert [q["higher"] + q["ties"] / 2 + 1 for q in queries] == [q["rank"] for q in queries]
    assert written["queries"][0]["best"][0] == "v0"
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    console.print(retrieval_table(result))
    shown = console.export_text()
    for word in ("toy: 20 videos", "colour sets only", "chance (99.9 %)", "1 video missing (gone)"):
        assert word in shown
    assert f"{result.text_to_video.recall[1]:.1f} (" in shown
    assert "toy: 20 videos" in (tmp_path / "evaluation" / "retrieval.txt").read_text()


def test_flat_metrics_for_the_log() -> None:
    result = rank_embeddings(fake_embeddings(colours=False), resamples=0)
    flat = result.metrics()
    assert set(flat) == {
        f"retrieval/{side}_{name}"
        for side in ("t2v", "v2t")
        for name in ("R@1", "R@5", "R@10", "MedR", "MeanR")
    } | {"retrieval/videos_not_decoded"}
    assert flat["retrieval/t2v_R@1"] == result.text_to_video.recall[1]


def test_the_manifest_names_queries_and_gallery_and_nothing_else() -> None:
    base = manifest_hash(["a", "b", "c"], ["x", "y"], [0, 1])
    assert base == manifest_hash(["c", "b", "a"], ["y", "x"], [1, 2])
    assert base != manifest_hash(["a", "b"], ["x", "y"], [0, 1])
    assert base != manifest_hash(["a", "b", "c"], ["x", "y"], [1, 0])
    assert base != manifest_hash(["a", "b", "c"], ["x", "z"], [0, 1])
    assert len(base) == 64
