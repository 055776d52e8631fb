"""The registered benchmarks: ids, selection, and one measurement of each kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.run.runner import run_one
from svilm_fast.bench.suites import benchmarks, blocks, data, formats, host, step
from svilm_fast.bench.suites.benchmark import SUITES, Benchmark
from svilm_fast.data.formats import FORMATS
from svilm_fast.kernels.device import H200
from svilm_fast.kernels.registry import ops

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def measured(id, device=CPU):
    return run_one(benchmarks(None, device)[id], device, None, budget_s=0.0)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_ids_are_closed_and_told_without_a_device(device):
    found = benchmarks(None, device)
    assert {one.suite for one in found.values()} == set(SUITES)
    assert all(id == one.id for id, one in found.items())
    assert found.keys() == benchmarks(list(SUITES), device).keys()


def test_every_reader_of_lists_is_measured():
    assert {case.format for case in formats.CASES.values()} == {"", *FORMATS}


def test_a_pattern_selects_and_wrong_names_are_told():
    only = benchmarks(["ops"], CPU, "*/infonce/*/reference")
    assert only
    assert all(
        one.parts["name"] == "infonce" and one.parts["provider"] == "reference"
        for one in only.values()
    )
    with pytest.raises(ValueError, match="unknown suite opps: choose among ops"):
        benchmarks(["opps"], CPU)
    with pytest.raises(ValueError, match="matches 'nothing'"):
        benchmarks(["ops"], CPU, "nothing")


@pytest.mark.parametrize("id", ["ops/a", "ops/a/b/c/d/e/f", "data/a/b/c/d/e", "ops/a//c/d/e"])
def test_an_id_of_another_form_is_refused(id):
    with pytest.raises(ValueError, match="must be suite/name/case"):
        Benchmark(id, "ops", lambda device: None)


def test_the_gpu_suites_hold_the_steps_and_the_attention_packages():
    found = benchmarks(None, GPU)
    steps = [one.parts["case"] for one in found.values() if one.suite == "step"]
    assert steps == [
        f"global_{size}_micro_128" for size in (256, 512, 1024, 2048, 4096, 8192, 16384)
    ]
    attention = {
        one.parts["provider"] for one in found.values() if one.parts["name"] == "attention"
    }
    assert attention == {"sdpa", "flash_attn", "xformers", "reference"}
    infonce = {one.parts["provider"] for one in found.values() if one.parts["name"] == "infonce"}
    ours, plain = {"fused", "gluon", "reference"}, {"eager", "compile"}
    assert infonce == ours | plain | {
        "inf_cl",
        "open_clip",
        "memeff",
        "siglip_kernel_sigmoid",
        "liger_one_direction",
        "liger_hopper_one_direction",
    }


@pytest.mark.parametrize(
    "id",
    [
        "blocks/video_block/clips_2/float32/both/svilm",
        "blocks/text_block/captions_32/float32/backward/svilm",
        "blocks/grouping_block/clips_2/float32/both/svilm",
        "blocks/attention/lengths_64_to_256/float32/both/sdpa",
        "host/infonce/tiny_call/float32/forward/reference",
        "data/cut_paste/clips_8/-/-/svilm",
    ],
)
def test_a_benchmark_of_each_kind_is_proven_and_timed(id):
    record = measured(id)
    assert record.status == "ok"
    assert record.rates_per_s
    assert record.error is None or record.error < 1e-3


def test_a_package_that_is_not_there_is_skipped_with_its_reason():
    record = measured("blocks/attention/clips_2/float32/forward/xformers")
    assert record.status.startswith("skipped: xformers ")


def test_planning_counts_launches_for_a_named_gpu():
    [variant] = [one for id, one in benchmarks(["host"], CPU).items() if "plan_matrix_one" in id]
    prepared = variant.prepare(CPU)
    assert prepared.units["launches"] == prepared.call() > 0
    assert prepared.facts == {"traits": H200.name}
    assert prepared.verify() is None
    assert ops().keys() == {
        one.parts["name"] for id, one in benchmarks(["host"], CPU).items() if "/tiny_call/" in id
    }


def test_a_wrong_attention_backend_is_found(monkeypatch):
    [benchmark] = benchmarks(["blocks"], CPU, "blocks/attention/lengths_*/forward/sdpa").values()
    right = blocks.attend

    def attend(query, key, value, *, backend, **more):
        if backend == "sdpa":
            return torch.nn.functional.normalize(query)
        return right(query, key, value, backend=backend, **more)

    monkeypatch.setattr(blocks, "attend", attend)
    with pytest.raises(WrongResult, match="output"):
        benchmark.prepare(CPU).verify()
    blocks._held.clear()


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    """The world is rendered once for this module, not into the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    data.world_folder.cache_clear()
    data._table.cache_clear()
    yield
    patch.undo()
    data.world_folder.cache_clear()
    data._table.cache_clear()


