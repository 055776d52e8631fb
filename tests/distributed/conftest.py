"""A very small S-ViLM, twelve pairs for it, and ranks that train it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.svilm import SViLM, build_model
from svilm_fast.train.checkpoint.portable_files import MOMENT_NAMES
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.engine import Engine, start_engine
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.engine.sharded_state import link_moments, whole_moment, whole_parameter
from svilm_fast.train.ranks.process_group import Ranks
from tests.bars import within

PROGRAM = Path(__file__).parent / "rank_program.py"
BATCH, NOUNS = 12, 2
SMALL = (
    "run.dir=unused",
    "model.preset=tiny",
    "model.embed_dim=8",
    "video.frames=4",
    "video.image_size=8",
    "video.tubelet=1",
    "video.patch=4",
    "video.width=16",
    "video.depth=2",
    "video.heads=2",
    "video.num_groups=3",
    "video.num_segments=4",
    "video.grouping.mode=hard",
    "text.vocab_size=300",
    "text.length=8",
    "text.width=16",
    "text.depth=1",
    "text.heads=2",
    "data.tokenizer.noun_length=4",
    "training.precision=fp32",
    f"training.global_batch={BATCH}",
    "training.gradient_clipping=0",
    "distributed.device=cpu",
    "deepspeed.bucket_elements=1000",
    "deepspeed.persistence_elements=0",
    "optimizer.weight_decay=0",
)
NOISE = (
    "video.grouping.mode=gumbel",
    "video.drop.rate=0.3",
    "video.drop_path=0.3",
    "video.dropout=0.2",
    "text.drop_path=0.2",
    "text.dropout=0.1",
)
# Parameters of the objectives: scales and beta, and those that are larger.
HEADS = (
    "objectives.grounding.similarity=mlp",
    "objectives.grounding.mlp_hidden=4",
    "objectives.temporal.head=transformer",
    "objectives.temporal.heads=2",
)


def small_config(*overrides: str) -> RunConfig:
    return load_config(None, [*SMALL, *overrides])


def small_model(config: RunConfig) -> SViLM:
    torch.manual_seed(0)
    return build_model(config)


def small_inputs(step: int = 0) -> ModelInputs:
    """Twelve pairs: captions 1 and 6 to 11 have no noun, the second half none at all."""
    generator = torch.Generator().manual_seed(70 + step)

    def draw(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=dtype)

    has_noun = torch.tensor([2, 0, 1, 2, 1, 2] + [0] * 6)
    return ModelInputs(
        text_tokens=draw(300, BATCH, 7),
        text_mask=torch.arange(7) < draw(6, BATCH, 1) + 2,
        frames=draw(256, BATCH, 4, 8, 8, 3, dtype=torch.uint8),
        blended=draw(256, BATCH, 4, 8, 8, 3, dtype=torch.uint8),
        paste_mask=torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 1]] * 4).bool(),
        pair_ids=torch.arange(BATCH) // 2,
        noun_tokens=draw(300, BATCH, NOUNS, 4),
        noun_token_mask=torch.ones(BATCH, NOUNS, 4, dtype=torch.bool),
        noun_mask=torch.arange(NOUNS) < has_noun[:, None],
        seeds=StepSeeds(run_seed=1, step=step, keys=torch.arange(BATCH) * 2**40 + 3),
    )


def rows_of_rank(inputs: ModelInputs, rank: int, world_size: int) -> ModelInputs:
    local = len(inputs) // world_size
    return inputs.rows(slice(rank * local, (rank + 1) * local))


def full_gradients(engine: Engine) -> dict[str, Tensor]:
    """The reduced gradients in fp32 after backward and before the update; collective."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, parameter in engine.model.named_parameters():
        whole = parameter.grad if engine.zero_stage == 0 else safe_get_full_grad(parameter)
        assert whole is not None, name
        found[name] = whole.detach().float().clone()
    return found


def small_engine(ranks: Ranks, overrides: Sequence[str]) -> Engine:
    config = small_config(*overrides)
    return start_engine(small_model(config), config, ranks)


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """The fp32 masters, whole; collective."""
    parameters = engine.model.named_parameters()
    return {name: whole_parameter(engine, parameter).clone() for name, parameter in parameters}


