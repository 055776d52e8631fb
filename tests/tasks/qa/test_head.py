"""The head of answers: padding, order and number of questions change no other answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svilm_fast.core.philox import StepSeeds
from svilm_fast.tasks.qa.head import IGNORED, QAInputs, QuestionAnswerer
from svilm_fast.tasks.qa.questions import drawn
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.small_model import SMALL_MODEL

ANSWERS = 7


def model_of(*more: str) -> QuestionAnswerer:
    config = load_config("tasks/qa", [*SMALL_MODEL, *more])
    torch.manual_seed(0)
    return QuestionAnswerer(config, config.task, ANSWERS).eval()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=generator).to(torch.uint8)
    tokens = torch.randint(3, 300, (2, 3, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([[[6], [3], [1]], [[2], [5], [6]]])
    return frames, tokens, mask


@pytest.mark.parametrize("more", [(), ("task.layers=4", "video.pool=class_token")])
def test_a_question_is_answered_alone(inputs, more) -> None:
    frames, tokens, mask = inputs
    model = model_of(*more)
    with torch.no_grad():
        every = model.answer(frames, tokens, mask)
        assert every.shape == (2, 3, ANSWERS)
        for clip in range(2):
            for place in range(3):
                length = int(mask[clip, place].sum())
                alone = model.answer(
                    frames[clip : clip + 1],
                    tokens[clip : clip + 1, place : place + 1, :length],
                    mask[clip : clip + 1, place : place + 1, :length],
                )
                torch.testing.assert_close(alone[0, 0], every[clip, place], rtol=1e-4, atol=1e-5)


def test_answers_depend_on_the_video_the_question_and_the_groups(inputs) -> None:
    frames, tokens, mask = inputs
    model = model_of()
    with torch.no_grad():
        every = model.answer(frames, tokens, mask)
        assert not torch.allclose(model.answer(frames.flip(0), tokens, mask), every, atol=1e-3)
        assert not torch.allclose(model.answer(frames, tokens.flip(1), mask), every, atol=1e-3)
        model.head.group_projection.weight.mul_(-1)
        assert not torch.allclose(model.answer(frames, tokens, mask), every, atol=1e-3)


def test_without_group_tokens_the_frames_are_read(inputs) -> None:
    off = ("objectives.grounding.weight=0", "video.grouping.in_encoder=when_needed")
    model = model_of(*off)
    assert model.encoder.video.num_groups == 0
    assert model.answer(*inputs).shape == (2, 3, ANSWERS)


def test_the_loss_counts_what_has_a_label_over_all_questions(inputs) -> None:
    model = model_of()
    labels = torch.tensor([[0, IGNORED, 3], [IGNORED, IGNORED, 6]])
    seeds = StepSeeds(0, 0, torch.tensor([1, 2]))
    found = model(QAInputs(*inputs, labels, seeds))
    logits = model.answer(*inputs).log_softmax(-1)
    expected = -(logits[0, 0, 0] + logits[0, 2, 3] + logits[1, 2, 6]) / 6
    torch.testing.assert_close(found.loss, expected)
    right = [logits[0, 0].argmax() == 0, logits[0, 2].argmax() == 3, logits[1, 2].argmax() == 6]
    assert float(found.metrics["accuracy_qa"]) == pytest.approx(sum(map(int, right)) / 3)
    nothing = model(QAInputs(*inputs, torch.full_like(labels, IGNORED), seeds))
    assert float(nothing.loss.detach()) == 0.0


def test_dropout_is_a_function_of_seed_step_and_sample(inputs) -> None:
    model = model_of("task.dropout=0.5").train()
    labels = torch.zeros(2, 3, dtype=torch.int64)

    def loss(step: int, keys: list[int]) -> Tensor:
        seeds = StepSeeds(3, step, torch.tensor(keys))
        return model(QAInputs(*inputs, labels, seeds)).loss

    assert torch.equal(loss(1, [5, 6]), loss(1, [5, 6]))
    assert not torch.equal(loss(1, [5, 6]), loss(2, [5, 6]))
    assert not torch.equal(loss(1, [5, 6]), loss(1, [5, 7]))


def test_drawn_questions_are_a_permutation_that_repeats_only_when_short() -> None:
    seeds = StepSeeds(0, 4, torch.arange(50)).at(7)
    counts = [1 + n % 6 for n in range(50)]
    chosen = drawn(counts, seeds, 4)
    for count, places in zip(counts, chosen, strict=True):
        assert len(places) == 4
        assert set(places) <= set(range(count))
        assert len(set(places)) == min(4, count)
    # A clip's draw does not depend on the other clips of its batch.
    assert drawn(counts[10:12], seeds[10:12], 4) == chosen[10:12]
    assert len({tuple(places) for count, places in zip(counts, chosen) if count == 6}) > 4
