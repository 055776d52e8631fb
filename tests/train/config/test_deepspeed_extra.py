"""`deepspeed.extra` may not be ignored, write elsewhere, import by name or override a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.config import deepspeed_extra
from svilm_fast.train.config.deepspeed import build_deepspeed_config
from svilm_fast.train.config.deepspeed_extra import ALLOWED, DECIDED_BY, FIXED, HERE
from svilm_fast.train.config.load import load_config


def build(extra: str, run_dir: Path = Path("runs/demo"), *, stage: int = 1) -> dict[str, Any]:
    overrides = [f"{HERE}={{{extra}}}", f"deepspeed.zero_stage={stage}", f"run.dir={run_dir}"]
    return build_deepspeed_config(load_config("demo", overrides), 2)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    ("extra", "path", "near"),
    [
        ("flops_profiler: {enabeld: true}", "flops_profiler.enabeld", "enabled"),
        ("torch_autocast: {enable: true}", "torch_autocast.enable", "enabled"),
        ("checkpoint: {tag_validaton: WARN}", "checkpoint.tag_validaton", "tag_validation"),
        ("checkpoint: {writer: {tpye: FAST}}", "checkpoint.writer.tpye", "type"),
        (
            "activation_checkpointing: {partitioned_activations: true}",
            "activation_checkpointing.partitioned_activations",
            "partition_activations",
        ),
        ("aio: {queue_dept: 8}", "aio.queue_dept", "queue_depth"),
        ("data_types: {grad_acum_dtype: bf16}", "data_types.grad_acum_dtype", "grad_accum_dtype"),
        ("autotuning: {resuls_dir: x}", "autotuning.resuls_dir", "results_dir"),
        (
            "autotuning: {model_info: {num_parms: 1}}",
            "autotuning.model_info.num_parms",
            "num_params",
        ),
        ("timers: {througput: {enabled: false}}", "timers.througput", "throughput"),
        ("timers: {throughput: {enabledd: 0}}", "timers.throughput.enabledd", "enabled"),
        ("zero_optimization: {sub_grup_size: 7}", "zero_optimization.sub_grup_size", "sub_group"),
        (
            "zero_optimization: {offload_param: {nvme_pth: /x}}",
            "zero_optimization.offload_param.nvme_pth",
            "nvme_path",
        ),
        ("comms_logger: {vebose: true}", "comms_logger.vebose", "verbose"),
        ("csv_monitor: {outputpath: x}", "csv_monitor.outputpath", "output_path"),
        ("compile: {deepcompil: true}", "compile.deepcompil", "deepcompile"),
        ("bfloat16: {}", "bfloat16", "bf16"),
    ],
)
def test_a_typo_at_any_depth_names_the_nearest_key(
    extra: str, path: str, near: str, stage: int
) -> None:
    with pytest.raises(ConfigError, match=f"^unknown key '{HERE}.{path}': did you mean '{near}"):
        build(extra, stage=stage)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("flops_profiler: {profile_step: soon}", "profile_step' must be int, .* found 'soon'"),
        ("flops_profiler: {detailed: 1}", "detailed' must be bool, .* found 1"),
        ("prescale_gradients: 1", "prescale_gradients' must be bool"),
        ("gradient_allreduce_op: median", "allreduce_op' is refused by DeepSpeed: Invalid"),
        ("compile: {passes: [os]}", r"compile.passes.0': Input should be 'z1', .* found 'os'"),
        ("zero_optimization: {sub_group_size: -1}", "sub_group_size': Input should be greater"),
        ("zero_optimization: true", "zero_optimization' is a block, found True"),
        ("comms_logger: 5", "comms_logger' is refused by DeepSpeed: "),
        ("compression_training: {}", "compression_training' is refused by .* has been removed"),
        ("nebula: {enabled: true}", "nebula' is refused by .* has been removed"),
        ("hybrid_engine: {enabled: true}", "hybrid_engine' is not supported; known: activation"),
        ("data_efficiency: {enabled: true}", "data_efficiency' is not supported"),
    ],
)
def test_a_wrong_value_is_refused_by_name(extra: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{message}") as caught:
        build(extra)
    assert HERE in str(caught.value)
    assert "\n" not in str(caught.value)


WHOLE = {
    "communication_data_type": "fp16",
    "gradient_clipping": "0.5",
    "optimizer": "{type: Adam}",
    "scheduler": "{type: WarmupLR}",
    **dict.fromkeys(("bf16", "fp16", "tensorboard", "wandb"), "{enabled: true}"),
}


@pytest.mark.parametrize("path", DECIDED_BY)
def test_a_key_that_a_setting_decides_names_the_setting(path: str) -> None:
    block, _, name = path.partition(".")
    extra = f"{block}: {{{name}: 1}}" if name else f"{block}: {WHOLE.get(block, 1)}"
    with pytest.raises(ConfigError) as caught:
        build(extra)
    assert str(caught.value) == (f"'{HERE}.{path}' is decided by a setting: set {DECIDED_BY[path]}")


@pytest.mark.parametrize("stage", [1, 3])
def test_both_names_of_a_key_of_zero_3_are_known(stage: int) -> None:
    for prefix in ("", "stage3_"):
        with pytest.raises(ConfigError, match=r"decided by a setting: set deepspeed.prefetch_el"):
            build(f"zero_optimization: {{{prefix}prefetch_bucket_size: 1}}", stage=stage)
    with pytest.raises(ConfigError, match=r"use 'stage3_gather_16bit_weights_on_model_save'"):
        build("zero_optimization: {gather_16bit_weights_on_model_save: true}", stage=3)


@pytest.mark.parametrize(
    "extra",
    [
        "checkpoint: {tag_validation: WARN}",
        "checkpoint: {load_universal: true}",
        "autotuning: {enabled: true}",
        "torch_autocast: {lower_precision_safe_modules: [os.path]}",
        "zero_optimization: {elastic_checkpoint: true}",
        "zero_allow_untested_optimizer: false",
    ],
)
def test_what_a_run_depends_on_is_fixed(extra: str) -> None:
    with pytest.raises(ConfigError, match="cannot be changed: "):
        build(extra)


def test_no_module_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="names modules that DeepSpeed imports"):
        build("torch_autocast: {lower_precision_safe_modules: [planted.Layer]}")


@pytest.mark.parametrize(
    "extra",
    [
        "flops_profiler: {output_file: %s}",
        "csv_monitor: {enabled: true, output_path: %s}",
        "csv_monitor: {enabled: true, job_name: %s}",
        "autotuning: {results_dir: %s}",
        "autotuning: {exps_dir: %s}",
        "autotuning: {metric_path: %s}",
        "autotuning: {model_info_path: %s}",
    ],
)
@pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", "../../../../../etc/x", "link/x"])
def test_output_stays_in_the_run_folder(extra: str, path: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(tmp_path)
    (run / "csv_monitor").symlink_to(run)
    with pytest.raises(ConfigError, match=rf"must stay inside run.dir \({run}\): .* leaves it"):
        build(extra % path, run)


def test_output_is_placed_in_the_run_folder(tmp_path: Path) -> None:
    """By default DeepSpeed writes into the working directory."""
    assert build("csv_monitor: {enabled: true}", tmp_path)["csv_monitor"] == {
        "enabled": True,
        "output_path": str(tmp_path / "csv_monitor"),
    }
    profiler = build("flops_profiler: {output_file: flops.txt}", tmp_path)["flops_profiler"]
    assert profiler == {"enabled": False, "output_file": str(tmp_path / "flops.txt")}
    tuning = build("autotuning: {fast: true}", tmp_path)["autotuning"]
    assert tuning["metric_path"] == str(tmp_path / "autotuning/metric.json")


def test_deepspeed_really_writes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)
    built = build("csv_monitor: {enabled: true, job_name: mine}", tmp_path / "run")
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.csv_monitor import csvMonitor

    csvMonitor(get_monitor_config(built).csv_monitor)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run/csv_monitor/mine").is_dir()


def test_a_swap_folder_holds_nothing_that_deepspeed_could_delete(tmp_path: Path) -> None:
    for block in ("offload_param", "offload_optimizer"):

        def offload(path: object, block: str = block) -> dict[str, Any]:
            where = f"{block}: {{device: nvme, nvme_path: {path}}}"
            return build(f"zero_optimization: {{{where}}}", stage=3)

        swap = tmp_path / block
        for missing in (swap, "relative"):
            with pytest.raises(ConfigError, match=f"{block}.nvme_path' must be the absolute path"):
                offload(missing)
        (swap / "zero_stage_3").mkdir(parents=True)
        assert offload(swap)["zero_optimization"][block]["nvme_path"] == str(swap)
        (swap / "thesis").mkdir()
        with pytest.raises(ConfigError, match="holds 'thesis'"):
            offload(swap)
        (swap / "thesis").rmdir()
        (swap / "zero_stage_3").rmdir()
        (swap / "zero_stage_3").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match="holds 'zero_stage_3'"):
            offload(swap)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_installed_deepspeed_reads_every_key_that_we_know(stage: int) -> None:
    """A key that a new version drops would be ignored from then on."""
    generated = build("", stage=stage)
    read = deepspeed_extra._Asked(generated)
    deepspeed_extra._parser()(read)
    deepspeed_extra._check_block("", read, generated)
    assert read.asked.keys() >= ALLOWED
    for path in (*DECIDED_BY, *FIXED):
        block, _, name = path.partition(".")
        assert block in read.asked
        if name and block == "zero_optimization":
            assert name in deepspeed_extra._siblings("DeepSpeedZeroConfig", [])
        elif name and block in generated:
            assert name in dict.__getitem__(read, block).asked


def test_what_people_tune_is_taken_and_merged() -> None:
    built = build(
        "zero_optimization: {sub_group_size: 7}, aio: {queue_depth: 16}, comms_logger: {},"
        "gradient_predivide_factor: 2, steps_per_print: 10, log_level: debug,"
        "timers: {throughput: {enabled: false}}, flops_profiler: {enabled: true, profile_step: 5}"
    )
    assert built["zero_optimization"]["sub_group_size"] == 7
    assert built["zero_optimization"]["stage"] == 1
    assert built["flops_profiler"] == {"enabled": True, "profile_step": 5}
    assert (built["gradient_predivide_factor"], built["steps_per_print"]) == (2, 10)


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ("flops_profiler: {output_file: config.yaml}", "config.yaml"),
        ("flops_profiler: {output_file: checkpoints/latest}", "checkpoints"),
        ("flops_profiler: {output_file: run.lock}", "run.lock"),
        ("csv_monitor: {enabled: true, output_path: ., job_name: portable}", "portable"),
    ],
)
def test_no_output_takes_the_place_of_a_file_of_the_run(
    tmp_path: Path, extra: str, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"names '{name}', which the run itself writes"):
        build(extra, tmp_path)
