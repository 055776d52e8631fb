"""The package imports the same from a checkout, an editable install and a wheel."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.data.world.video import encode_mp4
from tests.untrained_run import make_untrained_run

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import svilm_fast, svilm_fast.kernels, svilm_fast.train, svilm_fast.bench
from svilm_fast.kernels.registry import ops
names = list(ops())
assert sorted(names) == ["grounding", "grouping", "infonce", "segment_pool", "temporal"], names
print(svilm_fast.__file__)
"""
USE = """
import sys
from svilm_fast.cli import main
try:
    main(["export", "--run", "run", "--out", "model"])
except SystemExit as end:
    assert not end.code, end.code
import svilm_fast
model = svilm_fast.load_pretrained("model")
videos = model.embed_video("videos/clip.mp4")
assert (videos @ model.embed_text("a red circle").T).shape == (1, 1)
try:
    main(["search", "a red circle", "--videos", "videos", "--model", "model", "--index", "index",
          "--html", "found.html", "--overlay", "found.mp4", "--device", "cpu"])
except SystemExit as end:
    assert not end.code, end.code
print(svilm_fast.__file__)
"""


def _run(python: Path | str, folder: Path, code: str = CHECK, **extra: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | extra
    result = subprocess.run(
        [str(python), "-c", code],
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's files in a folder, and their names."""
    tmp_path = tmp_path_factory.mktemp("wheel")
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
    file = next(tmp_path.glob("*.whl"))
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(unpacked)
        names = set(archive.namelist())
    return unpacked, names


def test_wheel(bare_python, wheel, tmp_path):
    unpacked, names = wheel
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"svilm_fast"}
    assert "svilm_fast/configs/demo.yaml" in names
    assert str(unpacked) in _run(bare_python[0], tmp_path, PYTHONPATH=str(unpacked))
    assert str(unpacked) in _run(bare_python[0], unpacked)


@pytest.mark.slow
def test_a_model_is_exported_loaded_and_searched_with_from_the_wheel(bare_python, wheel, tmp_path):
    unpacked, _ = wheel
    make_untrained_run(tmp_path / "run")
    (tmp_path / "videos").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "videos" / "clip.mp4").write_bytes(encode_mp4(frames, 8.0))
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    used = _run(bare_python[0], tmp_path, USE, PYTHONPATH=str(unpacked))
    assert used.endswith(str(unpacked / "svilm_fast" / "__init__.py"))
    assert "skipped broken.mp4" in used
    assert (tmp_path / "found.html").is_file()
    assert (tmp_path / "found.mp4").is_file()
