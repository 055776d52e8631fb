"""`svilm doctor`: prints what is installed, and checks for known and actual problems."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from svilm_fast.core.terminal import print
from svilm_fast.core.units import bytes_text
from svilm_fast.kernels import backend
from svilm_fast.models.attention import AttentionRequest, availability
from svilm_fast.train.environment import free_port, package_versions

SELF_CHECK_SECONDS = 120
LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class KnownWrong:
    """Versions of a package with a known problem, the reason, and the fix."""

    package: str
    versions: str
    reason: str
    fix: str


KNOWN_WRONG = (
    KnownWrong(
        "av",
        ">=14.0.1,<14.3",
        "its FFmpeg 7.1.0 can hang while it decodes HEVC",
        "pip install 'av>=15'",
    ),
    KnownWrong(
        "deepspeed",
        ">=0.17.6,<=0.18.2",
        "gradients under ZeRO 2 are wrong (deepspeed issue 7718)",
        "pip install 'deepspeed>=0.19.8,<0.20'",
    ),
    KnownWrong(
        "torch",
        "<2.10",
        "a crafted file can execute code through torch.load(weights_only=True) (CVE-2026-24747)",
        "pip install 'torch>=2.11,<2.14'",
    ),
    KnownWrong(
        "torch", ">=2.14", "this package is not tested with it", "pip install 'torch>=2.11,<2.14'"
    ),
    KnownWrong(
        "triton",
        ">=3.8",
        "the kernels are not tested with it",
        "pip install 'triton>=3.6,<3.8'",
    ),
)


def known_problems(versions: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each installed version (by package) with a known problem."""
    for known in KNOWN_WRONG:
        installed = versions.get(known.package, "not installed")
        if installed == "not installed":
            continue
        # Builds such as 2.13.0+cu130 and pre-releases count as their version.
        release = Version(Version(installed).base_version)
        if release in SpecifierSet(known.versions):
            yield f"{known.package} {installed}: {known.reason}; {known.fix}"


def unmet_requirements(versions: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each installed version (by package) outside this package's requirements.

    The requirements are those of the metadata of the installed `svilm-fast`. Extras count where
    their package is installed.
    """
    try:
        lines = metadata.requires("svilm-fast") or []
    except metadata.PackageNotFoundError:
        yield "svilm-fast has no package metadata, so that versions are not checked; pip install it"
        return
    for requirement in map(Requirement, lines):
        installed = versions.get(requirement.name, "not installed")
        if installed == "not installed" or not requirement.specifier:
            continue
        release = Version(Version(installed).base_version)
        if release not in requirement.specifier:
            wanted = f"{requirement.name}{requirement.specifier}"
            yield (
                f"{requirement.name} {installed} is installed and svilm-fast needs {wanted}; "
                f"pip install '{wanted}'"
            )


def kernel_problems() -> tuple[list[str], list[str]]:
    """Compare every op with its oracle; returns lines for all ops, and the problems.

    Without a GPU the kernels run in Triton's interpreter. It must be selected before Triton is
    imported, so the check runs in a child process.
    """
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "svilm_fast.kernels.self_check"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SELF_CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], [f"the ops did not finish their check within {SELF_CHECK_SECONDS} s"]
    try:
        results = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [], [f"the check of the ops ended with code {done.returncode}: {last}"]
    lines = [
        f"{name:14} {'right' if found['error'] <= found['bar'] else 'WRONG':6} "
        f"relative error {found['error']:.1e} (bar {found['bar']:.0e}), {found['where']}"
        for name, found in results.items()
    ]
    wrong = [
        f"{name} differs from its float64 oracle by {found['error']:.1e} on {found['where']}; set "
        "SVILM_KERNELS=reference until this is understood, and report it"
        for name, found in results.items()
        if not found["error"] <= found["bar"]
    ]
    return lines, wrong


def disk_problems(folder: Path) -> tuple[str, list[str]]:
    """Write a temporary file in `folder`, and check the free space; returns a line and problems."""
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return "", [f"{folder} cannot be written to ({error.strerror}); choose another run.dir"]
    line = f"{folder}: {bytes_text(free)} free"
    if free < LEAST_FREE_BYTES:
        return line, [f"{line}, and one checkpoint of the tiny model alone needs 50 MB; free some"]
    return line, []


def group_problems() -> tuple[str, list[str]]:
    """Reduce a tensor in a process group of one rank over TCP; returns a line and problems."""
    if dist.is_initialized():
        return "not checked: this process already has a process group", []
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{free_port()}",
            rank=0,
            world_size=1,
            timeout=timedelta(seconds=20),
        )
        total = torch.ones(3)
        dist.all_reduce(total)
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        return "", [f"no process group over 127.0.0.1 ({first}); check GLOO_SOCKET_IFNAME"]
    return "gloo over 127.0.0.1 works", []


def doctor() -> None:
    """Check versions, kernels against their oracles, attention, disk and process group.

    Exits with 1 if there is a problem; each line gives the reason and the fix.
    """
    versions = package_versions()
    print("packages")
    for name, version in versions.items():
        print(f"  {name:12} {version}")
    problems = [*known_problems(versions)]
    named = {line.partition(" ")[0] for line in problems}
    problems += [
        line for line in unmet_requirements(versions) if line.partition(" ")[0] not in named
    ]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    print("\ndevices")
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"  {device!s:12} {name}")
    print("\nkernels")
    print("\n".join(f"  {line}" for line in backend.explain().splitlines()))
    print("\nkernels against their float64 oracles")
    lines, wrong = kernel_problems()
    print("\n".join(f"  {line}" for line in lines))
    problems += wrong
    print("\nattention (bf16, heads of 64)")
    for device in devices:
        for padded in (False, True):
            request = AttentionRequest(device, torch.bfloat16, 64, padded)
            for name, (usable, reason) in availability(request).items():
                answer = "yes" if usable else "no"
                kind = "padded" if padded else "dense"
                print(f"  {device!s:8} {kind:7} {name:12} {answer:4} {reason}".rstrip())
    print("\ndisk and process group")
    for line, wrong in (disk_problems(Path.cwd()), group_problems()):
        problems += wrong
        if line:
            print(f"  {line}")
    if problems:
        print(f"\n{len(problems)} to fix")
        print("\n".join(f"  {problem}" for problem in problems))
        raise typer.Exit(1)
    print("\nno known problem found")
