"""`svilm probe action`: classifiers on the frozen features of a run."""

from __future__ import annotations

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
        Path | None, typer.Option(help="CSV or JSONL list to use as the training split")
    ] = None,
    test_list: Annotated[
        Path | None, typer.Option(help="CSV or JSONL list to use as the test split")
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

    The features are extracted once for all probes.
    """
    from svilm_fast.commands.recognition import data_of, field_of, write_result
    from svilm_fast.tasks.action.probe import Probe, ProbeData, needed, run_probe
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import check_result_name, result_name
    from svilm_fast.train.run.loaded_run import load_run

    unknown = [each for each in protocol or () if each not in PROBES]
    if unknown:
        raise UserError(f"--protocol {unknown[0]}: give one of {', '.join(PROBES)}")
    if c == 0:
        raise UserError("--c 0: give a number above 0")
    if name is not None:
        check_result_name(name)
    if test_list is not None and split != "test":
        raise UserError("--test-list takes the place of the test split; leave out --split")
    if split == "train":
        raise UserError("--split train: a probe is fitted on the training split; give val or test")
    probes = [Probe(each) for each in dict.fromkeys(protocol or PROBES)]
    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    loaded.config.data = data_of(loaded, {"train": train_list, "test": test_list}, videos)
    sets = {
        key: _dataset(loaded, split if key[0] == "test" else "train", key[1], key[2], spread.value)
        for key in needed(probes)
    }
    found = {key: _features(loaded, data, key[1], chosen, features) for key, data in sets.items()}
    field = field_of(loaded, label_field)
    base = name or (split if test_list is None else result_name(f"list_{test_list.stem}"))
    rows = []
    for probe in probes:
        train, test = (sets[key] for key in needed([probe]))
        data = ProbeData(loaded.config, train, test, field, True, found)
        result = run_probe(probe, data, c)
        lines = write_result(loaded, result, f"{base}_{result.prefix}")
        print("\n".join([f"probe {probe.value}", *lines, ""]))
        rows.append((probe.value, result.scores))
    print(f"{'probe':12}{'top-1':>9}{'top-5':>9}{'mean':>9}{'per class':>11}")
    for label, scores in rows:
        values = (scores.top1, scores.top5, scores.mean)
        cells = "".join(f"{value:9.2f}" for value in values)
        print(f"{label:12}{cells}{scores.mean_per_class:11.2f}")


def _dataset(loaded: LoadedRun, split: str, passes: int, windows: int, spread: str) -> ClipDataset:
    from svilm_fast.commands.recognition import clips_of, views_of

    views = views_of(max(1, windows), 1, spread)
    return clips_of(loaded, split, None, views, train=passes > 0)


def _features(
    loaded: LoadedRun, data: ClipDataset, passes: int, device: torch.device, folder: Path | None
) -> ClipFeatures:
    from svilm_fast.tasks.action.features import evaluation_features, kept, training_features
    from svilm_fast.tasks.clips import autocast_dtype
    from svilm_fast.tasks.pretrain.retrieval import encoder_of

    encoder, config = encoder_of(loaded.model), loaded.config
    how: dict[str, Any] = {
        "batch_size": config.evaluation.batch_size,
        "autocast": autocast_dtype(config),
    }

    def extract() -> ClipFeatures:
        if passes:
            seed = config.run.seed
            return training_features(encoder, data, device, **how, passes=passes, seed=seed)
        return evaluation_features(encoder, data, device, **how)

    depends_on = {
        "weights": _weights_hash(loaded) if folder is not None else None,
        "kind": loaded.weights.value,
        "video": config.video.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "samples": data.fingerprint,
        "split": data.split,
        "passes": passes,
        "seed": config.run.seed if passes else None,
        "views": str(data.views),
        "autocast": str(how["autocast"]),
        "device": device.type,
    }
    return kept(folder, depends_on, extract)


def _weights_hash(loaded: LoadedRun) -> list[str]:
    from svilm_fast.train.folder.files import sha256_of

    return [sha256_of(path) for path in sorted(loaded.files.portable.glob("*.safetensors"))]
