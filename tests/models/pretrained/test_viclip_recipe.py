"""CLIP's weights fit the towers of the ViCLIP recipe."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.train.config.load import load_config
from tests.models.pretrained.image_models import OpenClip
from tests.models.pretrained.towers import (
    TEXT,
    VIDEO,
    images,
    load,
    normalised,
    saved,
    sizes,
    still,
)

SIZES = [
    f"{block}.{name}={values[name]}"
    for block, values, names in (
        ("video", VIDEO, ("image_size", "patch", "width", "depth", "heads")),
        ("text", TEXT, ("length", "width", "depth", "heads")),
    )
    for name in names
]


@pytest.mark.parametrize("frames", [1, 8])
def test_both_towers_are_filled_whole(frames: int, tmp_path) -> None:
    """With a single frame the features are those of the image model; the text's always are."""
    more = [f"model.embed_dim={sizes.EMBED}"]
    more += [f"data.tokenizer.{name}={sizes.LENGTH}" for name in ("length", "noun_length")]
    more += [f"video.frames={frames}", f"video.num_segments={frames}"]
    config = load_config("viclip_base", [*SIZES, *more])
    # A tokenizer has at least 260 entries, the model of the test fewer.
    text = config.text.model_copy(update={"vocab_size": sizes.VOCABULARY})
    model = DualEncoder(config.model, config.video, text, groups=False).eval()
    source = OpenClip()
    weights = saved(source.tensors, tmp_path / "weights.safetensors")
    reports = load(model, video=weights, text=weights)
    assert [report.new for report in reports] == [[], []]
    assert (model.video.embedding.time_position == 0).all()
    tokens = torch.randint(1, sizes.VOCABULARY - 1, (2, 6))
    tokens[:, -1] = sizes.VOCABULARY - 1
    with torch.no_grad():
        found = model.encode_video(still(images(), frames)).video
        texts = model.encode_text(tokens, torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(texts, source.text_embedding(tokens), rtol=0, atol=1e-5)
    expected = source.image_embedding(normalised(images(), "clip"))
    if frames == 1:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # One class token for 8 frames has an eighth of its weight, as in ViCLIP: close, not equal.
    assert (found * expected).sum(-1).min() > 0.8
