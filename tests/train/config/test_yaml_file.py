"""Hostile and broken YAML gets one line that names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.yaml_file import LARGEST_FILE, parse_yaml, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(9 * [f'*{old}'])}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "flow_3000_deep": ("run: " + 3000 * "[" + 3000 * "]", "line 1: nested more than 32 deep"),
    "block_600_deep": (
        "".join(f"{i * ' '}a:\n" for i in range(600)),
        "line 33: nested more than 32 deep",
    ),
    "unclosed_3000_deep": (3000 * "{a: ", "line 1: nested more than 32 deep"),
    "billion_laughs": (LAUGHS, "line 6: more than 100,000 values, aliases expanded"),
    "alias_in_itself": (
        "run: &a\n  seed: [*a]\n",
        "line 2: alias *a is inside its own anchor",
    ),
    "merge_of_itself": (
        "run: &a\n  <<: *a\n",
        "line 2: alias *a is inside its own anchor",
    ),
    "key_twice": ("optimizer:\n  lr: 1\n  lr: 2\n", "line 3: key 'lr' is already on line 2"),
    "block_twice": ("run: {}\nmodel: {}\nrun: {}\n", "line 3: key 'run' is already on line 1"),
    "python_tag": ("run:\n  name: !!python/name:os.system\n", "line 2: could not determine"),
    "own_tag": ("run:\n  name: !mine x\n", "line 2: could not determine a constructor"),
    "false_tag": ("run:\n  seed: !!int abc\n", "line 2: cannot read 'abc' as"),
    "no_date": ("run:\n  seed: 2024-13-99\n", "line 2: cannot read '2024-13-99' as"),
    "number_of_5000_digits": ("run:\n  seed: " + 5000 * "9", "line 2: cannot read '9999"),
    "zero_byte": ("run:\n\n  name: a\0b\n", "line 3: character 0x00 is not allowed"),
    "two_documents": ("run: {}\n---\nrun: {}\n", "line 2: "),
    "latin1": ("run:\n  name: café\n".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
    "utf16": ("run: {}\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_is_refused_in_one_line_with_its_name_and_line(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / f"{name}.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{path} is not valid YAML, {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [3000 * "[", 5000 * "9", "2024-13-99", "[1", "{a: 1, a: 2}", "!!python/name:os.system"]
)
def test_an_override_is_read_like_a_file(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^the value of 'run.seed' is not valid YAML, line 1: "):
        load_config(None, [f"run.seed={value}"])


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"huge.yaml is larger than 1,048,576 bytes"):
        load_config(str(path))
    path.write_text("# " + (LARGEST_FILE - 2) * "x")
    assert read_yaml(path) == {}


def test_a_key_path_3000_deep_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested more than 32 deep"):
        load_config(None, ["deepspeed.extra." + 3000 * "a." + "b=1"])


def test_a_chain_of_recipes_has_an_end(tmp_path: Path) -> None:
    for place in range(40):
        (tmp_path / f"r{place}.yaml").write_text(f"base: r{place + 1}\n")
    with pytest.raises(ConfigError, match="inherits from more than 32 files"):
        load_config(str(tmp_path / "r0.yaml"))


def test_anchors_merges_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "fine.yaml"
    path.write_text(
        "\ufeffvideo: &tower {mlp_ratio: 2}\ntext:\n  <<: *tower\n  mlp_ratio: 3\n"
        "run: {seed: &seed 7}\nevaluation: {max_clips: *seed}\n"
    )
    config = load_config(str(path))
    assert (config.video.mlp_ratio, config.text.mlp_ratio) == (2, 3)
    assert (config.run.seed, config.evaluation.max_clips) == (7, 7)


def test_depth_and_aliases_up_to_the_bound_are_fine() -> None:
    assert parse_yaml(32 * "[" + 32 * "]", "it is")
    with pytest.raises(ConfigError):
        parse_yaml(33 * "[" + 33 * "]", "it is")
