"""The planner's memory of the loader is what the loader itself checks at its start."""

from __future__ import annotations

import pytest

from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.pipeline import loader_memory, shared_bytes
from svilm_fast.data.world import render_world
from svilm_fast.data.world.config import build_config
from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.devices import device_of
from svilm_fast.train.plan.links import links_of
from svilm_fast.train.plan.memory import loader_lines, loader_of
from svilm_fast.train.plan.report import as_json, make_plan
from svilm_fast.train.plan.workload import workload_of


@pytest.mark.parametrize("workers", [0, 3])
def test_plan_and_start_of_a_run_agree(tmp_path, workers):
    render_world(tmp_path / "w", build_config(train=4, val=2, test=2, size=32, frames=8))
    config = load_config(
        "svilm_base",
        [f"data.train={tmp_path}/w/train", f"data.workers={workers}", "data.unit=5"],
    )
    workload, data, video = workload_of(config, 16, on_gpu=True), config.data, config.video
    dataset = ClipDataset(
        data,
        "train",
        prepare_tokenizer(data),
        train=True,
        frames=video.frames,
        image_size=video.image_size,
    )
    clip = video.frames * video.image_size**2 * 3
    planned = loader_of(workload)
    assert planned.shared == shared_bytes(data, dataset) == workers * 2 * 5 * clip
    batches = data.prefetch + 3 if workers else 1
    assert planned.private == batches * workload.local_batch * clip
    written = as_json(_plan(workload))["loader"]
    assert written["rank"] == {"shared": planned.shared, "private": planned.private}
    assert written["node"] == {name: 8 * size for name, size in written["rank"].items()}
    lines = loader_lines(workload, 8)
    assert f"{8 * planned.shared / 2**30:,.3f} GiB a node" in lines[1]


def _plan(workload):
    device = device_of("h100")
    return make_plan(workload, device, links_of(device, None, 8), device.memory)


def test_a_cache_in_memory_has_no_workers():
    data = load_config("svilm_base", ["data.cache=memory"]).data
    assert loader_memory(data, 100, 4).shared == 0