def train_steps(ranks: Ranks, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Train the small model for some steps; gradients are those of the last one."""
    engine = small_engine(ranks, overrides)
    update, gradients = engine.deepspeed.step, {}
    engine.deepspeed.step = lambda: (gradients.update(full_gradients(engine)), update())
    results = []
    for step in range(steps):
        inputs = rows_of_rank(small_inputs(step), ranks.rank, ranks.world_size)
        results.append(engine.step(inputs, engine.config.optimizer.lr))
    assert all(result.applied for result in results)
    link_moments(engine)
    parameters = dict(engine.model.named_parameters())
    told = {
        "losses": torch.stack([result.loss.double() for result in results]),
        "metrics": {name: float(value) for name, value in results[-1].metrics.items()},
        "norm": results[-1].gradient_norm,
        "gradients": gradients,
        "parameters": weights_of(engine),
        "moments": {
            moment: {n: whole_moment(engine, p, moment).clone() for n, p in parameters.items()}
            for moment in MOMENT_NAMES[engine.config.optimizer.name]
        },
    }
    engine.close()
    return told


def train_alone(overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """The same in float64, the whole batch in one pass, without engine, cache or ranks."""
    config = small_config(*overrides)
    model = small_model(config).double()
    optimizer = build_optimizer(model, config.optimizer)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        output = model(small_inputs(step))
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.detach())
    parameters = dict(model.named_parameters())
    return {
        "losses": torch.stack(losses),
        "metrics": {name: float(value) for name, value in output.metrics.items()},
        "gradients": {name: p.grad for name, p in parameters.items()},
        "parameters": {name: p.detach() for name, p in parameters.items()},
        "moments": {
            moment: {name: optimizer.state[p][moment] for name, p in parameters.items()}
            for moment in MOMENT_NAMES[config.optimizer.name]
        },
    }


def distance(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Norm of the difference of all tensors over the norm of the wanted ones."""
    apart = sum((got[name].double() - wanted[name].double()).square().sum() for name in wanted)
    return float((apart / sum(value.double().square().sum() for value in wanted.values())) ** 0.5)


# What fp32 leaves of a gradient whose terms cancel, times the learning rate.
CANCELLED = 4e-6


def assert_alike(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The bars of training in fp32 against float64 on the whole batch.

    SGD: parameters to 2e-6. AdamW, whose first update is the sign of the gradient whatever its
    size: gradients to 1e-6, and moments to 1e-5 where a gradient is above 1e-6.
    """
    for name, value in wanted["metrics"].items():
        assert got["metrics"][name] == pytest.approx(value, abs=1e-4), name
    if "momentum_buffer" in wanted["moments"]:
        within(distance(got["parameters"], wanted["parameters"]), 2e-6, "parameters")
        for name, value in wanted["parameters"].items():
            torch.testing.assert_close(
                got["parameters"][name].double(), value, rtol=1e-6, atol=CANCELLED, msg=name
            )
        return
    gradients = wanted["gradients"]
    within(distance(got["gradients"], gradients), 1e-6, "gradients")
    whole = sum(value.square().sum() for value in gradients.values()) ** 0.5
    for name, value in gradients.items():
        # A tensor that is small beside the others is compared with itself, down to fp32's noise.
        apart = (got["gradients"][name].double() - value).norm()
        within(apart, 1e-5 * value.norm() + 1e-6 * whole, name)
    for moment, values in wanted["moments"].items():
        felt = {name: gradients[name].abs() > 1e-6 for name in values}
        kept = [
            {name: side["moments"][moment][name][felt[name]] for name in values}
            for side in (got, wanted)
        ]
        within(distance(*kept), 1e-5, moment)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    return small_config


@pytest.fixture(scope="session")
def make_model() -> Callable[[RunConfig], SViLM]:
    return small_model


@pytest.fixture(scope="session")
def inputs_of() -> Callable[..., ModelInputs]:
    return small_inputs


@pytest.fixture(scope="session")
def noise() -> tuple[str, ...]:
    return NOISE


@pytest.fixture(scope="session")
def heads() -> tuple[str, ...]:
    return HEADS


@pytest.fixture(scope="session")
def start_jobs(run_on_ranks) -> Callable[..., list[dict[str, Any]]]:
    """Run `jobs` on gloo ranks and return what each rank told."""

    def start(
        folder: Path, world_size: int, jobs: list[dict[str, Any]], program: Path = PROGRAM
    ) -> list[dict[str, Any]]:
        torch.save(jobs, folder / "jobs.pt")
        run_on_ranks(world_size, program, folder, timeout=1000)
        return [torch.load(folder / f"rank_{rank}.pt") for rank in range(world_size)]

    return start


@pytest.fixture(scope="session")
def alone() -> Callable[..., dict[str, Any]]:
    return train_alone


@pytest.fixture
def make_engine(ranks: Ranks) -> Iterator[Callable[..., Engine]]:
    """Build engines around the small model; they are closed when the test ends."""
    engines: list[Engine] = []

    def make(*overrides: str) -> Engine:
        engines.append(small_engine(ranks, overrides))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def read_weights() -> Callable[[Engine], dict[str, Tensor]]:
    return weights_of


@pytest.fixture(scope="session")
def compare() -> Callable[..., None]:
    return assert_alike


@pytest.fixture(scope="session")
def under_engine(ranks: Ranks) -> Callable[..., dict[str, Any]]:
    return lambda overrides, steps: train_steps(ranks, overrides, steps)
