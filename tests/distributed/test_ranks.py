"""Gloo ranks with the gradient cache against one process that holds the whole batch."""

from __future__ import annotations

import pytest
import torch

SGD = ["optimizer.name=sgd", "optimizer.lr=0.0005"]
CASES = [(0, "boundary"), (1, "coalesce"), (1, "boundary"), (2, "coalesce"), (2, "boundary")]
CASES += [(3, "coalesce"), (3, "boundary")]
# Of rank 1 of two, of ranks 2 and 3 of four, no caption has a noun: the second half is without.
MICRO_BATCH = {1: 5, 2: 4, 3: 3, 4: 2}


def float64_jobs(world_size: int, noise, heads) -> list[dict]:
    objectives = {
        "softmax": [],
        "heads": [*heads, "objectives.contrast.video=clean"],
        "partners": ["objectives.contrast.exclude_partner=true", "objectives.temporal.head=rnn"],
    }
    return [
        {
            "name": name,
            "float64": True,
            "overrides": [*noise, *overrides],
            "number": MICRO_BATCH[world_size],
        }
        for name, overrides in objectives.items()
    ]


def engine_jobs(cases, overrides, micro_batch: int, steps: int) -> list[dict]:
    return [
        {
            "name": f"ZeRO {stage}, {reduction}, {overrides[0]}",
            "float64": False,
            "overrides": [
                *overrides,
                f"deepspeed.zero_stage={stage}",
                f"distributed.gradient_reduction={reduction}",
                f"training.micro_batch={micro_batch}",
            ],
            "number": steps,
        }
        for stage, reduction in cases
    ]


def check_float64(told, jobs, make_config, make_model, inputs_of) -> None:
    for job in jobs:
        model = make_model(make_config(*job["overrides"])).double()
        expected = model(inputs_of())
        expected.loss.backward()
        found = [rank[job["name"]] for rank in told]
        mean = torch.stack([rank["losses"] for rank in found]).mean()
        torch.testing.assert_close(mean, expected.loss.detach(), rtol=0, atol=1e-10)
        for name, parameter in model.named_parameters():
            for rank in found:
                torch.testing.assert_close(
                    rank["gradients"][name],
                    parameter.grad,
                    rtol=0,
                    atol=1e-10,
                    msg=f"{job['name']} {name}",
                )


def mean_of_ranks(told, name: str) -> dict:
    """What rank 0 holds, with the metrics as the loop reports them: meaned over the ranks."""
    found = [rank[name] for rank in told]
    metrics = {
        key: sum(rank["metrics"][key] for rank in found) / len(found) for key in found[0]["metrics"]
    }
    # The accuracy is that of a rank's own batch, so it depends on how many there are.
    return found[0] | {"metrics": {k: v for k, v in metrics.items() if "accuracy" not in k}}


def without_accuracy(wanted) -> dict:
    kept = {key: value for key, value in wanted["metrics"].items() if "accuracy" not in key}
    return wanted | {"metrics": kept}


def test_two_ranks_equal_one_process(
    start_jobs, tmp_path, make_config, make_model, inputs_of, alone, compare, noise, heads
) -> None:
    exact = float64_jobs(2, noise, heads)[:1]
    sgd = engine_jobs([(1, "coalesce"), (3, "boundary")], SGD, 3, 2)
    wrong = {"name": "wrong", "overrides": [*SGD, "training.micro_batch=3"]}
    told = start_jobs(tmp_path, 2, [*exact, *sgd, wrong])
    check_float64(told, exact, make_config, make_model, inputs_of)
    wanted = without_accuracy(alone(SGD, 2))
    for job in sgd:
        compare(mean_of_ranks(told, job["name"]), wanted)
    for rank in told:
        assert rank["wrong"] == {
            "poisoned": [False, True],
            "padding": {"elements": 5, "finite": True},
            "unequal": "local batches differ: 5 pairs on one rank, 6 on another; "
            "give every rank the same number",
        }


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_any_number_of_ranks_equals_one_process(
    start_jobs,
    tmp_path,
    make_config,
    make_model,
    inputs_of,
    alone,
    compare,
    noise,
    heads,
    world_size,
) -> None:
    exact = float64_jobs(world_size, noise, heads)
    micro_batch = MICRO_BATCH[world_size]
    sgd, adamw = [], []
    if world_size in (2, 3):
        sgd = engine_jobs(CASES, [*SGD, *noise], micro_batch, 3)
        adamw = engine_jobs(CASES, ["optimizer.name=adamw", *heads, *noise], micro_batch, 1)
    told = start_jobs(tmp_path, world_size, [*exact, *sgd, *adamw])
    check_float64(told, exact, make_config, make_model, inputs_of)
    for jobs, overrides, steps in (
        (sgd, [*SGD, *noise], 3),
        (adamw, ["optimizer.name=adamw", *heads, *noise], 1),
    ):
        wanted = without_accuracy(alone(overrides, steps)) if jobs else None
        for job in jobs:
            compare(mean_of_ranks(told, job["name"]), wanted)