@pytest.mark.usefixtures("cache_folder")
class TestData:
    @pytest.mark.parametrize("name", ["decode", "tokenizer", "nouns", "loader"])
    def test_the_data_path_is_proven_and_timed(self, name):
        [id, *_] = benchmarks(["data"], CPU, f"data/{name}/*")
        record = measured(id)
        assert record.status == "ok"
        assert record.peak_extra_bytes is None

    def test_swapped_channels_are_found(self, monkeypatch):
        decoded = data.decode_clip

        def swapped(*arguments, **settings):
            clip = decoded(*arguments, **settings)
            clip.frames = np.ascontiguousarray(clip.frames[..., ::-1])
            return clip

        monkeypatch.setattr(data, "decode_clip", swapped)
        [benchmark] = benchmarks(["data"], CPU, "data/decode/*").values()
        with pytest.raises(WrongResult, match="differ from the drawn ones"):
            benchmark.prepare(CPU).verify()

    def test_the_world_is_rendered_once(self):
        folder = data.world_folder()
        stamp = (folder / "manifest.json").stat().st_mtime_ns
        data.world_folder.cache_clear()
        assert data.world_folder() == folder
        assert (folder / "manifest.json").stat().st_mtime_ns == stamp


def test_micro_batches_share_their_clips_and_nothing_else():
    config = step.load_config("demo")
    made = step.TrainingStep(config, 6, 3, CPU)
    first, second = made.parts
    assert first.frames is second.frames
    assert not torch.equal(first.text_tokens, second.text_tokens)
    assert first.blended is second.blended
    assert len({*first.seeds.keys.tolist(), *second.seeds.keys.tolist()}) == 6
    assert set(first.pair_ids.tolist()).isdisjoint(second.pair_ids.tolist())
    inputs = step.RepeatedInputs(made.parts)
    assert len(inputs) == 6
    with pytest.raises(ValueError, match="hold 3 pairs, not 2"):
        inputs.split(2)


def test_wrong_losses_of_a_step_are_found(monkeypatch):
    made = step.TrainingStep(step.load_config("demo"), 2, None, CPU)
    assert made._verify_losses() < 1e-6
    outputs = iter((1.0, 1.5))
    objective = made.model.objective
    monkeypatch.setattr(
        made.model,
        "objective",
        lambda embeddings: objective(embeddings)._replace(loss=torch.tensor(next(outputs))),
    )
    with pytest.raises(WrongResult, match="differ from those of the reference path"):
        made._verify_losses()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["global_8", "global_8_micro_4"])
def test_the_step_is_proven_against_float64_and_timed(case):
    record = measured(f"step/demo/{case}/float32/both/svilm")
    assert record.status == "ok"
    assert record.error < 1e-3
    assert 0 < record.facts["losses_share"] < 1
    cached = case.endswith("micro_4")
    assert (record.facts["executed_flops"] > record.facts["model_flops"]) == cached


@pytest.mark.slow
def test_a_step_with_a_lost_gradient_is_found(monkeypatch):
    monkeypatch.setattr(step.CachedStep, "backward", lambda self: self.output.loss.backward())
    made = step.TrainingStep(step.load_config("demo"), 4, 2, CPU)
    with pytest.raises(WrongResult, match="differs from one pass"):
        made.verify()


def test_a_tiny_call_that_computes_something_else_is_found():
    op = ops()["infonce"]

    def wrong(*, backend, **inputs):
        return 2 * op.reference(**inputs)

    with pytest.raises(WrongResult, match="output"):
        host._tiny(replace(op, api=wrong), CPU).verify()
