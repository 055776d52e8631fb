"""Recipes, inheritance, overrides, and what a typo gets."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.config.load import (
    dotted_keys,
    dump_config,
    explain,
    load_config,
    read_recipe,
)
from svilm_fast.train.config.recipes import preset_names
from svilm_fast.train.config.schema import RunConfig


def one_edit(word: str, random_source: random.Random) -> str:
    """Drop, double, replace or swap one letter of the last part of a dotted path."""
    prefix, _, key = word.rpartition(".")
    place = random_source.randrange(len(key))
    kind = random_source.choice(["drop", "double", "replace", "swap"])
    if kind == "drop" and len(key) > 1:
        key = key[:place] + key[place + 1 :]
    elif kind == "double":
        key = key[:place] + key[place] + key[place:]
    elif kind == "replace":
        key = key[:place] + random_source.choice(string.ascii_lowercase) + key[place + 1 :]
    else:
        place = min(place, len(key) - 2)
        key = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    return f"{prefix}.{key}".lstrip(".")


def test_every_one_edit_typo_of_every_key_is_refused_with_its_path() -> None:
    source = random.Random(0)
    keys = list(dotted_keys())
    known = set(keys)
    refused, suggested = 0, 0
    for key in keys * 2:
        typo = one_edit(key, source)
        if typo in known:
            continue
        with pytest.raises(ConfigError) as caught:
            load_config(None, [f"{typo}=1"])
        message = str(caught.value)
        assert f"unknown key {typo!r}" in message
        refused += 1
        suggested += repr(key) in message
    assert refused >= 200
    # A two-letter key with a letter missing is near to several others.
    assert suggested >= 0.9 * refused


def test_typos_in_a_file_are_refused_like_typos_in_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objectives:\n  grounding:\n    wieght: 0.5\n")
    with pytest.raises(ConfigError, match=r"unknown key 'objectives.grounding.wieght'.*weight"):
        load_config(str(recipe))


def test_a_key_in_the_wrong_block_is_found_where_it_lives() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer.lr'"):
        load_config(None, ["training.lr=1"])


def test_a_block_given_as_a_value_names_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"'logging' is a block.*logging.every_steps"):
        load_config(None, ["logging=5"])


def test_a_path_through_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'run.seed' is a value, not a block"):
        load_config(None, ["run.seed.x=5"])


def test_a_wrong_type_says_path_and_finding() -> None:
    with pytest.raises(ConfigError, match=r"^training.global_batch: .*integer.*'many'"):
        load_config(None, ["training.global_batch=many"])


def test_an_override_without_equals_says_what_was_expected() -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(None, ["run.seed"])


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.lr=1e-4", lambda c: c.optimizer.lr == 1e-4),
        ("run.name=123", lambda c: c.run.name == "123"),
        ("training.epochs=null", lambda c: c.training.steps == 1000),
        ("optimizer.betas=[0.8, 0.9]", lambda c: c.optimizer.betas == (0.8, 0.9)),
        (
            "deepspeed.extra.prescale_gradients=true",
            lambda c: c.deepspeed.extra["prescale_gradients"],
        ),
        ("--run.seed=4", lambda c: c.run.seed == 4),
    ],
)
def test_overrides_are_read_as_their_type(override: str, read) -> None:
    assert read(load_config(None, [override]))


def test_steps_and_epochs_exclude_each_other_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("training: {steps: 3, epochs: 2}\n")
    with pytest.raises(ConfigError, match=r"either training.steps or training.epochs"):
        load_config(str(path))


def test_a_length_replaces_the_length_of_the_layer_below() -> None:
    by_steps = load_config("svilm_base", ["training.steps=7"]).training
    assert (by_steps.steps, by_steps.epochs) == (7, None)
    by_epochs = load_config("demo", ["training.epochs=2"]).training
    assert (by_epochs.steps, by_epochs.epochs) == (None, 2.0)


def test_later_overrides_win_over_earlier_ones_and_over_the_file() -> None:
    config = load_config("demo", ["run.seed=1", "run.seed=2"])
    assert config.run.seed == 2
    assert config.run.name == "demo"


def test_bases_are_laid_below_and_may_chain(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optimizer: {lr: 0.5, weight_decay: 0.25}\nrun: {seed: 3}\n")
    (tmp_path / "b.yaml").write_text("base: a\noptimizer: {lr: 0.125}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nrun: {name: c}\n")
    config = load_config(str(tmp_path / "c.yaml"))
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (0.125, 0.25)
    assert (config.run.seed, config.run.name) == (3, "c")


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    with pytest.raises(ConfigError, match=r"cycle: a.yaml -> b.yaml -> a.yaml"):
        read_recipe(str(tmp_path / "a.yaml"))


def test_a_missing_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file 'configs/dmo.yaml'.*'demo'"):
        load_config("configs/dmo.yaml")


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("run: {seed: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_a_yaml_tag_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("run: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(str(path))


@pytest.mark.parametrize("name", preset_names())
def test_every_recipe_is_valid_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config))
    assert load_config(str(saved)) == config


def test_the_preset_gives_sizes_and_the_recipe_wins() -> None:
    config = load_config(None, ["model.preset=tiny", "video.width=192"])
    assert (config.video.width, config.video.depth) == (192, 4)
    assert config.data.tokenizer.vocab_size == config.text.vocab_size
    assert config.data.tokenizer.length == config.text.length


def test_a_tokenizer_longer_than_the_text_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.tokenizer.length=64 is more than text.length"):
        load_config(None, ["model.preset=tiny", "data.tokenizer.length=64"])


def test_bf16_parameters_need_a_zero_stage() -> None:
    with pytest.raises(ConfigError, match=r"bf16 needs deepspeed.zero_stage 1, 2 or 3"):
        load_config(None, ["training.precision=bf16", "deepspeed.zero_stage=0"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("video.num_groups=0", r"^the grounding objective needs group tokens: .*num_groups"),
        ("video.num_segments=1", r"^video.num_segments=1 leaves nothing to blend: set it to 2"),
        (
            "video.num_segments=1 objectives.temporal.weight=0 objectives.grounding.video=clean",
            r"nothing to blend: .*objectives.contrast.video=clean",
        ),
        (
            "objectives.temporal.head=transformer objectives.temporal.heads=3",
            r"^objectives.temporal.heads=3 must divide model.embed_dim=128$",
        ),
    ],
)
def test_objectives_that_the_model_cannot_serve_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, ["model.preset=tiny", *overrides.split()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "video.num_groups=0 objectives.grounding.weight=0",
        "video.num_segments=1 objectives.temporal.weight=0 objectives.grounding.video=clean "
        "objectives.contrast.video=clean",
        "objectives.temporal.heads=3 objectives.temporal.head=rnn",
    ],
)
def test_what_no_objective_reads_may_be_anything(overrides: str) -> None:
    load_config(None, ["model.preset=tiny", *overrides.split()])


def test_every_key_is_explained_with_a_meaning() -> None:
    text = explain("")
    for key in dotted_keys(RunConfig):
        assert f"{key}: " in text
        assert "\n    " in explain(key), f"{key} has no meaning"
    assert "Annotated" not in text
    assert "FieldInfo" not in text


def test_types_are_explained_as_one_writes_them() -> None:
    assert explain("data.augment.crop_scale").startswith(
        "data.augment.crop_scale: tuple[float, float] = (0.6, 1.0)\n"
    )
    assert explain("video.grouping.layers").startswith(
        "video.grouping.layers: tuple[int, ...] | None = None\n"
    )


def test_meanings_are_explained_with_type_and_default() -> None:
    assert "peak learning rate" in explain("optimizer.lr")
    assert "= 0.001" in explain("optimizer.lr")
