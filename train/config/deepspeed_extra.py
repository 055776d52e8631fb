"""Checks `deepspeed.extra` for keys that DeepSpeed ignores, and for forbidden keys and paths.

DeepSpeed validates only its pydantic blocks, and ignores unknown keys in all others. The known keys
are not listed here. Instead DeepSpeed's parser reads a dictionary that records the keys it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.messages import single_line, suggestion
from svilm_fast.train.config.run_files import LOCK_FILE, RunFiles
from svilm_fast.train.environment import import_deepspeed

HERE = "deepspeed.extra"
# Allowed top-level keys besides those that `build_deepspeed_config` writes.
ALLOWED = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "autotuning",
        "comms_logger",
        "compile",
        "disable_python_gc",
        "gradient_allreduce_op",
        "log_level",
        "seq_parallel_communication_data_type",
        "timers",
    }
)
# Keys that a setting determines. ZeRO's names are without `stage3_`, which is optional.
DECIDED_BY = {
    "bf16": "training.precision",
    "communication_data_type": "deepspeed.gradient_dtype",
    "data_types.grad_accum_dtype": "training.precision",
    "data_types.param_dtype": "training.precision",
    "fp16": "training.precision",
    "gradient_accumulation_steps": "training.micro_batch",
    "gradient_clipping": "training.gradient_clipping",
    "optimizer": "optimizer.name and the other settings of optimizer",
    "scheduler": "schedule.shape and the other settings of schedule",
    "tensorboard": "logging.tensorboard",
    "torch_autocast.dtype": "training.precision",
    "torch_autocast.enabled": "training.precision",
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.global_batch and the number of ranks",
    "wandb": "logging.wandb",
    "zero_optimization.allgather_bucket_size": "deepspeed.bucket_elements",
    "zero_optimization.max_live_parameters": "deepspeed.live_elements",
    "zero_optimization.max_reuse_distance": "deepspeed.live_elements",
    "zero_optimization.overlap_comm": "deepspeed.overlap_communication",
    "zero_optimization.param_persistence_threshold": "deepspeed.persistence_elements",
    "zero_optimization.prefetch_bucket_size": "deepspeed.prefetch_elements",
    "zero_optimization.reduce_bucket_size": "deepspeed.bucket_elements",
    "zero_optimization.stage": "deepspeed.zero_stage",
}
FORMAT = "checkpoints are written and verified in one format"
# Keys that cannot be changed, with the reason.
FIXED = {
    "autotuning.enabled": "DeepSpeed's tuner ends the process; use `svilm plan` and `auto`",
    "checkpoint": FORMAT,
    "torch_autocast.lower_precision_safe_modules": "it names modules that DeepSpeed imports; "
    "deepspeed.gradient_dtype chooses what is reduced as bf16",
    "zero_allow_untested_optimizer": "our optimizers are tested with ZeRO",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's; set optimizer.name",
    "zero_optimization.elastic_checkpoint": FORMAT,
    "zero_optimization.load_from_fp32_weights": FORMAT,
}
# Keys of files that DeepSpeed writes, with their default paths in the run folder.
WRITES: dict[str, dict[str, str | None]] = {
    "autotuning": {
        "exps_dir": "autotuning/exps",
        "metric_path": "autotuning/metric.json",
        "model_info_path": "autotuning/model_info.json",
        "results_dir": "autotuning/results",
    },
    "csv_monitor": {"output_path": "csv_monitor"},
    "flops_profiler": {"output_file": None},
}
NO_DEFAULT = object()


def checked_extra(
    extra: Mapping[str, Any], generated: Mapping[str, Any], run_dir: Path
) -> dict[str, Any]:
    """Return `extra` with absolute paths. Raises ConfigError naming the first wrong key.

    extra: will be merged over `generated`, the dictionary made from the settings. run_dir: files
    that DeepSpeed writes must be inside; relative paths start there.
    """
    if not extra:
        return {}
    paths = list(_paths(extra))
    for path in paths:
        if "." in path:
            _check_unclaimed(path)
    for key in extra:
        _check_names(key, extra, generated)
    for path in paths:
        _check_unclaimed(path)
    checked = dict(extra)
    for block, files in WRITES.items():
        if block in extra:
            checked[block] = _inside(block, extra[block], files, run_dir)
    for name in ("offload_param", "offload_optimizer"):
        offload = (extra.get("zero_optimization") or {}).get(name) or {}
        if offload.get("nvme_path") is not None:
            _check_scratch(f"{HERE}.zero_optimization.{name}.nvme_path", offload["nvme_path"])
    return checked


class _Asked(dict[str, Any]):
    """A dictionary that records which keys are read, and with which defaults.

    Unpacking (`**`) reads all keys, for a pydantic model that then validates them.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({k: _Asked(v) if isinstance(v, Mapping) else v for k, v in values.items()})
        self.asked: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.asked[key] = default
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.setdefault(key, NO_DEFAULT)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.setdefault(str(key), NO_DEFAULT)
        return super().__contains__(key)

    # These two make unpacking call `__getitem__`.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)


