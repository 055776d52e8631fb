"""`svilm probe action`: classifiers on the frozen features of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svilm_fast.commands.options import Device, RunDir, Split, WeightsKind
from svilm_fast.commands.recognition import LabelField, Spread
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides

if TYPE_CHECKING:
    import torch

    from svilm_fast.data.dataset import ClipDataset
    from svilm_fast.tasks.action.features import ClipFeatures
    from svilm_fast.tasks.action.probe import Probe
    from svilm_fast.tasks.action.result import RecognitionResult
    from svilm_fast.train.run.loaded_run import LoadedRun

PROBES = ("mmv", "mil-nce", "softmax", "attentive")


def action(
    run: RunDir,
    overrides: Overrides = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help=f"one of {', '.join(PROBES)}; may be repeated [default: all]"),
    ] = None,
    split: Split = "test",
    train_list: Annotated[
        list[Path] | None, typer.Option(help="CSV or JSONL list to use as the training split")
    ] = None,
    test_list: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV or JSONL list to use as the test split; repeat both for the mean over splits"
        ),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="folder of the videos of the lists")] = None,
    label_field: LabelField = None,
    spread: Annotated[
        Spread, typer.Option(help="each window spans the whole video, or a part of it")
    ] = Spread.INTERLEAVED,
    features: Annotated[
        Path | None, typer.Option(help="folder that keeps the features for later calls")
    ] = None,
    c: Annotated[
        float | None,
        typer.Option("--c", min=0, max=1e9, help="C of the classifier [default: as published]"),
    ] = None,
    weights: WeightsKind = None,
    device: Device = "auto",
    name: Annotated[
        str | None,
        typer.Option(help="name of the files in evaluation/ [default: SPLIT or the test list's]"),
    ] = None,
) -> None:
    """Fit linear and attentive probes on the frozen video tower, by published protocols.

    The features are extracted once for all probes. With several pairs of lists the mean over the
    splits follows.
    """
    from svilm_fast.commands.recognition import data_of, field_of, write_mean, write_result
    from svilm_fast.tasks.action.probe import Probe, check_strength
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import check_result_name
    from svilm_fast.train.run.loaded_run import load_run

    unknown = [each for each in protocol or () if each not in PROBES]
    if unknown:
        raise UserError(f"--protocol {unknown[0]}: give one of {', '.join(PROBES)}")
    if c == 0:
        raise UserError("--c 0: give a number above 0")
    if name is not None:
        check_result_name(name)
    if test_list and split != "test":
        raise UserError("--test-list takes the place of the test split; leave out --split")
    if split == "train":
        raise UserError("--split train: a probe is fitted on the training split; give val or test")
    pairs = _pairs(train_list, test_list, name, split)
    probes = [Probe(each) for each in dict.fromkeys(protocol or PROBES)]
    check_strength(probes, c)
    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    field = field_of(loaded, label_field)
    results: dict[Probe, dict[str, RecognitionResult]] = {probe: {} for probe in probes}
    for base, (train, test) in pairs.items():
        loaded.config.data = data_of(loaded, {"train": train, "test": test}, videos)
        for probe, result in _probed(loaded, probes, split, field, spread, chosen, features, c):
            lines = write_result(loaded, result, f"{base}_{result.prefix}")
            print("\n".join([f"probe {probe.value}", *lines, ""]))
            results[probe][base] = result
    if len(pairs) > 1:
        for probe, of_splits in results.items():
            lines = write_mean(loaded, of_splits, name or "lists")
            print("\n".join([f"probe {probe.value}", *lines, ""]))
        return
    print(f"{'probe':12}{'top-1':>9}{'top-5':>9}{'mean':>9}{'per class':>11}{'not decoded':>13}")
    for probe, of_splits in results.items():
        for result in of_splits.values():
            *values, per_class = result.scores.percentages().values()
            cells = "".join(f"{value:9.2f}" for value in values)
            print(f"{probe.value:12}{cells}{per_class:11.2f}{len(result.missing):13}")


def _pairs(
    train_lists: list[Path] | None, test_lists: list[Path] | None, name: str | None, split: str
) -> dict[str, tuple[Path | None, Path | None]]:
    """Return training and test list of every split by the beginning of its results' names."""
    from svilm_fast.commands.recognition import lists_by_name

    train, test = train_lists or [], test_lists or []
    if max(len(train), len(test)) > 1 and len(train) != len(test):
        raise UserError(
            f"{len(train)} x --train-list and {len(test)} x --test-list: give one of each for "
            "every split, in the same order"
        )
    if not test:
        return {name or split: (train[0] if train else None, None)}
    fitted: list[Path | None] = [*train] or [None]
    named = lists_by_name(test, name, split)
    lists = zip(named, fitted, named.values(), strict=True)
    return {base: (train_list, test_list) for base, train_list, test_list in lists}


def _probed(
    loaded: LoadedRun,
    probes: Sequence[Probe],
    split: str,
    field: str,
    spread: Spread,
    device: torch.device,
    folder: Path | None,
    c: float | None,
) -> Iterator[tuple[Probe, RecognitionResult]]:
    """Yield the result of every probe on one pair of splits; features are extracted first.

    Labels are checked before.
    """
    from svilm_fast.tasks.action.probe import RECIPES, ProbeData, ProbeLabels, needed, run_probe

    sets = {
        key: _dataset(loaded, split if key[0] == "test" else "train", key[1], key[2], spread.value)
        for key in needed(probes)
    }
    train, test = (next(sets[key] for key in sets if key[0] == part) for part in ("train", "test"))
    labels = ProbeLabels.read(loaded.config, train, test, field)
    with_steps = needed([probe for probe in probes if RECIPES[probe].tokens])
    found = {
        key: _features(loaded, data, key[1], device, folder, key in with_steps)
        for key, data in sets.items()
    }
    for probe in probes:
        _, key = needed([probe])
        yield probe, run_probe(probe, ProbeData(sets[key], labels, found), c)


def _dataset(loaded: LoadedRun, split: str, passes: int, windows: int, spread: str) -> ClipDataset:
    from svilm_fast.commands.recognition import clips_of, views_of

    views = views_of(max(1, windows), 1, spread)
    return clips_of(loaded, split, None, views, train=passes > 0)


def _features(
    loaded: LoadedRun,
    data: ClipDataset,
    passes: int,
    device: torch.device,
    folder: Path | None,
    steps: bool,
) -> ClipFeatures:
    from svilm_fast.tasks.action.features import Extraction, kept
    from svilm_fast.tasks.clips import autocast_dtype
    from svilm_fast.tasks.pretrain.retrieval import encoder_of

    config = loaded.config
    autocast, size = autocast_dtype(config), config.evaluation.batch_size
    how = Extraction(encoder_of(loaded.model), device, size, autocast, steps)

    def extract() -> ClipFeatures:
        if passes:
            return how.of_training(data, passes=passes, seed=config.run.seed)
        return how.of_evaluation(data)

    depends_on: dict[str, Any] = {
        "weights": _weights_hash(loaded) if folder is not None else None,
        "kind": loaded.weights.value,
        "video": config.video.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "samples": data.fingerprint,
        "videos": data.contents if folder is not None else None,
        "split": data.split,
        "passes": passes,
        "seed": config.run.seed if passes else None,
        "views": str(data.views),
        "autocast": str(autocast),
        "device": device.type,
    }
    return kept(folder, depends_on, extract, steps=steps)


def _weights_hash(loaded: LoadedRun) -> list[str]:
    from svilm_fast.train.folder.files import sha256_of

    return [sha256_of(path) for path in sorted(loaded.files.portable.glob("*.safetensors"))]
