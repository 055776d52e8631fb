"""Licences and known vulnerabilities of the packages that CI installs, from an offline list.

A new package in constraints.txt needs a row in dependencies.json; check its licence. The
vulnerabilities are those that were public when the list was last edited (2026-11-29).
"""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LISTED = json.loads(Path(__file__).with_name("dependencies.json").read_text())
# Copyleft licences that extend to linking programs, and licences that grant no use.
REFUSED = ("AGPL", "GPL", "SSPL", "BUSL", "CC-BY-NC", "Proprietary", "?")


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def stated_licence(package: str) -> str | None:
    try:
        found = metadata.distribution(package).metadata
    except metadata.PackageNotFoundError:
        return None
    if found.get("License-Expression"):
        return found["License-Expression"]
    rows = [row for row in found.get_all("Classifier") or [] if row.startswith("License")]
    stated = " / ".join(row.split("::")[-1].strip() for row in rows)
    return stated or (found.get("License") or "?").splitlines()[0]


def vulnerable(package: str, version: str) -> list[str]:
    name, release = canonicalize_name(package), Version(Version(version).base_version)
    return [
        f"{package} {version}: {row['id']}, {row['what']}"
        for row in LISTED["known_vulnerabilities"]
        if canonicalize_name(row["package"]) == name and release in SpecifierSet(row["versions"])
    ]


def test_every_pinned_package_has_a_checked_licence():
    assert set(LISTED["licences"]) == set(pinned())
    for package, licence in LISTED["licences"].items():
        assert licence in LISTED["allowed_licences"], package
        assert not any(licence.startswith(word) for word in REFUSED), (package, licence)


def test_installed_packages_state_the_listed_licence():
    differing = {
        package: (stated, LISTED["licences"][package])
        for package, version in pinned().items()
        if (stated := stated_licence(package)) is not None
        and metadata.version(package).split("+")[0] == version
        and stated != LISTED["licences"][package]
    }
    assert not differing


def test_no_pinned_version_is_known_to_be_vulnerable():
    rows = [row for package, version in pinned().items() for row in vulnerable(package, version)]
    assert not rows


def test_the_check_finds_a_vulnerable_version():
    assert vulnerable("Torch", "2.9.1") == [
        "Torch 2.9.1: CVE-2026-24747, torch.load(weights_only=True) could execute code"
    ]
    assert vulnerable("PILLOW", "10.1.0")
    assert not vulnerable("torch", "2.13.0")


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_untested_versions_are_not_installed(package):
    """A fresh install resolved to torch 2.14.1 and Triton 3.8.0, which were untested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    (found,) = [row for row in requirements if row.name == package]
    newer = {"torch": "2.14.1", "triton": "3.8.0"}[package]
    assert newer not in found.specifier
    assert pinned()[package] in found.specifier
