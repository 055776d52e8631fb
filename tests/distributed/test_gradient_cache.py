"""The gradient cache without an engine, in float64: the same loss and gradients in less memory."""

from __future__ import annotations

import weakref
from dataclasses import fields, replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.features import Features

CLEAN = ("objectives.contrast.video=clean", "objectives.temporal.head=rnn")
CHECKPOINTED = ("video.checkpoint_activations=true", "text.checkpoint_activations=true")
PARTNERS = ("objectives.contrast.exclude_partner=true", "video.drop.rate_max=0.6")


def tensors_of(features: Features) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(features) if isinstance(leaf, torch.Tensor)]


def gradients_of(model) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def on_device(inputs: ModelInputs, device: str) -> ModelInputs:
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    seeds = values.pop("seeds")
    return ModelInputs(
        **{name: None if value is None else value.to(device) for name, value in values.items()},
        seeds=replace(seeds, keys=seeds.keys.to(device)),
    )


@pytest.mark.parametrize("objectives", ["softmax", "heads", "clean", "partners"])
def test_loss_metrics_and_every_gradient_equal_those_of_one_pass(
    make_config, make_model, inputs_of, noise, heads, objectives
) -> None:
    chosen = {
        "softmax": (),
        "heads": heads,
        "clean": (*CLEAN, *CHECKPOINTED),
        "partners": PARTNERS,
    }[objectives]
    # 8 pairs one by one are micro-batches of 1/8; 12 pairs by 5 leave a smaller last part.
    inputs, size = (inputs_of().rows(slice(0, 8)), 1) if chosen == () else (inputs_of(), 5)
    config = make_config(*noise, *chosen)
    plain, model = make_model(config).double(), make_model(config).double()
    expected = plain(inputs)
    expected.loss.backward()
    step = CachedStep(model, inputs, size)
    assert len(step) == 1 + len(inputs.split(size))
    step.backward()
    torch.testing.assert_close(step.output.loss, expected.loss, rtol=0, atol=1e-10)
    assert set(step.output.metrics) == set(expected.metrics)
    for name, value in expected.metrics.items():
        torch.testing.assert_close(step.output.metrics[name], value, rtol=0, atol=1e-10)
        assert not step.output.metrics[name].requires_grad
    wanted = gradients_of(plain)
    for name, gradient in gradients_of(model).items():
        assert wanted[name] is not None, name
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-10, msg=name)


def test_the_replay_repeats_the_first_pass_bit_for_bit(
    make_config, make_model, inputs_of, noise
) -> None:
    model = make_model(make_config(*noise))
    passes: list[Features] = []

    class Watched:
        objective = model.objective

        @staticmethod
        def embed(inputs):
            passes.append(model.embed(inputs))
            return passes[-1]

    CachedStep(Watched(), inputs_of(), 4).backward()
    first, again = passes[:3], passes[3:]
    assert len(again) == 3
    for before, after in zip(first, again, strict=True):
        pairs = list(zip(tensors_of(before), tensors_of(after), strict=True))
        assert len(pairs) == 10
        for value, repeated in pairs:
            assert torch.equal(value, repeated)
    assert not first[0].blended.video.requires_grad
    assert again[0].blended.video.requires_grad


def test_what_autograd_keeps_at_once_shrinks_with_the_micro_batch(
    make_config, make_model, inputs_of
) -> None:
    model, inputs = make_model(make_config()), inputs_of()
    live = peak = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    def let_go(size: int) -> None:
        nonlocal live
        live -= size

    def pack(tensor: torch.Tensor) -> Kept:
        nonlocal live, peak
        kept = Kept(tensor)
        size = 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel()
        live += size
        peak = max(peak, live)
        weakref.finalize(kept, let_go, size)
        return kept

    peaks = []
    for step in (lambda: model(inputs).loss.backward(), CachedStep(model, inputs, 1).backward):
        live = peak = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            step()
        assert live == 0
        peaks.append(peak)
    whole, one_by_one = peaks
    # A twelfth, and views of the weights, which do not depend on the batch.
    assert one_by_one < whole / 6


def test_a_loss_that_is_not_replayed_leaves_no_gradient(make_config, make_model, inputs_of) -> None:
    model = make_model(make_config())
    step = CachedStep(model, inputs_of(), 4)
    assert step.output.loss.requires_grad
    assert all(gradient is None for gradient in gradients_of(model).values())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_cache_equals_one_pass_with_the_kernels_of_the_device(
    make_config, make_model, inputs_of, noise, device
) -> None:
    sizes = ("model.embed_dim=64", "video.width=64", "text.width=64", "video.num_groups=16")
    config, inputs = make_config(*noise, *sizes), on_device(inputs_of(), device)
    plain, model = make_model(config).to(device), make_model(config).to(device)
    expected = plain(inputs)
    expected.loss.backward()
    step = CachedStep(model, inputs, 5)
    step.backward()
    torch.testing.assert_close(step.output.loss, expected.loss, rtol=1e-5, atol=0)
    wanted, found = (
        torch.cat([gradient.flatten() for gradient in gradients_of(side).values()])
        for side in (plain, model)
    )
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def accumulated_with_the_loss_of_each_part(model, inputs, size: int) -> None:
    """Accumulation with cached features as open_clip's --accum-freq does it.

    All features are first computed without a graph; then the loss of the whole batch is taken once
    for each part, with that part's features fresh and the others' cached, and every loss is
    backpropagated. An encoder is reached by one of them, the scale by all.
    """
    parts = inputs.split(size)
    with torch.no_grad():
        cached = [model.embed(part) for part in parts]
    for number, part in enumerate(parts):
        mixed = [*cached[:number], model.embed(part), *cached[number + 1 :]]
        joined = Features.joined(mixed, [1 / len(parts)] * len(parts))
        model.objective(joined).loss.backward()


def test_scales_get_their_gradient_once_and_not_once_per_micro_batch(
    make_config, make_model, inputs_of, noise
) -> None:
    config, inputs = make_config(*noise), inputs_of()
    one_pass, flawed, ours = (make_model(config).double() for _ in range(3))
    one_pass(inputs).loss.backward()
    accumulated_with_the_loss_of_each_part(flawed, inputs, 3)
    CachedStep(ours, inputs, 3).backward()
    wanted, repeated, once = gradients_of(one_pass), gradients_of(flawed), gradients_of(ours)
    scalars = [name for name in wanted if name.startswith("objectives.")]
    assert len(scalars) == 3  # two scales and beta
    for name in scalars:
        assert abs(wanted[name]) > 1e-8
        torch.testing.assert_close(repeated[name], 4 * wanted[name], rtol=1e-9, atol=0, msg=name)
        torch.testing.assert_close(once[name], wanted[name], rtol=1e-9, atol=0, msg=name)
    encoder = "encoder.text.projection.weight"
    torch.testing.assert_close(repeated[encoder], wanted[encoder], rtol=0, atol=1e-10)


def test_a_micro_batch_of_nothing_is_refused(make_config, make_model, inputs_of) -> None:
    with pytest.raises(ValueError, match="needs at least 1 sample, got 0"):
        CachedStep(make_model(make_config()), inputs_of(), 0)
