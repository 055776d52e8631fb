"""A world on disk: shards of MP4 and JSON, and the manifest that lists them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.core.machine import usable_cores
from svilm_fast.core.text import counted
from svilm_fast.core.units import bytes_text
from svilm_fast.data.shards import INDEX_SUFFIX, ShardWriter
from svilm_fast.data.world.config import WorldConfig, build_config
from svilm_fast.data.world.progress import clip_progress
from svilm_fast.data.world.render import render_scene
from svilm_fast.data.world.sample import describe
from svilm_fast.data.world.scene import draw_scene
from svilm_fast.data.world.video import encode_mp4
from svilm_fast.data.world.vocabulary import GRAINS, SPLITS, Split

FORMAT = "svilm-world/1"
_CHUNK = 25
_SEED_BOUND = 2**53
# Clips drawn in a row without a new meaning, after which there is hardly any left to find: the
# default settings' 1,200th of about 1,400 takes 180.
_MOST_MISSES = 2000

ShardMember = tuple[str, bytes, bytes]
Job = tuple[WorldConfig, Split, list[tuple[str, int]]]


@dataclass(frozen=True)
class WorldReport:
    """What `render_world` left on disk; `seconds` is 0 where an equal world was there already."""

    out_dir: Path
    clips: dict[Split, int]
    bytes: int
    seconds: float
    reused: bool

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.clips.items())
        size = bytes_text(self.bytes)
        if self.reused:
            return f"world in {self.out_dir}: {counts} clips, {size}, rendered before"
        rate = sum(self.clips.values()) / max(self.seconds, 1e-9)
        return (
            f"world in {self.out_dir}: {counts} clips, {size}, "
            f"{self.seconds:.1f} s ({rate:.0f} clips/s)"
        )


def render_world(
    out_dir: str | os.PathLike[str],
    config: WorldConfig | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> WorldReport:
    """Render the world of `config` into `out_dir/{train,val,test}/*.tar` and `manifest.json`.

    `settings` are fields of `WorldConfig` (train, val, test, seed, size, frames, fps, ...) on top
    of `config`. The files depend on the settings alone, not on `workers` (processes; None takes one
    per core that this process may use, 1 renders in this process). An equal world that is complete
    is kept as it is, an incomplete one is rendered again, a different one is an error unless
    `overwrite`. Raises ValueError for wrong settings and FileExistsError for an `out_dir` that
    holds something else.
    """
    config = build_config(config, **settings)
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}: give 1 or more, or None for one per core")
    out = Path(out_dir)
    earlier = _earlier_manifest(out)
    if earlier is not None and not overwrite and (report := _existing(out, earlier, config)):
        return report
    started = time.perf_counter()
    with clip_progress(config.val + config.test, progress, "planning") as advance:
        plans = {split: plan_split(config, split, advance) for split in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    if earlier is not None:
        _remove_shards(out, earlier)
    manifest: dict[str, Any] = {"format": FORMAT, "config": config.model_dump(), "splits": {}}
    # It comes first, without shards, and says whose files these are should the rendering be killed.
    _write_manifest(out, manifest)
    processes = workers or usable_cores()
    total = sum(len(plan) for plan in plans.values())
    with ExitStack() as stack:
        run = _runner(stack, min(processes, -(-total // _CHUNK)))
        advance = stack.enter_context(clip_progress(total, progress, "rendering"))
        for split, plan in plans.items():
            manifest["splits"][split] = _write_split(out, config, split, plan, run, advance)
    _write_manifest(out, manifest)
    return _report(out, manifest, time.perf_counter() - started, reused=False)


def plan_split(
    config: WorldConfig, split: Split, advance: Callable[[int], None] = lambda _: None
) -> list[int]:
    """The clip seeds of a split; validation and test clips differ in what every caption means.

    advance: is told of each clip of those.

    Raises ValueError where the settings do not give that many distinct captions.
    """
    count = getattr(config, split)
    stream = np.random.default_rng([config.seed, SPLITS.index(split), 0xC11B])
    if split == "train":
        return stream.integers(_SEED_BOUND, size=count).tolist()
    seeds: list[int] = []
    told: dict[str, set[tuple]] = {grain: set() for grain in GRAINS}
    misses = 0
    for seed in stream.integers(_SEED_BOUND, size=200 + 60 * count).tolist():
        if len(seeds) == count or misses == _MOST_MISSES:
            break
        misses += 1
        meaning = draw_scene(config, split, seed).meaning(config.mention_background)
        if any(meaning[grain] in told[grain] for grain in GRAINS):
            continue
        for grain in GRAINS:
            told[grain].add(meaning[grain])
        seeds.append(seed)
        misses = 0
        advance(1)
    if len(seeds) < count:
        raise ValueError(
            f"world settings: {split}: only {counted(len(seeds), 'distinct caption')} found for "
            f"{counted(count, 'clip')}: lower {split}, or add colors, shapes, actions or objects"
        )
    return seeds


def render_members(job: Job) -> list[ShardMember]:
    """Key, MP4 and JSON of each clip of a job; runs in the worker processes."""
    config, split, clips = job
    members = []
    for key, seed in clips:
        scene = draw_scene(config, split, seed)
        rendered = render_scene(scene, config.size)
        sample = describe(scene, rendered, config, key)
        text = json.dumps(sample, separators=(",", ":"))
        members.append(
            (key, encode_mp4(rendered.frames, config.fps, config.quality), text.encode())
        )
    return members


def _runner(stack: ExitStack, processes: int) -> Callable[[list[Job]], Iterator[list[ShardMember]]]:
    if processes <= 1:
        return lambda jobs: map(render_members, jobs)
    # forkserver: the caller may hold threads (torch), which a plain fork would not survive.
    context = multiprocessing.get_context("forkserver")
    pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context))
    return lambda jobs: pool.map(render_members, jobs)


def _write_split(
    out: Path,
    config: WorldConfig,
    split: Split,
    plan: list[int],
    run: Callable[[list[Job]], Iterator[list[ShardMember]]],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    folder = out / split
    clips = [(f"{split}-{index:06d}", seed) for index, seed in enumerate(plan)]
    jobs = [
        (config, split, clips[first : first + _CHUNK]) for first in range(0, len(clips), _CHUNK)
    ]
    with ShardWriter(folder, split, max_samples=config.shard_size) as shards:
        for members in run(jobs):
            for key, video, text in members:
                shards.write(key, {"mp4": video, "json": text})
            advance(len(members))
    return {"samples": len(clips), "shards": [_shard(path, out) for path in shards.paths]}


def _shard(path: Path, out: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {
        "file": path.relative_to(out).as_posix(),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    partial = out / "manifest.json.partial"
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    partial.replace(out / "manifest.json")


def _earlier_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of the world in `out`, whole or unfinished; None for an empty place.

    Raises FileExistsError, also with `overwrite`, where there is anything else: it is not ours.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileExistsError(
            f"{out} holds files that do not belong to a world, which --overwrite does not remove: "
            "choose another folder"
        )
    return manifest


def _existing(out: Path, manifest: dict[str, Any], config: WorldConfig) -> WorldReport | None:
    """The report of an equal, complete world; None where it has to be rendered again."""
    if manifest.get("config") != json.loads(config.model_dump_json()):
        raise FileExistsError(
            f"{out} holds another world: choose another folder, or replace it with --overwrite"
        )
    if set(manifest["splits"]) != set(SPLITS):
        return None
    complete = all(
        (out / shard["file"]).is_file() and (out / shard["file"]).stat().st_size == shard["bytes"]
        for part in manifest["splits"].values()
        for shard in part["shards"]
    )
    return _report(out, manifest, 0.0, reused=True) if complete else None


def _remove_shards(out: Path, manifest: dict[str, Any]) -> None:
    """Remove the shards of an earlier world; raises FileExistsError for shards that it lacks.

    An unfinished world does not list its shards; all that have the names of its shards are its.
    """
    splits = manifest.get("splits") or {}
    stale = {shard for split in SPLITS for shard in (out / split).glob("*.tar")}
    if set(splits) == set(SPLITS):
        known = {out / shard["file"] for part in splits.values() for shard in part["shards"]}
    else:
        known = {shard for shard in stale if shard.name.startswith(f"{shard.parent.name}-")}
    if others := sorted(stale - known):
        raise FileExistsError(
            f"{others[0]} is not a shard of the world in {out}: move it away, or choose another "
            "folder"
        )
    for shard in stale:
        shard.unlink()
        shard.with_name(shard.name + INDEX_SUFFIX).unlink(missing_ok=True)


def _report(out: Path, manifest: dict[str, Any], seconds: float, *, reused: bool) -> WorldReport:
    parts = manifest["splits"]
    return WorldReport(
        out_dir=out,
        clips={split: parts[split]["samples"] for split in SPLITS},
        bytes=sum(shard["bytes"] for part in parts.values() for shard in part["shards"]),
        seconds=seconds,
        reused=reused,
    )
