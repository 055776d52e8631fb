"""The model card of an exported model: README.md with the metadata that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.inference.config import PretrainedConfig

NO_LICENCE = "not stated"
USE = """```python
import svilm_fast

model = svilm_fast.load_pretrained("{folder}")
videos = model.embed_video("clip.mp4")
scores = videos @ model.embed_text(["a dog in the snow", "a path in a park"]).T
```"""


@dataclass(frozen=True)
class EvaluationRecord:
    """A result file of a run: its name, protocol, hash of what was ranked, SHA-256, and table."""

    name: str
    protocol: str
    data_hash: str | None
    sha256: str
    table: str


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the settings.

    licence: an SPDX name; None: not stated. data: split to description. training: label to value.
    parameters: elements of the model.
    """

    name: str
    parameters: int
    licence: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    evaluations: Sequence[EvaluationRecord] = ()


def model_card(facts: CardFacts, settings: PretrainedConfig, folder: str) -> str:
    """Return the text of README.md. folder: its name in the example."""
    video, text = settings.video, settings.text
    tags = ["video-text-retrieval", "video-classification", "s-vilm"]
    head: dict[str, Any] = {"library_name": "svilm-fast", "tags": tags}
    if facts.licence is not None:
        head = {"license": facts.licence} | head
    size = f"{video.frames} frames of {video.image_size} x {video.image_size} pixels"
    model = {
        "input": f"{size}, {settings.reading.length} tokens",
        "embedding": f"{settings.model.embed_dim} values of unit norm, for videos and for texts",
        "video encoder": f"{video.depth} layers of width {video.width}",
        "text encoder": f"{text.depth} layers of width {text.width}",
        "group tokens": f"{video.num_groups}" if settings.groups else "none: cannot ground nouns",
        "parameters": f"{facts.parameters:,}",
        "weights": f"{settings.weights}, step {settings.step}",
    }
    licence = facts.licence or f"{NO_LICENCE}; `svilm export --license NAME` states one"
    sections = [
        f"# {facts.name}",
        "A video-text model trained with svilm-fast, an independent implementation of structured "
        "video-language pre-training (S-ViLM, arXiv 2303.16341).",
        USE.format(folder=folder),
        "## Model\n\n" + _table(model),
        f"## Licence\n\n{licence}. The licences of the training data may restrict use further.",
        "## Data\n\n" + (_table(facts.data) if facts.data else "No data set is recorded."),
        "## Training\n\n" + _table(facts.training),
        "## Evaluation\n\n" + _evaluations(facts.evaluations),
        "## Versions\n\n" + _table(settings.versions),
    ]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return printable(f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n")


def protocol_text(protocol: Any) -> str:
    """Format a result's protocol, which is a title or a mapping."""
    if isinstance(protocol, Mapping):
        return ", ".join(f"{key}: {_value(value)}" for key, value in protocol.items())
    return "not recorded" if protocol is None else str(protocol)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(rows: Mapping[str, str]) -> str:
    cells = [(key, _cell(value)) for key, value in rows.items()]
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in cells)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _evaluations(records: Sequence[EvaluationRecord]) -> str:
    if not records:
        return "The run has no evaluation of these weights."
    parts = [f"{counted(len(records), 'result')} of these weights."]
    for record in records:
        lines = [f"### {record.name}", f"- protocol: {record.protocol}"]
        if record.data_hash:
            lines.append(f"- SHA-256 of the data ranked: `{record.data_hash}`")
        lines.append(f"- SHA-256 of the result file: `{record.sha256}`")
        rows = record.table.replace("```", "'''").rstrip().splitlines()
        fenced = "\n".join(row.rstrip() for row in rows)
        parts.append("\n".join(lines) + (f"\n\n```text\n{fenced}\n```" if fenced else ""))
    return "\n\n".join(parts)
