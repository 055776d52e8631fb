"""Reading logs, smoothing, and what the charts show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.objectives.base import Metric
from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.report.curves import (
    draw_curves,
    draw_recall_bars,
    panels_of_evaluators,
    panels_with,
    read_metrics,
    smooth,
)
from svilm_fast.report.theme import LIGHT, drawing

METRICS = ObjectivesConfig().metrics()


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_numbers_come_by_name_in_step_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.jsonl",
        '{"step": 20, "loss": 2.0, "lr": 0.1, "note": "x", "flag": true}',
        '{"step": 10, "train/loss": 3.0, "loss_temporal": null}',
        '{"step": 20, "retrieval_t2v_R@1": 12.5}',
        '{"step": 40, "retrieval/t2v_R@1": 25.0}',
        '{"step": 30, "loss": NaN}',
        '{"step": 40, "lo',
    )
    series = read_metrics(path)
    assert set(series) == {"loss", "learning_rate", "retrieval/t2v_R@1"}
    steps, values = series["loss"]
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [3.0, 2.0]
    assert series["retrieval/t2v_R@1"][1].tolist() == [12.5, 25.0]


def test_an_evaluator_that_no_panel_names_gets_its_own() -> None:
    names = ("loss", "retrieval/v2t_R@1", "classification/top5", "classification/top1")
    (panel,) = panels_of_evaluators(dict.fromkeys(names))
    assert panel.title == "Held-out classification"
    assert panel.lines == (("classification/top1", "top1"), ("classification/top5", "top5"))


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, caplog) -> None:
    path = tmp_path / "m.jsonl"
    broken = [b"[1]", b'{"loss": 1}', b"nonsense", b'{"step": 2, "loss": "\xff"}', b"[" * 9999]
    broken += [b'{"step": 2, "loss": 1' + b"0" * 400 + b"}", b'{"step": 1' + b"0" * 400 + b"}"]
    path.write_bytes(b"\n".join([b'{"step": 1, "loss": 4}', *broken, b'{"step": 3, "loss": 2}']))
    steps, values = read_metrics(path)["loss"]
    assert (steps.tolist(), values.tolist()) == ([1, 3], [4.0, 2.0])
    assert "7 damaged lines left out" in caplog.text


def test_smoothing_keeps_straight_lines_and_their_ends() -> None:
    line = np.linspace(0, 9, 40)
    np.testing.assert_allclose(smooth(line, 7), line)
    values = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(smooth(values, 0), values)
    np.testing.assert_allclose(smooth(values, 3)[10], values[7:14].mean())
    assert smooth(values, 3)[0] == pytest.approx(values[0])


def test_panels_hold_the_numbers_of_the_log(metrics_path: Path) -> None:
    with drawing(LIGHT):
        figure = draw_curves(read_metrics(metrics_path), LIGHT, METRICS)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == [
        "Loss",
        "Loss parts",
        "Accuracy in the batch, %",
        "Held-out text to video, %",
        "Clips per second",
    ]
    loss, _, accuracy, held_out, _ = figure.axes[:5]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), 5 / np.arange(1, 61))
    np.testing.assert_allclose(accuracy.lines[0].get_ydata()[-1], 100)
    assert held_out.lines[0].get_ydata().tolist() == [25.0]
    assert loss.get_xlim() == (0, 60)


def test_every_panel_can_be_drawn(tmp_path: Path, pixels) -> None:
    names = {name: 0.5 for panel in panels_with(METRICS) for name, _ in panel.lines}
    lines = [json.dumps({"step": step, **names}) for step in (1, 2)]
    with drawing(LIGHT):
        figure = draw_curves(read_metrics(write(tmp_path / "m.jsonl", *lines)), LIGHT, METRICS)
        assert len(figure.axes) == len(panels_with(METRICS))
        assert (pixels(figure) < 250).any()


def test_a_share_that_stays_zero_is_not_blown_up(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "empty_group_rate": 0.0}) for step in range(1, 5)]
    with drawing(LIGHT):
        figure = draw_curves(read_metrics(write(tmp_path / "m.jsonl", *lines)), LIGHT, METRICS)
    assert figure.axes[0].get_ylim() == (0, 5)


def test_a_log_without_known_numbers_says_what_is_known(tmp_path: Path) -> None:
    series = read_metrics(write(tmp_path / "m.jsonl", '{"step": 1, "other": 2}'))
    with pytest.raises(ValueError, match=r"none of the known metrics \(accuracy_t2v"):
        draw_curves(series, LIGHT, METRICS)


def test_a_chart_may_have_more_lines_than_there_are_colours(tmp_path: Path) -> None:
    more = {f"loss_{n}": Metric(panel="Loss parts", label=f"part {n}") for n in range(9)}
    lines = [json.dumps({"step": s} | dict.fromkeys(more, 1.0 / s)) for s in (1, 2, 3)]
    with drawing(LIGHT):
        figure = draw_curves(read_metrics(write(tmp_path / "m.jsonl", *lines)), LIGHT, more)
    (axes,) = figure.axes
    assert len(axes.get_lines()) == len(more)


def test_bars_are_as_long_as_the_recalls(make_result) -> None:
    result = make_result()
    with drawing(LIGHT):
        axes = draw_recall_bars(result, LIGHT).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths[0] == list(result.text_to_video.recall.values())
    assert widths[1] == pytest.approx([12.5, 62.5, 100.0])
    assert widths[2] == [interval.expected for interval in result.chance]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["R@1", "R@5", "R@10"]


def test_a_single_evaluation_is_a_mark_with_its_value(tmp_path: Path) -> None:
    line = '{"step": 40, "retrieval_t2v_R@1": 12.5, "retrieval_t2v_R@5": 0.0, "gradient_norm": 2}'
    series = read_metrics(write(tmp_path / "m.jsonl", line))
    with drawing(LIGHT):
        figure = draw_curves(series, LIGHT, METRICS)
    for axes, labels in zip(figure.axes, (["R@1: 12.5", "R@5: 0"], ["before clipping: 2"])):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
        for drawn in axes.lines:
            assert drawn.get_marker() == "o"
            assert drawn.get_markersize() >= 6
            assert not drawn.get_clip_on()  # it stands on the right edge, or on the axis


def test_values_that_hardly_change_stay_below_the_top(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 5 + step * 1e-4}) for step in (1, 2)]
    with drawing(LIGHT):
        figure = draw_curves(read_metrics(write(tmp_path / "m.jsonl", *lines)), LIGHT, METRICS)
    assert figure.axes[0].get_ylim() == (0, pytest.approx(1.05 * 5.0002))
