"""Tables of positions of another size, and what stays new in the report."""

from __future__ import annotations

import torch

from tests.models.pretrained.image_models import SIDE, OpenClip, TimmViT
from tests.models.pretrained.towers import CLIP, encoder, load, saved

EXACT = {"rtol": 0, "atol": 1e-5}


def test_a_finer_grid_interpolates_space_and_keeps_a_linear_ramp(tmp_path):
    tensors = TimmViT().tensors
    rows = torch.arange(SIDE).float()
    ramp = (rows[:, None] + 10 * rows).flatten()[:, None].expand(-1, 24)
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 24), ramp])[None]
    model = encoder({"norm_eps": 1e-6, "pixels": "half", "image_size": 48})
    [report] = load(model, video=saved(tensors, tmp_path / "weights.safetensors"))
    assert any("4 x 4 to 12 x 12 (bicubic)" in line for line in report.changed)
    found = model.video.embedding.space_position.unflatten(0, (12, 12))[..., 0]
    places = (torch.arange(12) + 0.5) / 3 - 0.5  # centres of the finer cells in coarse ones
    inner = slice(5, 7)  # whose four neighbours on every side exist
    expected = places[:, None] + 10 * places
    torch.testing.assert_close(found[inner, inner], expected[inner, inner], rtol=0, atol=1e-4)


def test_weights_of_our_own_interpolate_time_and_space(tmp_path):
    source = encoder(CLIP)
    with torch.no_grad():
        source.video.embedding.time_position.copy_(torch.arange(3.0)[:, None].expand(-1, 24))
    tensors = {f"encoder.{name}": value for name, value in source.state_dict().items()}
    model = encoder(CLIP | {"frames": 12, "image_size": 24, "class_tokens": 3})
    path = saved(tensors, tmp_path / "model.safetensors")
    reports = load(model, video=path, text=path)
    assert reports[0].new == reports[1].new == []
    assert any("in time, 3 to 6 (linear)" in line for line in reports[0].changed)
    assert any("4 x 4 to 6 x 6" in line for line in reports[0].changed)
    times = model.video.embedding.time_position[:, 0]
    torch.testing.assert_close(times, torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.0]), **EXACT)
    for name, value in model.text.state_dict().items():
        assert torch.equal(value, source.text.state_dict()[name])


def test_group_parts_stay_new_and_are_listed(tmp_path):
    model = encoder(CLIP, groups=True)
    before = {name: value.clone() for name, value in model.video.state_dict().items()}
    [report] = load(model, video=saved(OpenClip().tensors, tmp_path / "weights.safetensors"))
    assert {name.partition(".")[0] for name in report.new} == {
        "groups",
        "grouping_blocks",
        "group_norm",
        "group_projection",
    }
    own = model.video.state_dict()
    assert all(torch.equal(own[name], before[name]) for name in report.new)
    assert all(name in report.taken for name in own if name.startswith(("blocks", "norm", "pre")))
    text = "\n".join(report.lines())
    assert "new, with initial values: groups" in text
    assert "inflated: patch embedding over video.tubelet=2 frames" in text
    assert "zero: 3 positions in time" in text
    assert "left out" in text


def test_a_projection_of_another_width_stays_new(tmp_path):
    tensors = OpenClip().tensors
    tensors["visual.proj"] = torch.ones(24, 16)
    model = encoder(CLIP)
    before = model.video.projection.weight.clone()
    [report] = load(model, video=saved(tensors, tmp_path / "weights.safetensors"))
    assert report.new == ["projection.weight", "projection.bias"]
    assert any("width 16, model.embed_dim is 8" in note for note in report.notes)
    assert torch.equal(model.video.projection.weight, before)


def test_half_precision_weights_become_float32(tmp_path):
    tensors = {name: value.half() for name, value in OpenClip().tensors.items()}
    model = encoder(CLIP)
    load(model, video=saved(tensors, tmp_path / "weights.safetensors"))
    assert model.video.norm.weight.dtype == torch.float32
    assert torch.equal(model.video.norm.weight, tensors["visual.ln_post.weight"].float())
