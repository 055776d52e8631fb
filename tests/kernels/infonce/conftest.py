"""Inputs, the independent float64 oracle and the ranks of the InfoNCE tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize


def unit_rows(rows, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1).to(
        dtype
    )


def naive_loss(
    videos, texts, scale, *, offset=0, video_ids=None, text_ids=None, pair_mode="exclude"
):
    """Eager float64 on the whole matrix: targets and `log_softmax`, no shared tricks."""
    logits = scale * videos.double() @ texts.double().T
    rows, columns = logits.shape
    diagonal = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        if 0 <= row + offset < columns:
            diagonal[row, row + offset] = True
    same = diagonal
    if video_ids is not None:
        same = video_ids[:, None] == text_ids[None, :]
    if pair_mode == "exclude":
        logits = logits.masked_fill(same & ~diagonal, -1e30)
        same = diagonal
    same = same.double()
    paired_rows, paired_columns = diagonal.any(1), diagonal.any(0)
    row_target = (same / same.sum(1, keepdim=True).clamp(min=1))[paired_rows]
    column_target = (same / same.sum(0, keepdim=True).clamp(min=1))[:, paired_columns]
    row_terms = -(row_target * torch.log_softmax(logits, 1)[paired_rows]).sum(1)
    column_terms = -(column_target * torch.log_softmax(logits, 0)[:, paired_columns]).sum(0)
    return (row_terms.mean() + column_terms.mean()) / 2


@pytest.fixture
def rows():
    return unit_rows


@pytest.fixture
def oracle():
    return naive_loss


@pytest.fixture(scope="session")
def rank_results(tmp_path_factory):
    """What three gloo ranks found: for `all` (3 ranks) and `pair` (2), one dict per rank."""
    world, folder = 3, tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = str(Path(__file__).with_name("rank_worker.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, str(place), str(world), str(port), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs):
        assert process.returncode == 0, output
    saved = [torch.load(folder / f"{place}.pt") for place in range(world)]
    return {
        "all": [results["all"] for results in saved],
        "pair": [results["pair"] for results in saved if "pair" in results],
    }
