"""A run follows the stored embeddings of a teacher, each sample its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.core.errors import ConfigError
from svilm_fast.data.keys import sample_key
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.video_embeddings import VideoEmbeddings
from svilm_fast.tasks.base import task_of
from svilm_fast.train.run.embed_shards import embed_shards
from svilm_fast.train.run.session import Start, train_as_rank

SMALL = (
    "objectives.contrast.video=clean",
    "objectives.grounding.weight=0",
    "objectives.temporal.weight=0",
    "evaluation.at_end=false",
)


def test_a_student_follows_a_teachers_embeddings(configure, ranks, world: Path, tmp_path: Path):
    teacher = configure(*SMALL, "training.steps=1", run="teacher")
    train_as_rank(teacher, Start(), ranks)
    stored = tmp_path / "stored"
    embed_shards(teacher.run.dir, str(world / "train"), stored)

    student = [
        *SMALL,
        f"data.teacher_embeddings={stored}",
        f"objectives.distill.teacher_width={teacher.model.embed_dim}",
        "model.embed_dim=12",
        "objectives.contrast.weight=0",
        "optimizer.lr=0.01",
        "training.micro_batch=4",
    ]
    config = configure(*student, "objectives.distill.weight=1", "training.steps=25", run="student")
    train_as_rank(config, Start(), ranks)
    lines = (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()
    cosines = [
        float(line.split('cosine_distill": ')[1].split(",")[0].rstrip("}")) for line in lines
    ]
    assert cosines[-1] > cosines[0] + 0.1

    tokenizer = Tokenizer.load(Path(config.run.dir) / "tokenizer.json")
    task = task_of(config)
    batch = task.dataset("train", tokenizer, train=True).batch([5, 0, 11])
    inputs = task.inputs(batch, 0, ranks)
    for name, kind in (("videos", "teacher_videos"), ("texts", "teacher_texts")):
        with np.load(next(stored.glob("*.npz"))) as columns:
            rows = dict(zip(columns["ids"].tolist(), columns[name], strict=True))
        expected = torch.from_numpy(np.stack([rows[each] for each in batch.ids]))
        assert torch.equal(getattr(inputs, kind), expected)
    found = VideoEmbeddings(stored, teacher.model.embed_dim, texts=True)
    key = sample_key(batch.ids[0])
    assert torch.equal(torch.from_numpy(found.read_text(key, "")), inputs.teacher_texts[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "set data.teacher_embeddings to the folder"),
        (["data.teacher_embeddings=stored"], "stored has no embeddings of captions"),
        (
            ["data.teacher_embeddings=x", "data.video_embeddings=y", "video.lock=true"],
            "set one of them",
        ),
        (
            [
                "data.teacher_embeddings=x",
                "objectives.second.kind=distill",
                "objectives.second.teacher_width=3",
            ],
            "different widths: distill: .*, second: 3",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(configure, overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(*SMALL, "objectives.distill.weight=1", *overrides)


def test_masked_sources_and_excluded_partners_are_refused(configure) -> None:
    with pytest.raises(ConfigError, match=r"objectives\.contrast\.exclude_partner=false"):
        configure(
            "objectives.contrast.video=blended",
            "data.same_source=mask",
            "objectives.contrast.exclude_partner=true",
        )
