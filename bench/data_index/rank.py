"""One rank of the measurement: opens the data set, hands it to a worker, and both draw batches."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.tokenizer import Tokenizer

BATCHES, BATCH = 50, 8


def held() -> dict[str, int]:
    """Bytes of this process: private ones (anonymous and of files), and its share of all."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.replace(":", "").split()
        found[name] = int(value) * 1024
    private = found["Private_Clean"] + found["Private_Dirty"]
    return {"private": private, "anonymous": found["Anonymous"], "pss": found["Pss"]}


def draw(dataset: ClipDataset, seed: int) -> float:
    """Look up random rows as loading them does, all but the video; CPU seconds per row."""
    random = np.random.default_rng(seed)
    began = time.process_time()
    for number in range(BATCHES):
        rows = random.integers(len(dataset), size=BATCH).tolist()
        for row, numbers in zip(rows, dataset.draws(rows, seed, number), strict=True):
            dataset.texts(row, numbers)
            dataset.table.video(row)
            dataset.table.segment(row)
        dataset.table.stored.release()  # as `collate` does for every unit
    return (time.process_time() - began) / (BATCHES * BATCH)


def worker(dataset: ClipDataset, seed: int, pipe: Connection) -> None:
    """Draw, then say at every request what is held."""
    torch.set_num_threads(1)
    seconds = draw(dataset, seed)
    while pipe.recv():
        pipe.send({**held(), "row_s": seconds})


def rank(folder: str, tokenizer: str, seed: int, pipe: Connection) -> None:
    """Open and draw at the first request, say at every later one what rank and worker hold."""
    torch.set_num_threads(1)  # as loader workers do
    encoder = Tokenizer.load(tokenizer)
    config = DataConfig(train=folder)
    pipe.recv()
    began = time.perf_counter()
    dataset = ClipDataset(config, "train", encoder, True, frames=8, image_size=32)
    found: dict[str, Any] = {"open_s": time.perf_counter() - began}
    found["pickle_bytes"] = len(ForkingPickler.dumps(dataset))
    found["row_s"] = draw(dataset, seed)
    mine, theirs = multiprocessing.get_context("forkserver").Pipe()
    arguments = (dataset, seed + 1000, theirs)
    process = multiprocessing.get_context("forkserver").Process(target=worker, args=arguments)
    process.start()
    while True:
        mine.send(True)
        pipe.send({**found, "rank": held(), "worker": mine.recv()})
        if not pipe.recv():
            break
    mine.send(False)
    process.join()
