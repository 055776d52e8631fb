"""The gradient cache under DeepSpeed on one rank: every stage, reduction and precision."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.core.errors import ConfigError
from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.train.engine.engine import EngineHalves

SGD = ("optimizer.name=sgd", "optimizer.lr=0.0005")
CASES = [(0, "boundary"), (1, "coalesce"), (1, "boundary"), (2, "coalesce"), (2, "boundary")]
CASES += [(3, "coalesce"), (3, "boundary")]
CHECKPOINTED = ("video.checkpoint_activations=true", "text.checkpoint_activations=true")


def all_cases(*always: tuple[int, str]) -> list:
    """Every stage and reduction; those not named here only in the slow tests."""
    return [
        case if case in always else pytest.param(*case, marks=pytest.mark.slow) for case in CASES
    ]


def setting(stage: int, reduction: str = "auto", micro_batch: int = 5) -> list[str]:
    return [
        f"deepspeed.zero_stage={stage}",
        f"distributed.gradient_reduction={reduction}",
        f"training.micro_batch={micro_batch}",
    ]


@pytest.fixture(scope="module")
def sgd_alone(alone, noise):
    return alone([*SGD, *noise], 3)


@pytest.fixture(scope="module")
def adamw_alone(alone, heads, noise):
    return alone([*heads, *noise], 1)


@pytest.mark.parametrize("stage, reduction", all_cases((1, "coalesce"), (3, "boundary")))
def test_sgd_with_all_noise_ends_at_the_parameters_of_one_pass(
    under_engine, sgd_alone, compare, noise, stage: int, reduction: str
) -> None:
    extra = CHECKPOINTED if stage in (2, 3) else ()
    trained = under_engine([*SGD, *noise, *extra, *setting(stage, reduction)], 3)
    compare(trained, sgd_alone)


@pytest.mark.parametrize("stage, reduction", all_cases((0, "boundary"), (2, "boundary")))
def test_adamw_sees_the_gradients_of_one_pass(
    under_engine, adamw_alone, compare, heads, noise, stage: int, reduction: str
) -> None:
    trained = under_engine([*heads, *noise, *setting(stage, reduction, 4)], 1)
    compare(trained, adamw_alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage, reduction", CASES)
def test_micro_batches_of_one_pair_under_every_stage(
    under_engine, sgd_alone, compare, noise, stage: int, reduction: str
) -> None:
    compare(under_engine([*SGD, *noise, *setting(stage, reduction, 1)], 3), sgd_alone)


@pytest.mark.parametrize(
    "precision, stage, reduction",
    [("bf16_autocast", 0, "auto"), ("bf16", 2, "coalesce")]
    + [
        pytest.param(precision, stage, reduction, marks=pytest.mark.slow)
        for precision, stage, reduction in [
            ("bf16_autocast", 1, "coalesce"),
            ("bf16", 1, "auto"),
            ("bf16_autocast", 2, "boundary"),
            ("bf16_autocast", 3, "coalesce"),
            ("bf16", 2, "boundary"),
            ("bf16", 3, "coalesce"),
            ("bf16", 3, "boundary"),
        ]
    ],
)
def test_bf16_gradients_are_those_of_one_pass_in_bf16(
    under_engine, precision: str, stage: int, reduction: str
) -> None:
    common = [*SGD, f"training.precision={precision}"]
    plain = under_engine([*common, f"deepspeed.zero_stage={stage}"], 1)
    cached = under_engine([*common, *setting(stage, reduction, 1)], 1)
    assert float(cached["losses"]) == pytest.approx(float(plain["losses"]), rel=1e-3)
    flat = [torch.cat([g.flatten() for g in run["gradients"].values()]) for run in (cached, plain)]
    # Twelve bf16 sums instead of one: eight bits of mantissa, so a few parts in a thousand.
    assert (flat[0] - flat[1]).norm() < 0.02 * flat[1].norm()
    assert cached["parameters"].keys() == plain["parameters"].keys()


@pytest.mark.parametrize("stage", [1, 2])
def test_plain_repeated_backward_keeps_only_the_last_micro_batch_and_the_cache_all(
    make_engine, inputs_of, stage: int
) -> None:
    def encoder_gradient(engine) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(engine.model.encoder.text.projection.weight).float().clone()

    config = setting(stage, micro_batch=4)
    naive, last_alone = make_engine(*config), make_engine(*config)
    step = CachedStep(EngineHalves(naive.deepspeed), inputs_of(), 4)
    for scalar in step:
        naive.deepspeed.backward(scalar)
    repeated = encoder_gradient(naive)

    only = CachedStep(EngineHalves(last_alone.deepspeed), inputs_of(), 4)
    gradients = torch.autograd.grad(
        last_alone.model.objective(only.features).loss, only.features.texts
    )[0]
    replayed = last_alone.deepspeed(only.parts[-1], "embed").texts
    last_alone.deepspeed.backward((replayed * gradients[8:]).sum())
    torch.testing.assert_close(repeated, encoder_gradient(last_alone), rtol=1e-4, atol=1e-6)

    right, update = make_engine(*config), {}
    take_step = right.deepspeed.step
    right.deepspeed.step = lambda: (update.update(all=encoder_gradient(right)), take_step())
    right.step(inputs_of(), 0.0)
    one_pass = make_engine(f"deepspeed.zero_stage={stage}")
    one_pass.deepspeed.backward(one_pass.deepspeed(inputs_of())[0])
    torch.testing.assert_close(update["all"], encoder_gradient(one_pass), rtol=1e-4, atol=1e-6)
    assert (repeated - update["all"]).norm() > 0.1 * update["all"].norm()


@pytest.mark.parametrize("poison, stage", [("loss", 3), ("gradient", 0), ("gradient", 2)])
def test_a_non_finite_step_changes_nothing_and_is_not_replayed(
    make_engine, inputs_of, read_weights, monkeypatch, stage: int, poison: str
) -> None:
    engine = make_engine(*SGD, *setting(stage, micro_batch=4))
    assert engine.step(inputs_of(0), 0.01).applied
    before = read_weights(engine)
    calls: list[str] = []
    embed, objective = engine.model.embed, engine.model.objective
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "embed", lambda part: calls.append("embed") or embed(part))
        if poison == "loss":
            patch.setattr(
                engine.model,
                "objective",
                lambda found: objective(found)._replace(loss=objective(found).loss * float("nan")),
            )
            result = engine.step(inputs_of(1), 0.01)
        else:
            weight = engine.model.encoder.text.projection.bias
            handle = weight.register_hook(lambda gradient: gradient * float("inf"))
            result = engine.step(inputs_of(1), 0.01)
            handle.remove()
    assert not result.applied
    assert len(calls) == (3 if poison == "loss" else 6)
    after = read_weights(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert engine.step(inputs_of(2), 0.01).applied
    assert all(torch.isfinite(value).all() for value in read_weights(engine).values())


def test_a_micro_batch_that_holds_the_whole_batch_is_the_plain_step(make_engine, ranks) -> None:
    assert not make_engine("training.micro_batch=64").caches_gradients
    assert not make_engine().caches_gradients
    assert make_engine("training.micro_batch=11").caches_gradients


def test_auto_coalesces_where_gradients_add_up_in_fp32(make_engine) -> None:
    chosen = {
        (stage, precision): make_engine(
            *setting(stage), f"training.precision={precision}"
        ).reduction
        for stage, precision in [(0, "fp32"), (1, "fp32"), (2, "bf16_autocast"), (2, "bf16")]
    }
    assert list(chosen.values()) == ["boundary", "coalesce", "coalesce", "boundary"]


@pytest.mark.parametrize(
    "stage, precision, reason",
    [
        (0, "fp32", "ZeRO 0 has no shards"),
        pytest.param(1, "bf16", "BF16_Optimizer cannot coalesce", marks=pytest.mark.slow),
    ],
)
def test_coalescing_where_it_is_impossible_is_refused_with_a_way_out(
    make_engine, stage: int, precision: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*use boundary or auto"):
        make_engine(*setting(stage, "coalesce"), f"training.precision={precision}")


@pytest.mark.parametrize("value", ["0", "-4", "1.5", "half"])
def test_a_micro_batch_that_is_no_number_of_pairs_is_refused(make_config, value: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.micro_batch: needs a number of pairs"):
        make_config(f"training.micro_batch={value}")


def test_zero_3_would_add_to_the_step_before_at_a_boundary_and_the_cache_does_not(
    make_engine, inputs_of, monkeypatch
) -> None:
    still = "optimizer.lr=1e-12"
    engine = make_engine(*SGD[:1], still, *setting(3, "boundary", 6))
    engine.step(inputs_of(0), 1e-12)
    right = engine.step(inputs_of(1), 1e-12).gradient_norm
    plain = make_engine(*SGD[:1], still).step(inputs_of(1), 1e-12).gradient_norm
    assert right == pytest.approx(plain, rel=1e-4)
    monkeypatch.setattr(engine.deepspeed.optimizer, "zero_grad", lambda **kwargs: None)
    assert engine.step(inputs_of(1), 1e-12).gradient_norm > 1.1 * right
