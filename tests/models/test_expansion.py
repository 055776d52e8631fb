"""A grown video tower computes what the smaller one does; what cannot be kept is refused."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.models.expansion import CannotGrowError, Expansion, difference, grown_sizes
from svilm_fast.objectives.svilm import build_model
from tests.distributed.conftest import small_config, small_inputs, small_model

BARE = ("video.num_groups=0", "objectives.grounding.weight=0")
MODELS = {
    "groups": (),
    "class token": ("video.pool=class_token", "video.class_tokens=4"),
    "pooled groups": ("video.pool=groups", "video.grouping.mode=soft"),
    "clip": (*BARE, "video.pre_norm=true", "video.activation=quick_gelu"),
    "head of tokens": (*BARE, "objectives.vidrop.weight=1", "video.mask.rate=0.5", "ema.decay=0.9"),
}
SIZES = (
    {"width": 32},
    {"depth": 5},
    {"width": 48, "depth": 3, "heads": 2},
    {"width": 32, "depth": 4, "heads": 4},
    {"heads": 2},
)


def trained(*overrides: str):
    """A model whose parameters are all far from their initial values."""
    config = small_config(*overrides)
    model = small_model(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return config, model


def grown(config, model, overrides, wanted, **how):
    sizes = grown_sizes(config.video, *(wanted.get(name) for name in ("width", "depth", "heads")))
    changed = [f"video.{name}={value}" for name, value in sizes.items() if name != "grouping"]
    if "grouping" in sizes:
        changed.append(f"video.grouping.layers={sizes['grouping']['layers']}")
    large = build_model(small_config(*overrides, *changed))
    Expansion(**how).fill(model, large)
    return large


@pytest.mark.parametrize("wanted", SIZES, ids=str)
@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_all_outputs_are_kept(overrides, wanted) -> None:
    config, model = trained(*overrides)
    large = grown(config, model, overrides, wanted)
    assert difference(model.encoder.video, large.encoder.video) < 1e-5


def test_losses_are_kept_in_fp32_and_copies_part_in_the_first_step() -> None:
    overrides = MODELS["head of tokens"]
    config, model = trained(*overrides)
    large = grown(config, model, overrides, {"width": 32, "depth": 4})
    for one in (model, large):
        one.teacher.follow(one.encoder.video.named_parameters())
    batch = small_inputs()
    before, after = model(batch), large(batch)
    torch.testing.assert_close(
        after.metrics["loss_vidrop"], before.metrics["loss_vidrop"], rtol=1e-5, atol=0
    )
    after.loss.backward()
    row = large.encoder.video.blocks[0].mlp.contract.weight.grad
    assert not torch.allclose(row[:16], row[16:], rtol=1e-3)
    # The first new layer learns, although it is the identity.
    assert large.encoder.video.blocks[1].mlp.contract.weight.grad.any()


def test_equal_halves_stay_equal_without_noise() -> None:
    config, model = trained(*BARE)
    large = grown(config, model, BARE, {"width": 32}, noise=0.0)
    large(small_inputs()).loss.backward()
    row = large.encoder.video.blocks[0].mlp.contract.weight.grad
    torch.testing.assert_close(row[:16], row[16:])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"width": 24}, "width 24 is not a multiple of the model's 16"),
        ({"depth": 1}, "depth 1 is below the model's 2"),
        ({"heads": 1}, "cannot hold the model's 2 heads"),
        ({"width": 32, "heads": 8}, "a divisor of 32 from 2 to 4"),
    ],
)
def test_what_cannot_be_kept_is_refused(wanted, message) -> None:
    config, model = trained()
    with pytest.raises(CannotGrowError, match=message):
        grown(config, model, (), wanted)


def test_a_part_without_a_rule_is_refused() -> None:
    class Odd(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(width))

    with pytest.raises(CannotGrowError, match=r"x\.scale of Odd has shape \[4\] and would get"):
        Expansion().fill(torch.nn.ModuleDict({"x": Odd(4)}), torch.nn.ModuleDict({"x": Odd(8)}))
