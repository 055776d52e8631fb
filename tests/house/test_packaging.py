"""The package imports the same from a checkout, an editable install and a wheel."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import svilm_fast, svilm_fast.kernels, svilm_fast.train, svilm_fast.bench
from svilm_fast.kernels.registry import ops
names = list(ops())
assert sorted(names) == ["grounding", "grouping", "infonce", "segment_pool", "temporal"], names
print(svilm_fast.__file__)
"""


def _run(python: Path | str, folder: Path, **extra: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | extra
    result = subprocess.run(
        [str(python), "-c", CHECK],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_editable_install_from_outside_the_clone(tmp_path):
    assert str(ROOT) in _run(sys.executable, tmp_path)


def test_editable_install_from_inside_the_clone():
    assert str(ROOT) in _run(sys.executable, ROOT)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with this environment's libraries, but without this project's installation."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    bare = folder / "bin" / "python"
    packages = next((folder / "lib").glob("python*/site-packages"))
    here = Path(next(p for p in sys.path if p.endswith("site-packages")))
    for entry in here.iterdir():
        if "svilm" not in entry.name and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    return bare, packages


def test_uninstalled_checkout(bare_python):
    assert str(ROOT) in _run(bare_python[0], ROOT)


def test_wheel(bare_python, tmp_path):
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        origin, copy = ROOT / name, source / name
        if not origin.is_symlink() and not origin.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            copy.symlink_to(os.readlink(origin))
        else:
            copy.write_bytes(origin.read_bytes())
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        names = set(archive.namelist())
        bare, _ = bare_python
        unpacked = tmp_path / "site"
        for name in names:
            target = unpacked / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    assert {name for name in top if not name.endswith(".dist-info")} == {"svilm_fast"}
    assert "svilm_fast/configs/demo.yaml" in names
    assert str(unpacked) in _run(bare, tmp_path, PYTHONPATH=str(unpacked))
    assert str(unpacked) in _run(bare, unpacked)
