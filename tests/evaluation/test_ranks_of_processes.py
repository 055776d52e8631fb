"""Two processes that share a gallery return what one returns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from svilm_fast.data.dataset import ClipDataset
from svilm_fast.evaluation import evaluate_dataset
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder


def tiny_encoder() -> DualEncoder:
    torch.manual_seed(0)
    video = VideoConfig(
        frames=4,
        image_size=32,
        tubelet=2,
        patch=16,
        width=16,
        depth=1,
        heads=2,
        num_groups=2,
        num_segments=2,
    )
    text = TextConfig(vocab_size=400, width=16, depth=1, heads=2)
    return DualEncoder(ModelConfig(embed_dim=8), video, text)


def evaluate_on_rank(rank: int, folder: str, dataset: ClipDataset) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    result = evaluate_dataset(tiny_encoder(), dataset, batch_size=2, distributed=True)
    torch.save((result.to_json(), result.embeddings.videos), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_agree_with_one(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(captions=2, broken=(6,))
    whole = evaluate_dataset(tiny_encoder(), dataset, batch_size=2)
    torch.multiprocessing.spawn(evaluate_on_rank, args=(str(tmp_path), dataset), nprocs=2)
    for rank in range(2):
        shared, videos = torch.load(tmp_path / f"rank{rank}.pt")
        alone = whole.to_json()
        shared.pop("seconds"), alone.pop("seconds")
        assert shared == alone
        torch.testing.assert_close(videos, whole.embeddings.videos)
    assert list(whole.missing) == ["video0006#0"]
