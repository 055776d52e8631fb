"""Exports the model of a finished run as a folder for `svilm_fast.load_pretrained`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePath
from typing import Any

from svilm_fast.core.text import counted
from svilm_fast.data.errors import DataError
from svilm_fast.data.shards import parse_json
from svilm_fast.inference.card import CardFacts, EvaluationRecord, model_card, protocol_text
from svilm_fast.inference.folder import write_model
from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.embedding import pretrained
from svilm_fast.train.run.loaded_run import LoadedRun, load_run

OF_STEP = re.compile(r"_step_(\d{8,})$")
HASHES = ("manifest", "hash", "sha256", "split_hash")


def export_run(
    run_dir: str | Path,
    out: str | Path,
    *,
    weights: Weights | None = None,
    licence: str | None = None,
) -> list[str]:
    """Write the model of a run to `out`, a new or empty folder.

    weights: as in `load_run`. licence: of the weights, for the model card.

    Returns lines that say what was written. Raises UserError if the run cannot be loaded, has no
    dual encoder, or if the folder holds anything.
    """
    run = load_run(run_dir, weights=weights)
    model = pretrained(run)
    records, left_out = evaluation_records(run)
    facts = CardFacts(
        name=run.config.run.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        licence=licence,
        data=_data(run),
        training=_training(run),
        evaluations=records,
    )
    model.card = model_card(facts, model.settings, Path(out).name)
    folder = write_model(model, out)
    lines = [
        f"wrote {folder}: {run.weights.value} weights of step {run.step}, "
        f"{facts.parameters:,} parameters",
        f"the model card lists {counted(len(records), 'evaluation')} of these weights",
    ]
    if left_out:
        names = ", ".join(left_out)
        lines.append(f"left out, of other steps or weights or without naming theirs: {names}")
    if licence is None:
        lines.append("the model card states no licence; --license NAME states one")
    return lines


def evaluation_records(run: LoadedRun) -> tuple[list[EvaluationRecord], list[str]]:
    """Return the results of the loaded weights, and the names of results of others.

    Results say their step and weights in `extra`, older ones their step in the file's name. What
    does not say both is left out, and so are files that are no JSON object; without an average the
    weights need not be said.
    """
    records, left_out = [], []
    only = Weights.RAW.value if run.config.ema.decay is None else None
    for path in sorted(run.files.evaluation.glob("*.json")):
        content = path.read_bytes()
        try:
            result = parse_json(content, path.name)
        except DataError:
            left_out.append(path.stem)
            continue
        extra = result.get("extra")
        extra = extra if isinstance(extra, dict) else {}
        named = OF_STEP.search(path.stem)
        step = int(named[1]) if named else extra.get("step")
        if step != run.step or extra.get("weights", only) != run.weights.value:
            left_out.append(path.stem)
            continue
        table = path.with_suffix(".txt")
        records.append(
            EvaluationRecord(
                name=path.stem,
                protocol=protocol_text(result.get("protocol")),
                data_hash=_hash(result),
                sha256=hashlib.sha256(content).hexdigest(),
                table=table.read_text(encoding="utf-8") if table.is_file() else "",
            )
        )
    return records, left_out


def _hash(result: dict[str, Any]) -> str | None:
    protocol = result.get("protocol")
    for place in (result, protocol if isinstance(protocol, dict) else {}):
        for name in HASHES:
            if isinstance(place.get(name), str):
                return place[name]
    return None


def _data(run: LoadedRun) -> dict[str, str]:
    """The sources of each split without the folders of this machine."""
    found = {}
    for split in ("train", "val", "test"):
        source = getattr(run.config.data, split)
        sources = [source] if isinstance(source, str) else list(source or ())
        if sources:
            names = ["/".join(PurePath(each).parts[-2:]) for each in sources]
            found[split] = ", ".join(name.lstrip("/") for name in names)
    return found


def _training(run: LoadedRun) -> dict[str, str]:
    config = run.config
    pairs = run.step * config.training.global_batch
    active = config.objectives.active()
    objectives = ", ".join(f"{name} {each.weight:g}" for name, each in active.items())
    return {
        "task": config.task.name,
        "objectives and weights": "its own loss" if config.task.own_loss else objectives,
        "steps": f"{run.step:,}",
        "global batch": f"{config.training.global_batch:,} pairs ({pairs:,} in all)",
        "captions": config.data.captions,
        "precision": config.training.precision,
        "seed": str(config.run.seed),
    }