def _check_names(key: str, extra: Mapping[str, Any], generated: Mapping[str, Any]) -> None:
    """Parse one top-level key over `generated`; raises ConfigError for keys DeepSpeed ignores."""
    given, own = extra[key], generated.get(key)
    known = ALLOWED | generated.keys() | {path for path in DECIDED_BY if "." not in path}
    if isinstance(own, Mapping) and not isinstance(given, Mapping):
        raise ConfigError(f"'{HERE}.{key}' is a block, found {given!r}; set one of its keys")
    if isinstance(given, Mapping) and isinstance(own, Mapping):
        _check_spelling(key, given, own)
    read = _Asked({**generated, key: {**own, **given} if isinstance(own, Mapping) else given})
    parse = _parser()
    try:
        parse(read)
    except ValidationError as error:
        raise _refused_by_model(key, given, error) from error
    except Exception as error:  # DeepSpeed's parser can raise anything
        reason = single_line(error, None)
        raise ConfigError(f"'{HERE}.{key}' is refused by DeepSpeed: {reason}") from error
    if key in known:
        _check_block(f"{HERE}.", read, {key: given})
    elif key in read.asked:
        raise ConfigError(f"'{HERE}.{key}' is not supported; known: {', '.join(sorted(known))}")
    else:
        raise _unknown(f"{HERE}.{key}", key, known)


def _parser() -> Callable[[Mapping[str, Any]], object]:
    # The first import fixes the accelerator; the ranks have imported DeepSpeed already.
    import_deepspeed("cuda" if torch.cuda.is_available() else "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    class Parsed(DeepSpeedConfig):  # type: ignore[misc]
        def _configure_train_batch_size(self) -> None:
            """Skip the check for the number of ranks, which `local_batch_of` has done."""

    return Parsed


def _check_block(prefix: str, read: _Asked, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in read.asked:
            raise _unknown(f"{prefix}{name}", name, read.asked)
        inner = dict.get(read, name)
        if isinstance(value, Mapping) and isinstance(inner, _Asked) and inner.asked:
            _check_block(f"{prefix}{name}.", inner, value)
        elif not _fits(value, read.asked[name]):
            raise ConfigError(
                f"'{prefix}{name}' must be {type(read.asked[name]).__name__}, as the default "
                f"{read.asked[name]!r} is; found {value!r}"
            )


def _fits(value: Any, default: Any) -> bool:
    if default is NO_DEFAULT or not isinstance(default, bool | int | float | str):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int) and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int | float if isinstance(default, float) else type(default))


def _refused_by_model(key: str, given: Any, error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    last = names[-1] if names else ""
    path = _path_to(last, given, f"{HERE}.{key}") or ".".join([HERE, key, *names])
    if first["type"] == "extra_forbidden":
        return _unknown(path, last, _siblings(error.title, names[:-1]))
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"'{path}': {message}, found {first['input']!r}")


