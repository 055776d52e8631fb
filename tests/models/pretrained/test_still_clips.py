"""A still clip gives the image model's features to 1e-5, where joint attention allows it."""

from __future__ import annotations

import pytest
import torch

from tests.models.pretrained.image_models import (
    OpenClip,
    TimmViT,
    TransformersViT,
    as_transformers_clip,
)
from tests.models.pretrained.towers import CLIP, encoder, images, load, normalised, saved, still

EXACT = {"rtol": 0, "atol": 1e-5}


def _pooled(model, frames):
    with torch.no_grad():
        return model.encode_video(frames).pooled


CASES = {
    "timm": (TimmViT, {}),
    "timm with LayerScale": (lambda: TimmViT(scale=True), {}),
    "timm without class token": (
        lambda: TimmViT(class_token=False),
        {"pool": "tokens", "class_tokens": 1},
    ),
    "transformers": (TransformersViT, {}),
    "transformers without prefix": (lambda: TransformersViT(""), {}),
    "open_clip": (OpenClip, CLIP),
    "open_clip, one temporal position": (OpenClip, CLIP | {"tubelet": 6, "class_tokens": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_still_clip_gives_the_image_models_features(name, tmp_path):
    make, changes = CASES[name]
    source = make()
    changes = {"norm_eps": source.eps, "pixels": source.pixels} | changes
    if changes.get("tubelet") == 6:
        changes |= {"num_segments": 1}
    model = encoder(changes)
    [report] = load(model, video=saved(source.tensors, tmp_path / "weights.safetensors"))
    expected = source(normalised(images(), source.pixels))
    assert expected.std() > 0.1
    torch.testing.assert_close(_pooled(model, still(images())), expected, **EXACT)
    assert report.notes == ["a still clip gives the image model's embedding"]


def test_clip_embeddings_with_projection_under_both_libraries_names(tmp_path):
    source = OpenClip()
    expected = source.image_embedding(normalised(images(), "clip"))
    for number, tensors in enumerate((source.tensors, as_transformers_clip(source))):
        model = encoder(CLIP)
        load(model, video=saved(tensors, tmp_path / f"{number}.safetensors"))
        with torch.no_grad():
            torch.testing.assert_close(model.encode_video(still(images())).video, expected, **EXACT)


@pytest.mark.parametrize(
    ("changes", "groups", "reason"),
    [
        ({"class_tokens": 1}, False, "video.class_tokens=1"),
        ({}, True, "group tokens take part"),
        ({"pool": "tokens", "class_tokens": 1}, False, "leaves out the class token"),
    ],
)
def test_where_joint_attention_does_not_allow_it_the_report_says_so(
    changes, groups, reason, tmp_path
):
    source = TimmViT()
    model = encoder({"norm_eps": 1e-6, "pixels": "half"} | changes, groups=groups)
    [report] = load(model, video=saved(source.tensors, tmp_path / "weights.safetensors"))
    assert len(report.notes) == 1
    assert reason in report.notes[0]
    expected = source(normalised(images(), "half"))
    difference = (_pooled(model, still(images())) - expected).abs().max()
    assert difference > 1e-3


def test_the_number_of_frames_does_not_change_the_features_of_a_still_clip(tmp_path):
    path = saved(OpenClip().tensors, tmp_path / "weights.safetensors")
    found = []
    for frames in (2, 6, 12):
        model = encoder(CLIP | {"frames": frames, "class_tokens": frames // 2, "num_segments": 1})
        load(model, video=path)
        found.append(_pooled(model, still(images(), frames)))
    torch.testing.assert_close(found[1], found[0], **EXACT)
    torch.testing.assert_close(found[2], found[0], **EXACT)


def test_moving_clips_still_differ(tmp_path):
    model = encoder(CLIP)
    load(model, video=saved(OpenClip().tensors, tmp_path / "weights.safetensors"))
    clip = still(images()).clone()
    clip[:, 3:] = 255 - clip[:, 3:]
    assert (_pooled(model, clip) - _pooled(model, still(images()))).abs().max() > 0.01
