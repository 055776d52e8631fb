"""The whole model: a step, what a weight of 0 removes, sources, micro-batches, precision."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.flops import count_parameters
from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.features import Features
from svilm_fast.objectives.svilm import SViLM, build_model

CONTRAST_ONLY = {"grounding": {"weight": 0}, "temporal": {"weight": 0}}


def tensors_of(features: Features) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(features) if isinstance(leaf, torch.Tensor)]


def _without_gradient(model: SViLM) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_a_few_steps_learn_the_batch(make_model, inputs):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    outputs = []
    for step in range(25):
        seeds = StepSeeds(0, step, inputs.seeds.keys)
        outputs.append(model(replace(inputs, seeds=seeds)))
        optimizer.zero_grad()
        outputs[-1].loss.backward()
        optimizer.step()
    assert outputs[-1].loss.item() < 0.6 * outputs[0].loss.item()
    first = outputs[0]
    assert set(first.metrics) == {
        "loss_contrast",
        "loss_grounding",
        "loss_temporal",
        "accuracy_v2t",
        "accuracy_t2v",
        "scale_contrast",
        "scale_grounding",
        "beta_grounding",
        "empty_group_rate",
    }
    parts = [first.metrics[f"loss_{name}"] for name in ("contrast", "grounding", "temporal")]
    torch.testing.assert_close(first.loss.detach(), sum(parts))
    for value in first.metrics.values():
        assert value.shape == ()
        assert not value.requires_grad


def test_weights_scale_the_parts(make_model, inputs):
    weights = {"contrast": 0.5, "grounding": 2.0, "temporal": 3.0}
    model = make_model({name: {"weight": weight} for name, weight in weights.items()})
    output = model(inputs)
    expected = sum(weight * output.metrics[f"loss_{name}"] for name, weight in weights.items())
    torch.testing.assert_close(output.loss.detach(), expected)


@pytest.mark.parametrize("head", ["centroid", "rnn", "transformer"])
@pytest.mark.parametrize("pool", ["tokens", "groups", "class_token"])
def test_gradients_reach_every_parameter(make_model, inputs, head, pool):
    model = make_model(
        {"temporal": {"head": head}, "grounding": {"beta": {"learnable": True}}}, pool=pool
    )
    model(inputs).loss.backward()
    assert _without_gradient(model) == []
    # A bias added to all keys, or to all scores, cancels inside a softmax.
    still = [n for n, p in model.named_parameters() if not p.grad.any()]
    assert [name for name in still if not name.endswith("bias")] == []


def test_a_run_is_deterministic(make_model, inputs):
    first, second = make_model()(inputs), make_model()(inputs)
    assert torch.equal(first.loss, second.loss)
    later = make_model()(replace(inputs, seeds=StepSeeds(1, 3, inputs.seeds.keys)))
    assert not torch.equal(first.loss, later.loss)


def test_without_grounding_no_group_and_no_noun_is_computed(make_model, inputs):
    model = make_model({"grounding": {"weight": 0}})
    assert [name for name, _ in model.named_parameters() if "group" in name] == []
    assert not hasattr(model.objectives, "grounding")
    rows = Counter()
    model.encoder.text.embedding.register_forward_hook(
        lambda module, args, out: rows.update(text=len(args[0]))
    )
    output = model(replace(inputs, noun_tokens=None, noun_token_mask=None, noun_mask=None))
    assert rows["text"] == len(inputs.text_tokens)
    assert not {key for key in output.metrics if "ground" in key or "group" in key}
    output.loss.backward()
    assert _without_gradient(model) == []


def test_without_temporal_no_segment_is_computed(make_model, inputs, monkeypatch):
    model = make_model({"temporal": {"weight": 0, "head": "rnn"}})
    monkeypatch.setattr(
        "svilm_fast.models.video_encoder.segment_pool", lambda *a, **k: pytest.fail("pooled")
    )
    output = model(replace(inputs, paste_mask=None))
    assert not hasattr(model.objectives, "temporal")
    assert "loss_temporal" not in output.metrics
    output.loss.backward()
    assert _without_gradient(model) == []


def test_without_contrast_no_caption_is_embedded(make_model, inputs):
    model = make_model({"contrast": {"weight": 0}})
    lengths = []
    model.encoder.text.embedding.register_forward_hook(
        lambda module, args, out: lengths.append(tuple(args[0].shape))
    )
    output = model(inputs)
    assert lengths == [(12, 4)]
    assert "accuracy_v2t" not in output.metrics


def test_temporal_alone_leaves_the_text_encoder_alone(make_model, inputs):
    model = make_model({"contrast": {"weight": 0}, "grounding": {"weight": 0}})
    model.encoder.text.register_forward_hook(lambda *_: pytest.fail("text encoder ran"))
    model(inputs).loss.backward()
    assert all(name.startswith("encoder.text") for name in _without_gradient(model))


def test_group_tokens_can_stay_without_grounding(make_model, inputs):
    model = make_model(CONTRAST_ONLY, grouping={"in_encoder": "always"})
    output = model(inputs)
    assert "empty_group_rate" in output.metrics
    output.loss.backward()
    unused = _without_gradient(model)
    # The last block and the projection have no reader; the first block feeds the joint attention.
    assert unused
    assert all(
        name.startswith(
            (
                "encoder.video.grouping_blocks.2.",
                "encoder.video.group_norm",
                "encoder.video.group_projection",
            )
        )
        for name in unused
    )


@pytest.mark.parametrize(
    "objectives,calls",
    [
        ({}, ["blended"]),
        ({"contrast": {"video": "clean"}, "temporal": {"weight": 0}}, ["blended", "clean"]),
        ({"contrast": {"video": "clean"}}, ["blended", "clean"]),
        (
            {
                "contrast": {"video": "clean"},
                "grounding": {"video": "clean"},
                "temporal": {"weight": 0},
            },
            ["clean"],
        ),
        ({"grounding": {"video": "clean", "weight": 0}}, ["blended"]),
    ],
)
def test_videos_are_encoded_once_where_objectives_agree(make_model, inputs, objectives, calls):
    model = make_model(objectives)
    seen = []
    model.encoder.video.register_forward_hook(
        lambda module, args, out: seen.append(
            "clean" if torch.equal(args[0], inputs.frames) else "blended"
        )
    )
    model(inputs)
    assert sorted(seen) == calls


def test_sources_feed_the_objective_they_are_set_for(make_model, inputs):
    model = make_model({"contrast": {"video": "clean"}}).eval()
    features = model.embed(inputs)
    clean = model.encoder.encode_video(inputs.frames, inputs.seeds)
    blended = model.encoder.encode_video(inputs.blended, inputs.seeds)
    torch.testing.assert_close(features.clean.video, clean.video)
    torch.testing.assert_close(features.blended.groups, blended.groups)
    torch.testing.assert_close(features.blended.segments, blended.segments)
    assert features.clean.groups is features.clean.segments is features.blended.video is None


def test_micro_batches_embed_as_the_whole_batch(make_model, inputs, take_rows):
    model = make_model(drop_path=0.3, dropout=0.2, drop={"rate": 0.3}).double()
    whole = model.embed(inputs)
    parts = [
        model.embed(take_rows(inputs, rows)) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    joined = Features.joined(parts, [1 / 6, 3 / 6, 2 / 6])
    pairs = list(zip(tensors_of(joined), tensors_of(whole), strict=True))
    assert len(pairs) == 10
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.objective(joined).loss, model(inputs).loss)


def test_float64_stays_float64(make_model, inputs):
    model = make_model().double()
    output = model(inputs)
    assert output.loss.dtype == torch.float64
    single = make_model()(inputs)
    torch.testing.assert_close(single.loss.double(), output.loss, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_embeddings_scales_and_losses_in_fp32(make_model, inputs):
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.embed(inputs)
        output = model.objective(features)
    embeddings = list(features.differentiable())
    assert len(embeddings) == 5
    for embedding in embeddings:
        assert embedding.dtype == torch.float32
        assert (embedding.norm(dim=-1) - 1).abs().max() < 1e-5
    assert output.loss.dtype == torch.float32
    assert output.metrics["scale_contrast"].dtype == torch.float32
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert abs(output.loss.item() - make_model()(inputs).loss.item()) < 0.1


@pytest.mark.parametrize("head", ["centroid", "rnn", "transformer"])
def test_a_bf16_model_gives_fp32_losses(make_model, inputs, head):
    model = make_model({"temporal": {"head": head, "heads": 2}}).bfloat16()
    output = model(inputs)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert _without_gradient(model) == []


def test_products_in_autocast_round_what_the_pairwise_losses_get(make_model, inputs, monkeypatch):
    losses, dtypes = {}, {}
    for products in ("fp32", "autocast"):
        model, seen = make_model({"products": products}), []
        for part in (model.objectives.contrast, model.objectives.grounding):

            def loss(*given, kept=part.loss, seen=seen):
                seen.append(given[0].dtype)
                return kept(*given)

            monkeypatch.setattr(part, "loss", loss)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses[products] = model(inputs).loss
        model(inputs)
        dtypes[products] = seen
    full, half = torch.float32, torch.bfloat16
    assert dtypes == {"fp32": [full] * 4, "autocast": [half, half, full, full]}
    assert losses["autocast"].dtype == torch.float32
    assert 0 < abs(losses["fp32"] - losses["autocast"]) < 0.02 * losses["fp32"]


@pytest.mark.parametrize("preset,millions", [("tiny", 2.8), ("base", 238.1), ("large", 489.8)])
def test_presets_build_on_the_meta_device(preset, millions):
    with torch.device("meta"):
        model = build_model(SViLMConfig(model={"preset": preset}))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert list(model.buffers()) == []
    assert count_parameters(model)["total"] / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    "missing,message",
    [
        ("blended", r"reads the blended video, but ModelInputs\.blended is missing"),
        ("noun_tokens", "needs noun_tokens, noun_token_mask and noun_mask"),
        ("paste_mask", "reads `paste_mask`"),
        ("seeds", "noisy in training and the inputs hold no seeds"),
    ],
)
def test_missing_inputs_are_named(make_model, inputs, missing, message):
    with pytest.raises(ValueError, match=message):
        make_model()(replace(inputs, **{missing: None}))


def test_evaluation_needs_no_seeds(make_model, inputs):
    model = make_model(drop={"rate": 0.5}).eval()
    without = replace(inputs, seeds=None)
    assert torch.equal(model(without).loss, model(without).loss)


def test_grounding_without_group_tokens_is_refused(make_model):
    with pytest.raises(ValueError, match=r"set video\.num_groups above 0"):
        make_model(num_groups=0)