def _path_to(name: str, values: Any, prefix: str) -> str | None:
    if not isinstance(values, Mapping):
        return None
    if name in values:
        return f"{prefix}.{name}"
    inner = (_path_to(name, value, f"{prefix}.{key}") for key, value in values.items())
    return next((found for found in inner if found), None)


def _siblings(model: str, path: Iterable[str]) -> set[str]:
    """Return the field names of DeepSpeed's model, or of its nested model at `path`."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    found = next((c for c in _subclasses(DeepSpeedConfigModel) if c.__name__ == model), None)
    for part in path:
        field = found.model_fields.get(part) if found else None
        found = _model_in(field.annotation) if field else None
    fields = found.model_fields if found else {}
    return {*fields, *(field.alias for field in fields.values() if field.alias)}


def _subclasses(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for found in cls.__subclasses__():
        yield found
        yield from _subclasses(found)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _check_spelling(key: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ConfigError for an alias of a generated key: DeepSpeed reads only one of the two."""
    written = {str(name).removeprefix("stage3_"): name for name in own}
    for name in given:
        first = written.get(str(name).removeprefix("stage3_"), name)
        if first != name:
            raise ConfigError(f"'{HERE}.{key}.{name}' has another name here: use {first!r}")


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _check_unclaimed(path: str) -> None:
    block, dot, name = path.partition(".")
    plain = block + dot + name.removeprefix("stage3_")
    if plain in DECIDED_BY:
        raise ConfigError(f"'{HERE}.{path}' is decided by a setting: set {DECIDED_BY[plain]}")
    if plain in FIXED:
        raise ConfigError(f"'{HERE}.{path}' cannot be changed: {FIXED[plain]}")


def _inside(
    block: str, given: Mapping[str, Any], files: Mapping[str, str | None], run_dir: Path
) -> dict[str, Any]:
    """Return the block with absolute paths. Raises ConfigError if one is outside of the run."""
    root = run_dir.expanduser().resolve()
    own = {LOCK_FILE, *RunFiles(root).names()}
    placed = dict(given)
    for name, default in files.items():
        path = given.get(name) or default
        if path is None:
            continue
        # DeepSpeed's monitor creates a folder of this name inside output_path.
        parts = [path, given.get("job_name") or "."] if name == "output_path" else [path]
        for part in (root.joinpath(*map(str, parts)), root / str(path)):
            inside = part.resolve().relative_to(root).parts if _is_below(part, root) else ()
            if inside and inside[0] in own:
                raise ConfigError(
                    f"'{HERE}.{block}.{name}' names {inside[0]!r}, which the run itself writes in "
                    "run.dir; give another name"
                )
            if not _is_below(part, root):
                raise ConfigError(
                    f"'{HERE}.{block}.{name}' must stay inside run.dir ({root}): "
                    f"{'/'.join(map(str, parts))!r} leaves it; give a relative path"
                )
        placed[name] = str((root / str(path)).resolve())
    return placed


def _is_below(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _check_scratch(key: str, given: Any) -> None:
    """Raise ConfigError if a swap folder has other content, which DeepSpeed would delete."""
    folder = Path(str(given))
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(f"'{key}' must be the absolute path of a folder, found {given!r}")
    foreign = [
        entry.name
        for entry in folder.iterdir()
        if entry.is_symlink() or not entry.is_dir() or not entry.name.startswith("zero_stage_")
    ]
    if foreign:
        raise ConfigError(
            f"'{key}' must be an empty folder or one that only DeepSpeed used (zero_stage_*), "
            f"because DeepSpeed deletes in it; {given} holds {foreign[0]!r}"
        )


def _unknown(path: str, name: str, known: Iterable[str]) -> ConfigError:
    return ConfigError(f"unknown key '{path}': {suggestion(str(name), sorted(known))}")
