"""Weights saved by timm, open_clip and transformers themselves, where these are installed."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from tests.models.pretrained import image_models as sizes
from tests.models.pretrained.towers import (
    BERT,
    CLIP,
    CLIP_TEXT,
    encoder,
    images,
    load,
    normalised,
    saved,
    still,
)

EXACT = {"rtol": 0, "atol": 1e-5}
SIDE = sizes.SIDE * sizes.PATCH
END = sizes.VOCABULARY - 1


@pytest.fixture(autouse=True)
def _libraries_see_no_folder_of_ours(monkeypatch):
    """transformers takes a folder `kernels` on the path for the package of that name."""
    if "kernels" not in sys.modules:
        monkeypatch.setitem(sys.modules, "kernels", None)


@pytest.fixture(autouse=True)
def _larger_weights():
    torch.manual_seed(0)


def _randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _captions():
    tokens = torch.randint(1, END, (3, 10))
    lengths = torch.tensor([4, 10, 7])
    mask = torch.arange(10) < lengths[:, None]
    tokens = tokens.masked_fill(~mask, 0)
    tokens[torch.arange(3), lengths - 1] = END
    return tokens, mask


@torch.no_grad()
def _pooled(model):
    return model.encode_video(still(images())).pooled


@pytest.mark.parametrize("init_values", [None, 0.5])
@torch.no_grad()
def test_timm(init_values, tmp_path):
    timm = pytest.importorskip("timm")
    source = _randomised(
        timm.models.vision_transformer.VisionTransformer(
            img_size=SIDE,
            patch_size=sizes.PATCH,
            embed_dim=sizes.WIDTH,
            depth=sizes.DEPTH,
            num_heads=sizes.HEADS,
            init_values=init_values,
        )
    )
    model = encoder({"norm_eps": 1e-6, "pixels": "half"})
    load(model, video=saved(source.state_dict(), tmp_path / "weights.safetensors"))
    expected = source.forward_features(normalised(images(), "half"))[:, 0]
    torch.testing.assert_close(_pooled(model), expected, **EXACT)


@torch.no_grad()
def test_timm_at_another_resolution(tmp_path):
    timm = pytest.importorskip("timm")
    make = timm.models.vision_transformer.VisionTransformer
    same = {"patch_size": sizes.PATCH, "embed_dim": sizes.WIDTH, "depth": sizes.DEPTH}
    source = _randomised(make(img_size=SIDE, num_heads=sizes.HEADS, **same))
    larger = make(img_size=2 * SIDE, num_heads=sizes.HEADS, **same).eval()
    state = source.state_dict()
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], [2 * sizes.SIDE] * 2
    )
    larger.load_state_dict(state)
    model = encoder({"norm_eps": 1e-6, "pixels": "half", "image_size": 2 * SIDE})
    [report] = load(model, video=saved(source.state_dict(), tmp_path / "weights.safetensors"))
    assert any("4 x 4 to 8 x 8 (bicubic)" in line for line in report.changed)
    image = images(2 * SIDE)
    expected = larger.forward_features(normalised(image, "half"))[:, 0]
    torch.testing.assert_close(model.encode_video(still(image)).pooled, expected, **EXACT)


@torch.no_grad()
def test_transformers_vit(tmp_path):
    transformers = pytest.importorskip("transformers")
    source = _randomised(
        transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=sizes.WIDTH,
                num_hidden_layers=sizes.DEPTH,
                num_attention_heads=sizes.HEADS,
                intermediate_size=sizes.HIDDEN,
                image_size=SIDE,
                patch_size=sizes.PATCH,
            )
        )
    )
    source.save_pretrained(tmp_path / "vit")
    model = encoder({"norm_eps": 1e-12, "pixels": "half"})
    load(model, video=tmp_path / "vit")
    expected = source(normalised(images(), "half")).last_hidden_state[:, 0]
    torch.testing.assert_close(_pooled(model), expected, **EXACT)


@torch.no_grad()
def test_transformers_clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    same = {
        "hidden_size": sizes.WIDTH,
        "intermediate_size": sizes.HIDDEN,
        "num_hidden_layers": sizes.DEPTH,
        "num_attention_heads": sizes.HEADS,
    }
    source = _randomised(
        transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=same
                | {
                    "vocab_size": sizes.VOCABULARY,
                    "max_position_embeddings": sizes.LENGTH,
                    "eos_token_id": END,
                    "bos_token_id": END - 1,
                },
                vision_config=same | {"image_size": SIDE, "patch_size": sizes.PATCH},
                projection_dim=sizes.EMBED,
            )
        )
    )
    source.save_pretrained(tmp_path / "clip")
    model = encoder(CLIP, CLIP_TEXT)
    load(model, video=tmp_path / "clip", text=tmp_path / "clip")
    tokens, mask = _captions()
    found = source(
        input_ids=tokens, attention_mask=mask.long(), pixel_values=normalised(images(), "clip")
    )
    torch.testing.assert_close(
        model.encode_video(still(images())).video, found.image_embeds, **EXACT
    )
    torch.testing.assert_close(model.encode_text(tokens, mask), found.text_embeds, **EXACT)


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@torch.no_grad()
def test_open_clip(kind, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    source = _randomised(
        getattr(open_clip.model, kind)(
            sizes.EMBED,
            {
                "layers": sizes.DEPTH,
                "width": sizes.WIDTH,
                "head_width": sizes.WIDTH // sizes.HEADS,
                "patch_size": sizes.PATCH,
                "image_size": SIDE,
            },
            {
                "context_length": sizes.LENGTH,
                "vocab_size": sizes.VOCABULARY,
                "width": sizes.WIDTH,
                "heads": sizes.HEADS,
                "layers": sizes.DEPTH,
            },
            quick_gelu=True,
        )
    )
    path = saved(source.state_dict(), tmp_path / "weights.safetensors")
    model = encoder(CLIP, CLIP_TEXT)
    load(model, video=path, text=path)
    expected = source.encode_image(normalised(images(), "clip"), normalize=True)
    torch.testing.assert_close(model.encode_video(still(images())).video, expected, **EXACT)
    tokens, mask = _captions()
    padded = F.pad(tokens, (0, sizes.LENGTH - tokens.shape[1]))
    torch.testing.assert_close(
        model.encode_text(tokens, mask), source.encode_text(padded, normalize=True), **EXACT
    )


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
@torch.no_grad()
def test_transformers_bert(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    same = {"vocab_size": sizes.VOCABULARY, "max_position_embeddings": sizes.LENGTH}
    if kind == "Bert":
        own = {
            "hidden_size": sizes.WIDTH,
            "num_hidden_layers": sizes.DEPTH,
            "num_attention_heads": sizes.HEADS,
            "intermediate_size": sizes.HIDDEN,
        }
    else:
        own = {
            "dim": sizes.WIDTH,
            "n_layers": sizes.DEPTH,
            "n_heads": sizes.HEADS,
            "hidden_dim": sizes.HIDDEN,
        }
    config = getattr(transformers, f"{kind}Config")(**same, **own)
    source = _randomised(getattr(transformers, f"{kind}Model")(config))
    source.save_pretrained(tmp_path / "text")
    model = encoder(text=BERT)
    load(model, text=tmp_path / "text")
    tokens, mask = _captions()
    states = source(input_ids=tokens, attention_mask=mask.long()).last_hidden_state[:, 0]
    expected = F.normalize(model.text.projection(states), dim=-1)
    torch.testing.assert_close(model.encode_text(tokens, mask), expected, **EXACT)
