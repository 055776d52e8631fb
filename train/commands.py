"""The commands beside training: look at the configuration, look at the installation."""

from __future__ import annotations

from typing import Annotated

import typer

from svilm_fast.terminal import print
from svilm_fast.train.load_config import (
    PRESETS,
    dump_config,
    explain,
    load_config,
    preset_names,
)
from svilm_fast.train.pretrain import ConfigName, Overrides

config_app = typer.Typer(no_args_is_help=True, help="Look at settings and recipes.")


@config_app.command("print")
def print_config(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print a recipe with all its bases and overrides resolved."""
    print(dump_config(load_config(config, overrides or [])), end="")


@config_app.command("explain")
def explain_key(
    path: Annotated[str, typer.Argument(help="a dotted key or block; default: everything")] = "",
) -> None:
    """Print type, default and meaning of settings."""
    print(explain(path))


@config_app.command("list")
def list_recipes() -> None:
    """Print the packaged recipes and the first line of each."""
    for name in preset_names():
        first_line = (PRESETS / f"{name}.yaml").read_text().splitlines()[0]
        print(f"{name:32} {first_line.lstrip('# ')}")


def doctor() -> None:
    """Print versions, devices, the path of every kernel and the attention backends."""
    import torch

    from svilm_fast.kernels import backend
    from svilm_fast.models.attention import AttentionRequest, availability
    from svilm_fast.train.environment import package_versions

    print("packages")
    for name, version in package_versions().items():
        print(f"  {name:12} {version}")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    print("\ndevices")
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"  {device!s:12} {name}")
    print("\nkernels")
    print("\n".join(f"  {line}" for line in backend.explain().splitlines()))
    print("\nattention (bf16, heads of 64)")
    for device in devices:
        for padded in (False, True):
            request = AttentionRequest(device, torch.bfloat16, 64, padded)
            for name, (usable, reason) in availability(request).items():
                verdict = "yes" if usable else "no"
                kind = "padded" if padded else "dense"
                print(f"  {device!s:8} {kind:7} {name:12} {verdict:4} {reason}".rstrip())
