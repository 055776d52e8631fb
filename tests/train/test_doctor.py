"""The doctor names what is wrong, why, and what helps; it ends with 1 then."""

import subprocess
import sys

import pytest

from svilm_fast.cli import app
from svilm_fast.train import doctor as module
from svilm_fast.train.run_app import run_app


@pytest.mark.parametrize(
    ("package", "version", "wrong"),
    [
        ("av", "14.0.0", False),
        ("av", "14.0.1", True),
        ("av", "14.2.0", True),
        ("av", "15.0.0", False),
        ("deepspeed", "0.17.5", False),
        ("deepspeed", "0.17.6", True),
        ("deepspeed", "0.18.2", True),
        ("deepspeed", "0.18.3", False),
        ("torch", "2.13.0+cpu", False),
        ("torch", "2.14.1", True),
        ("torch", "2.9.1", True),
        ("triton", "3.7.1", False),
        ("triton", "3.8.0", True),
        ("triton", "not installed", False),
    ],
)
def test_versions_that_are_known_to_be_wrong(package, version, wrong):
    found = list(module.known_problems({package: version}))
    assert len(found) == wrong
    if wrong:
        assert found[0].startswith(f"{package} {version}: ")
        assert "; pip install '" in found[0]


def test_a_wrong_op_is_named_with_what_to_do(monkeypatch):
    reply = '{"infonce": {"error": 0.5, "bar": 1e-4, "where": "the GPU"}}'
    real = subprocess.run

    def pretend(command, **options):
        return real([sys.executable, "-c", f"print({reply!r})"], **options)

    monkeypatch.setattr(module.subprocess, "run", pretend)
    lines, wrong = module.kernel_problems()
    assert "WRONG" in lines[0]
    assert "infonce differs from its float64 oracle by 5.0e-01" in wrong[0]
    assert "SVILM_KERNELS=reference" in wrong[0]


def test_a_crash_of_the_check_is_a_problem(monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(
        module.subprocess,
        "run",
        lambda command, **options: real([sys.executable, "-c", "raise SystemExit(3)"], **options),
    )
    assert "ended with code 3" in module.kernel_problems()[1][0]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    assert module.disk_problems(tmp_path)[0].endswith("iB free")
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in module.disk_problems(tmp_path / "file")[1][0]


def test_a_problem_ends_with_1(monkeypatch, capsys):
    monkeypatch.setattr(module, "package_versions", lambda: {"av": "14.1.0"})
    monkeypatch.setattr(module, "kernel_problems", lambda: ([], []))
    monkeypatch.setattr(module, "group_problems", lambda: ("", []))
    assert run_app(app, ["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "1 to fix" in shown
    assert "av 14.1.0: its FFmpeg 7.1.0 can hang" in shown


@pytest.mark.parametrize(
    ("package", "version", "wrong"),
    [
        ("av", "14.4.0", True),
        ("av", "17.1.0", False),
        ("deepspeed", "0.18.2", True),
        ("deepspeed", "0.19.7", True),
        ("deepspeed", "0.19.8", False),
        ("torch", "2.10.0+cu128", True),
        ("torch", "2.11.0+cpu", False),
        ("xformers", "not installed", False),
    ],
)
def test_versions_outside_the_requirements_of_the_package(package, version, wrong):
    found = list(module.unmet_requirements({package: version}))
    assert len(found) == wrong
    if wrong:
        assert found[0].startswith(f"{package} {version} is installed and svilm-fast needs ")
        assert f"; pip install '{package}" in found[0]
