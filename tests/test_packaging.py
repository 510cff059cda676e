"""What is published: a wheel and an sdist that work without the source tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("launch", "rl", "posttrain", "generative")
IGNORED = shutil.ignore_patterns(
    ".*", "__pycache__", "runs", "dist", "build", "*.egg-info", "shared"
)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, in a copy of the tree: nothing is left behind."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=IGNORED)
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder / "dist",
        "tree",
        cwd=folder,
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that borrows this one's dependencies, not its monro."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    wheel = next(dist.glob("*.whl"))
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--quiet", wheel, cwd=folder,
    )  # fmt: skip
    # A .pth line adds the folder at the end of the path and, unlike site.addsitedir, reads no .pth
    # files in it: the editable install of the source tree stays out of sight.
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    )
    (site / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    return folder


@pytest.mark.slow
def test_wheel_has_the_packages_their_types_and_nothing_else(dist: Path) -> None:
    names = zipfile.ZipFile(next(dist.glob("*.whl"))).namelist()
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
        found = (ROOT / package).rglob("*.*")
        files = [path for path in found if "__pycache__" not in path.parts]
        files += [path for path in (ROOT / package / "configs").rglob("*") if path.is_file()]
        assert {str(path.relative_to(ROOT)) for path in files} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_sdist_can_be_tested_and_cited(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile"}
    wanted |= {"constraints.txt", "tests/test_packaging.py", "docs/papers.md", "rl/py.typed"}
    wanted |= {"mkdocs.yml"}
    assert wanted <= names


@pytest.mark.slow
def test_installed_wheel_lists_its_recipes_far_from_the_source_tree(
    installed: Path, tmp_path: Path
) -> None:
    env = installed / "env" / "bin"
    where = run(env / "python", "-c", "import launch; print(launch.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    listed = run(env / "monro", "list", cwd=tmp_path)
    recipes = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    for recipe in recipes["monro.recipes"]:
        assert recipe in listed
    assert run(env / "python", "-m", "launch", "list", cwd=tmp_path) == listed
    assert list(tmp_path.iterdir()) == []
