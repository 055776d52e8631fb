"""The data path on a small rendered world: decoding, cut-and-paste, texts, the whole loader."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites import palettes
from svilm_fast.bench.suites.benchmark import SEED, Benchmark, Prepared, benchmark_id
from svilm_fast.bench.suites.formats import CASES, ROWS, prepare
from svilm_fast.data.config import DataConfig
from svilm_fast.data.cut_paste import cut_and_paste
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.loader import ClipLoader
from svilm_fast.data.nouns import build_extractor
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.world import WorldConfig, render_world
from svilm_fast.data.world.render import render_scene
from svilm_fast.data.world.scene import draw_scene
from svilm_fast.data.world.write import FORMAT, plan_split

_WORLD = WorldConfig(train=48, val=4, test=4)
_CLIPS = 8
_FRAMES = 8
# Tolerance for H.264 at the world's quality; a wrong frame or channel order gives over 0.2.
_CODEC_ERROR = 0.1


def declared(device: torch.device) -> Iterator[Benchmark]:
    """Benchmarks of the data path; all run on the CPU."""
    chosen: dict[tuple[str, str], Callable[[], Prepared]] = {
        ("decode", f"clips_{_CLIPS}"): _decode,
        ("cut_paste", f"clips_{_CLIPS}"): _cut_paste,
        ("tokenizer", f"captions_{_WORLD.train}"): _tokenizer,
        ("nouns", f"captions_{_WORLD.train}"): _nouns,
        ("loader", f"batch_{_CLIPS}_workers_0"): partial(_loader, 0),
        ("loader", f"batch_{_CLIPS}_workers_2"): partial(_loader, 2),
    }
    chosen |= {("formats", f"{name}_{ROWS}_rows"): partial(prepare, name) for name in CASES}
    chosen |= {("palettes", case): partial(palettes.prepare, case) for case in palettes.CASES}
    for (name, case), make in chosen.items():
        yield Benchmark(
            benchmark_id("data", name, case, "-", "-", "svilm"),
            "data",
            partial(_prepare, make),
            background="workers_2" in case,
        )


def _prepare(make: Callable[[], Prepared], device: torch.device) -> Prepared:
    return make()


@cache
def world_folder() -> Path:
    """The folder of the world, which is rendered once into the user's cache folder."""
    key = hashlib.sha256(f"{FORMAT} {_WORLD.model_dump_json()}".encode()).hexdigest()[:12]
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "svilm-fast"
    target = cache_folder / f"bench-world-{key}"
    if not (target / "manifest.json").is_file():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            rendered = Path(folder) / "world"
            render_world(rendered, _WORLD, workers=1, progress=False)
            # Two processes may render at once; both worlds are equal, and the first one stays.
            if not target.exists():
                rendered.rename(target)
    return target


def _config(workers: int = 0) -> DataConfig:
    return DataConfig(train=str(world_folder() / "train"), workers=workers)


@cache
def _table() -> SampleTable:
    return open_split(_config(), "train")


def _captions() -> list[str]:
    return list(_table().captions())


def _decode() -> Prepared:
    videos = [_table().read_video(index) for index in range(_CLIPS)]
    seeds = plan_split(_WORLD, "train")

    def call() -> list[np.ndarray]:
        return [decode_clip(video, every_frame).frames for video in videos]

    def verify() -> float:
        errors = []
        for index, frames in enumerate(call()):
            scene = render_scene(draw_scene(_WORLD, "train", seeds[index]), _WORLD.size)
            drawn = scene.frames.astype(np.float64)
            errors.append(float(np.linalg.norm(frames - drawn) / np.linalg.norm(drawn)))
        if max(errors) > _CODEC_ERROR:
            raise WrongResult("decoded frames differ from the drawn ones", max(errors))
        return max(errors)

    frames = float(_CLIPS * _WORLD.frames)
    return Prepared(call=call, verify=verify, units={"clips": float(_CLIPS), "frames": frames})


def _cut_paste() -> Prepared:
    generator = torch.Generator().manual_seed(SEED)
    shape = (_CLIPS, 16, 112, 112, 3)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    seeds = torch.arange(_CLIPS) * 7919
    segments = 8

    def verify() -> float:
        made = cut_and_paste(frames, seeds, segments)
        expected = frames.clone()
        for clip in range(_CLIPS):
            for frame in range(shape[1]):
                if not made.paste_mask[clip, frame * segments // shape[1]]:
                    expected[clip, frame] = frames[made.partner[clip], frame]
        wrong = float((made.blended != expected).float().mean())
        if wrong:
            raise WrongResult("a blended frame differs from that of its clip or partner", wrong)
        return wrong

    return Prepared(
        call=lambda: cut_and_paste(frames, seeds, segments),
        verify=verify,
        units={"clips": float(_CLIPS)},
        facts={"shape": list(shape)},
    )


def _tokenizer() -> Prepared:
    config, captions = _config(), _captions()
    tokenizer = prepare_tokenizer(config, _table())
    length = 4 * config.tokenizer.length

    def verify() -> float:
        tokens, _ = tokenizer.encode_batch(captions, length)
        wrong = sum(
            "".join(tokenizer.decode(row).split()) != "".join(caption.lower().split())
            for row, caption in zip(tokens, captions, strict=True)
        )
        if wrong:
            share = wrong / len(captions)
            raise WrongResult(f"{wrong} captions differ after encoding and decoding", share)
        return 0.0

    return Prepared(
        call=lambda: tokenizer.encode_batch(captions, length),
        verify=verify,
        units={"captions": float(len(captions))},
    )


def _nouns() -> Prepared:
    captions = _captions()
    extract = build_extractor(DataConfig().nouns)

    def call() -> list[Any]:
        return [extract(caption) for caption in captions]

    def verify() -> float:
        missing = 0
        for caption, nouns in zip(captions, call(), strict=True):
            heads = [noun.text.split()[-1] for noun in nouns]
            missing += not heads or any(head[:-1] not in caption.lower() for head in heads)
        if missing:
            share = missing / len(captions)
            raise WrongResult(f"{missing} captions have no extracted noun of their own", share)
        return 0.0

    return Prepared(call=call, verify=verify, units={"captions": float(len(captions))})


def _loader(workers: int) -> Prepared:
    config = _config(workers)
    dataset = ClipDataset(
        config,
        "train",
        prepare_tokenizer(config, _table()),
        train=True,
        frames=_FRAMES,
        image_size=_WORLD.size,
        table=_table(),
    )
    loader = ClipLoader(config, dataset, batch_size=_CLIPS)
    batches = loader.forever()

    def verify() -> float:
        first, known = next(batches), dataset.keys.tolist()
        expected = dataset.batch([known.index(key) for key in first.keys.tolist()])
        wrong = float((first.frames != expected.frames).float().mean())
        if wrong:
            raise WrongResult("the loader's clips differ from those of its dataset", wrong)
        return wrong

    return Prepared(
        call=lambda: next(batches),
        verify=verify,
        units={"clips": float(_CLIPS)},
        facts={"frames": _FRAMES, "workers": workers},
        close=loader.close,
    )
