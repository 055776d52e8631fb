"""The estimate of what a pass keeps, against the storages that autograd really saves."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from svilm_fast.objectives.svilm import build_model
from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.activations import activations
from svilm_fast.train.plan.workload import workload_of

TOLERANCE = 0.15
CASES = [
    (4, ["training.precision=fp32"]),
    (16, ["training.precision=fp32"]),
    (8, ["training.precision=bf16_autocast"]),
    (4, ["training.precision=bf16"]),
    (8, ["video.checkpoint_activations=true", "text.checkpoint_activations=true"]),
    (8, ["video.checkpoint_activations=true", "training.precision=bf16_autocast"]),
    (4, ["model.attention=reference"]),
    (4, ["video.drop.rate=0.3", "video.drop.rate_max=0.6"]),
    (4, ["objectives.contrast.video=blended", "objectives.grounding.video=blended"]),
    (4, ["objectives.grounding.weight=0"]),
    (4, ["video.dropout=0.1", "text.dropout=0.1"]),
    (8, ["video.lock=true", "training.precision=bf16_autocast"]),
    (8, ["text.lock=true", "video.lock=2"]),
    (8, ["text.lock=1", "video.lock=0", "training.precision=bf16_autocast"]),
    (8, ["video.lock=1", "text.lock=0"]),
    (
        8,
        [
            "video.activation=quick_gelu",
            "video.pre_norm=true",
            "video.pool=class_token",
            "video.class_tokens=4",
            "text.activation=quick_gelu",
            "text.causal=true",
            "text.pool=end",
        ],
    ),
    (8, ["text.post_norm=true", "text.embedding_norm=true", "training.precision=bf16_autocast"]),
]
SMALL = ["model.preset=small", "video.depth=4", "text.depth=2", "text.length=32"]


def _compare(pairs, overrides, batch_of_pairs, alive) -> None:
    config = load_config("demo", [f"training.global_batch={pairs}", *overrides])
    precision = config.training.precision
    torch.manual_seed(0)
    model = build_model(config).train()
    if precision == "bf16":
        model.to(torch.bfloat16)
    inputs = batch_of_pairs(config, pairs)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    packed: dict[int, weakref.ref] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        packed[storage._cdata] = weakref.ref(storage)
        return tensor

    with alive:
        alive.add(*(value for value in vars(inputs).values() if isinstance(value, torch.Tensor)))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            alive.add(parameter)
        base = alive.now
        with (
            saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_autocast"),
        ):
            embedded = model.embed(inputs)
        # Checkpointing packs the inputs of locked blocks too, and lets go of them at once.
        storages = [kept() for key, kept in packed.items() if key not in parameters]
        saved = sum(storage.nbytes() for storage in storages if storage is not None)
        del storages
        found = list(embedded.differentiable())
        del embedded
        torch.stack([t.float().square().sum() for t in found]).sum().backward()
    estimate = activations(
        workload_of(config, 1, on_gpu=False),
        pairs,
        checkpoint_video=bool(config.video.checkpoint_activations),
        checkpoint_text=bool(config.text.checkpoint_activations),
    )
    assert estimate.total == pytest.approx(saved, rel=TOLERANCE)
    assert estimate.peak == pytest.approx(alive.peak - base, rel=TOLERANCE)


@pytest.mark.parametrize("pairs, overrides", CASES)
def test_a_pass_keeps_what_is_estimated(pairs, overrides, batch_of_pairs, alive) -> None:
    _compare(pairs, overrides, batch_of_pairs, alive)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["video.checkpoint_activations=true"]])
def test_a_pass_of_the_small_preset_keeps_what_is_estimated(extra, batch_of_pairs, alive) -> None:
    _compare(2, [*SMALL, *extra], batch_of_pairs, alive)


def test_without_a_graph_no_more_is_alive_than_estimated(batch_of_pairs, alive) -> None:
    config = load_config("demo", ["training.global_batch=8"])
    model = build_model(config)
    inputs = batch_of_pairs(config, 8)
    with alive, torch.no_grad():
        alive.add(*model.parameters())
        alive.add(*(value for value in vars(inputs).values() if isinstance(value, torch.Tensor)))
        base = alive.now
        model.embed(inputs)
    workload = workload_of(config, 1, on_gpu=False)
    estimate = activations(workload, 8, checkpoint_video=False, checkpoint_text=False)
    assert 0.6 * estimate.forward < alive.peak - base < 1.15 * estimate.forward
