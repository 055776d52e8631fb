"""What does not fit is refused: family, tensors and the settings to change are named."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from svilm_fast.core.errors import CheckpointError
from tests.models.pretrained.image_models import Bert, OpenClip, TimmViT
from tests.models.pretrained.towers import BERT, CLIP, CLIP_TEXT, encoder, load, saved

TIMM = {"norm_eps": 1e-6, "pixels": "half"}


def _refused(model, tower, path, *texts):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load(model, **{tower: path})
    for text in texts:
        assert re.search(text, str(caught.value)), str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"depth": 3}, ["timm ViT", "set video.depth=2"]),
        ({"width": 48}, ["set video.width=24"]),
        ({"mlp_ratio": 2.0}, ["set video.mlp_ratio=4.0"]),
        ({"patch": 8}, ["set video.patch=4"]),
        ({"pre_norm": True}, ["set video.pre_norm=false"]),
        ({"depth": 3, "patch": 8}, ["video.depth=2 video.patch=4"]),
    ],
)
def test_sizes_name_the_settings_to_set(changes, texts, tmp_path):
    path = saved(TimmViT().tensors, tmp_path / "weights.safetensors")
    _refused(encoder(TIMM | changes), "video", path, *texts)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"causal": False}, "set text.causal=true"),
        ({"pool": "mean"}, "set text.pool=end"),
        ({"vocab_size": 70}, "set text.vocab_size=60"),
        ({"embedding_norm": True}, "set text.embedding_norm=false"),
        ({"post_norm": True}, "set text.post_norm=false"),
    ],
)
def test_the_text_towers_layout(changes, text, tmp_path):
    path = saved(OpenClip().tensors, tmp_path / "weights.safetensors")
    _refused(encoder(text=CLIP_TEXT | changes), "text", path, "open_clip text", text)


def test_bert_in_a_pre_norm_tower(tmp_path):
    path = saved(Bert().tensors, tmp_path / "weights.safetensors")
    _refused(encoder(), "text", path, "BERT", "text.embedding_norm=true text.post_norm=true")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("blocks.1.mlp.fc1.bias"), r"they lack blocks\.1\.mlp\.expand\.bias"),
        (lambda t: t.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}), "no part for"),
        (lambda t: t.update({"fc_norm.weight": torch.ones(24)}), r"fc_norm\.weight"),
        (
            lambda t: t.update(pos_embed=torch.ones(1, 15, 24)),
            "14 positions in space are no square",
        ),
        (lambda t: t.update({"norm.bias": torch.ones(5)}), r"norm\.bias \[5\].*\[24\]"),
    ],
)
def test_tensors_that_do_not_fit(change, text, tmp_path):
    tensors = TimmViT().tensors
    change(tensors)
    path = saved(tensors, tmp_path / "weights.safetensors")
    _refused(encoder(TIMM), "video", path, "timm ViT", text)


def test_a_missing_key_projection_is_not_taken_for_zeros(tmp_path):
    tensors = Bert().tensors
    del tensors["bert.encoder.layer.1.attention.self.key.weight"]
    path = saved(tensors, tmp_path / "weights.safetensors")
    _refused(encoder(text=BERT), "text", path, r"they lack blocks\.1\.attention\.qkv\.weight")


def test_weights_of_the_other_tower_and_of_nothing_known(tmp_path):
    path = saved(Bert().tensors, tmp_path / "weights.safetensors")
    _refused(encoder(), "video", path, "they are those of transformers BERT", "known are timm ViT")
    path = saved({"layer4.conv.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    _refused(encoder(), "video", path, "keys begin with layer4.conv.weight")


def test_the_json_beside_the_weights_is_heeded(tmp_path):
    save_file(Bert("").tensors, tmp_path / "model.safetensors")
    config = {"model_type": "bert", "num_attention_heads": 2, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _refused(encoder(text=BERT), "text", tmp_path, "set text.heads=2")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    _refused(encoder(text=BERT), "text", tmp_path, "model_type=roberta")
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    _refused(encoder(text=BERT), "text", tmp_path, "activation 'relu'")
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"num_attention_heads": 3, "layer_norm_eps": 1e-5})
    )
    _refused(encoder(text=BERT), "text", tmp_path, "set text.norm_eps=1e-05")


def test_open_clips_json_names_activation_and_pixels(tmp_path):
    save_file(OpenClip().tensors, tmp_path / "open_clip_model.safetensors")
    vision = {"width": 24, "head_width": 8}
    described = {
        "model_cfg": {"vision_cfg": vision, "text_cfg": {"heads": 3}, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    _refused(encoder(CLIP | {"activation": "gelu"}), "video", tmp_path, "activation=quick_gelu")
    _refused(encoder(CLIP), "video", tmp_path, "set video.pixels=half")
    load(encoder(CLIP | {"pixels": "half"}), video=tmp_path)


@pytest.mark.parametrize(
    ("tower", "block", "text"),
    [
        ("text", {"no_causal_mask": True}, r"text_cfg\.no_causal_mask=True"),
        ("text", {"pool_type": "last"}, r"text_cfg\.pool_type='last'"),
        ("text", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        ("text", {"norm_kwargs": {"eps": 1e-6}}, "set text.norm_eps=1e-06"),
        ("video", {"final_ln_after_pool": True}, "final_ln_after_pool"),
        ("video", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
    ],
)
def test_what_open_clip_computes_differently_is_refused(tower, block, text, tmp_path):
    save_file(OpenClip().tensors, tmp_path / "open_clip_model.safetensors")
    name, given = ("text_cfg", CLIP_TEXT) if tower == "text" else ("vision_cfg", CLIP)
    sizes = {"heads": 3, "width": 24, "head_width": 8}
    described = {"model_cfg": {name: sizes | block, "quick_gelu": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    _refused(encoder(**{tower: given}), tower, tmp_path, text)
    described["model_cfg"][name] = sizes | {"pool_type": "argmax" if tower == "text" else "tok"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    load(encoder(**{tower: given}), **{tower: tmp_path})


def test_pixel_statistics_that_are_none_of_ours_are_refused(tmp_path):
    save_file(TimmViT().tensors, tmp_path / "model.safetensors")
    for statistics in ({"mean": [0.0] * 3}, {"mean": [0.5] * 3, "std": [1.0] * 3}):
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": statistics}))
        _refused(encoder(TIMM), "video", tmp_path, "which is none of ours")


def test_timms_json_names_quick_gelu(tmp_path):
    save_file(TimmViT().tensors, tmp_path / "model.safetensors")
    for config in (
        {"architecture": "vit_base_patch16_clip_quickgelu_224"},
        {"architecture": "vit_base_patch16_224", "model_args": {"act_layer": "quick_gelu"}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        _refused(encoder(TIMM), "video", tmp_path, "set video.activation=quick_gelu")


def test_what_transformers_leaves_out_of_its_json_is_its_default(tmp_path):
    save_file(Bert("").tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    _refused(encoder(text=BERT), "text", tmp_path, "set text.heads=12")
    heads = {"heads": 12}
    _refused(encoder(text=BERT | heads | {"norm_eps": 1e-5}), "text", tmp_path, "norm_eps=1e-12")
    load(encoder(text=BERT | heads), text=tmp_path)


@pytest.mark.parametrize("exported", [True, False])
def test_weights_of_ours_need_the_settings_they_were_trained_with(exported, tmp_path):
    source = encoder()
    prefix = "" if exported else "encoder."
    tensors = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {
        "video": source.video.config.model_dump(mode="json"),
        "text": source.text.config.model_dump(mode="json"),
    }
    # JSON is YAML too.
    name = "config.json" if exported else "config.yaml"
    (tmp_path / name).write_text(json.dumps(settings))
    for tower, changes in (
        ("video", {"heads": 2}),
        ("video", {"pixels": "clip"}),
        ("video", {"activation": "quick_gelu"}),
        ("video", {"pool": "tokens", "class_tokens": 1}),
        ("text", {"heads": 2}),
        ("text", {"norm_eps": 1e-6}),
        ("text", {"pool": "mean"}),
    ):
        key = next(iter(changes))
        value = getattr(getattr(source, tower).config, key)
        _refused(encoder(**{tower: changes}), tower, tmp_path, f"set {tower}.{key}={value}")
    model = encoder()
    torch.nn.init.zeros_(model.video.projection.weight)
    reports = load(model, video=tmp_path, text=tmp_path)
    assert all(not report.new for report in reports)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tensors.values()))


def test_group_tokens_that_the_tower_lacks_are_reported(tmp_path):
    tensors = {f"encoder.{name}": v for name, v in encoder(groups=True).state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    [report] = load(encoder(), video=tmp_path)
    assert {"group_norm.weight", "group_projection.bias"} <= set(report.left_out)
    assert any("left out:" in line and "group_norm (2)" in line for line in report.lines())


def test_the_folder_of_a_run_is_told_apart_from_its_checkpoint(tmp_path):
    (tmp_path / "portable").mkdir()
    _refused(encoder(), "video", tmp_path, "name its checkpoint .*portable")


def test_what_the_weights_do_not_tell_is_printed(tmp_path):
    path = saved(OpenClip().tensors, tmp_path / "weights.safetensors")
    [report] = load(encoder({"pre_norm": True, "norm_eps": 1e-6}), video=path)
    text = "\n".join(report.lines())
    assert (
        "video.activation=gelu, which the weights do not tell; open_clip ViT usually has " in text
    )
    assert "video.norm_eps=1e-06" in text
    assert "video.pixels=imagenet" in text


def test_files(tmp_path):
    model = encoder(TIMM)
    _refused(model, "video", tmp_path / "none", "there are no weights at")
    _refused(model, "video", tmp_path, "holds no safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    _refused(model, "video", tmp_path, "pytorch_model.bin is a pickle")
    _refused(model, "video", tmp_path / "pytorch_model.bin", "is a pickle")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    _refused(model, "video", tmp_path, "is no safetensors file")
    saved(TimmViT().tensors, tmp_path / "b.safetensors")
    _refused(model, "video", tmp_path, "several weights")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    _refused(model, "video", tmp_path, "names '../x', which is not there")


def test_weights_in_several_files(tmp_path):
    tensors = TimmViT().tensors
    names = sorted(tensors)
    parts = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for file, keys in parts.items():
        saved({key: tensors[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    [report] = load(encoder(TIMM), video=tmp_path)
    assert not [name for name in report.new if "blocks" in name]
