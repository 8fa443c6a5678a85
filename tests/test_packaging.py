"""What installs where: the Triton folder, type information, the extension with and without compilers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis"
)
# Stands in for the PyPI package that transformers looks for.
STAND_IN_VERSION = "0.18.2"

LOOK = """
import importlib.util, json, mdlm_fast, mdlm_fast.kernels
found = importlib.util.find_spec("kernels")
print(json.dumps({
    "version": mdlm_fast.__version__,
    "package": mdlm_fast.__file__,
    "philox": importlib.util.find_spec("mdlm_fast.kernels.philox").origin,
    "top_level": found.origin if found else None,
}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MDLM_FAST_BUILD")}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def hook(source: Path, name: str, out: Path, **environment: str) -> Path:
    """Call one hook of the build backend, as pip does without isolation. Returns what it built."""
    out.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-c", f"from setuptools.build_meta import *; {name}({str(out)!r})", cwd=source, **environment)
    return next(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, without version control and without anything built."""
    target = tmp_path_factory.mktemp("checkout") / "mdlm-fast"
    shutil.copytree(ROOT, target, ignore=LEFT_OUT)
    return target


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hook(checkout, "build_wheel", tmp_path_factory.mktemp("wheel"), MDLM_FAST_BUILD="skip")


def environment_with(wheel: Path | None, folder: Path) -> Path:
    """A fresh virtual environment with nothing but `wheel`. Returns its interpreter."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    if wheel is not None:
        run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel, cwd=folder.parent)
    return python


def install_stand_in(python: Path) -> Path:
    """Put a regular package called `kernels` into an environment. Returns its file."""
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", query, cwd=python.parent).stdout.strip())
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text(f"__version__ = {STAND_IN_VERSION!r}\n")
    info = site / f"kernels-{STAND_IN_VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {STAND_IN_VERSION}\n")
    return site / "kernels" / "__init__.py"


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable", "bare checkout"])
def test_triton_folder_is_importable_and_never_shadows_the_pypi_package(
    kind: str, checkout: Path, wheel: Path, tmp_path: Path
) -> None:
    built: Path | None = None
    cwd = tmp_path
    if kind == "wheel":
        built = wheel
    elif kind == "sdist":
        archive = hook(checkout, "build_sdist", tmp_path / "sdist", MDLM_FAST_BUILD="skip")
        shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
        (unpacked,) = (tmp_path / "unpacked").iterdir()
        built = hook(unpacked, "build_wheel", tmp_path / "wheel", MDLM_FAST_BUILD="skip")
    elif kind == "editable":
        built = hook(checkout, "build_editable", tmp_path / "wheel", MDLM_FAST_BUILD="skip")
    else:
        cwd = checkout
    python = environment_with(built, tmp_path / "environment")

    def look(where: Path) -> dict[str, str]:
        return json.loads(run(python, "-c", LOOK, cwd=where).stdout)

    absent = look(cwd)
    home = checkout if kind in ("editable", "bare checkout") else tmp_path / "environment"
    assert Path(absent["package"]).is_relative_to(home)
    assert Path(absent["philox"]).is_relative_to(home)
    assert absent["top_level"] is None  # from the checkout's root a namespace folder, which has no origin
    stand_in = install_stand_in(python)
    for where in (cwd, checkout):
        present = look(where)
        assert present["top_level"] == str(stand_in)
        assert Path(present["philox"]).name == "philox.py"


def test_transformers_imports_from_the_root_of_the_checkout() -> None:
    run(sys.executable, "-c", "from transformers import LlamaForCausalLM", cwd=ROOT)


def test_wheel_carries_type_information_licence_weights_and_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).rsplit("/", 1)[0]
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert "mdlm_fast/py.typed" in names
    assert "mdlm_fast/kernels/philox.py" in names
    benchmarks = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "bench").rglob("*.*") if path.suffix in (".py", ".j2")
    }
    programs = ("bench/gpu_check/", "bench/learning/")
    assert {f"mdlm_fast/{name}" for name in benchmarks if not name.startswith(programs)} <= names
    assert not any(name.startswith(tuple(f"mdlm_fast/{program}" for program in programs)) for name in names)
    assert f"{info}/licenses/LICENSE" in names
    assert not any(name.startswith(("kernels/", "tests/", "csrc/")) for name in names)
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mdlm_fast").rglob("data/**/*") if path.is_file()}
    assert data <= names
    assert "mdlm-fast = mdlm_fast.cli:main" in scripts
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    for minor in (10, 11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in metadata


def test_benchmarks_run_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    command = (sys.executable, "-m", "mdlm_fast.cli")
    cell = ("--suite", "kernels", "--where", "op=remask_", "--where", "batch=1", "--seconds", "0")
    run(*command, "bench", *cell, "--output", "results.json", cwd=tmp_path, PYTHONPATH=str(target))
    written = run(*command, "report", "results.json", "--output", "page", cwd=tmp_path, PYTHONPATH=str(target)).stdout
    assert "page/index.html" in written.split()
    (measured,) = json.loads((tmp_path / "results.json").read_text())["runs"].values()
    assert measured["commit"].startswith("release ")


def test_building_never_asks_for_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    requires = next(line for line in text.splitlines() if line.startswith("requires = "))
    assert "torch" not in requires


def test_without_a_compiler_it_installs_on_the_reference_backend_and_says_so_once(
    checkout: Path, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout]
    result = run(*pip, cwd=tmp_path, CC="/bin/false", CXX="/bin/false")
    assert (result.stdout + result.stderr).count("installing without the compiled kernels") == 1
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, built, cwd=tmp_path)
    program = (
        "import torch, mdlm_fast\n"
        "scores = mdlm_fast.ops.score_rows(torch.tensor([[0.0, 2.0, 1.0]]))\n"
        "scores = mdlm_fast.ops.score_rows(torch.tensor([[0.0, 2.0, 1.0]]))\n"
        "print(mdlm_fast.__file__, int(scores.token[0]))"
    )
    result = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(target))
    assert result.stdout.split() == [str(target / "mdlm_fast" / "__init__.py"), "1"]
    assert result.stderr.count("RuntimeWarning") == 1


def with_small_sources(checkout: Path, target: Path) -> Path:
    """A copy of the tree whose native sources are replaced by a few lines, so that building takes seconds."""
    shutil.copytree(checkout, target)
    shutil.rmtree(target / "csrc")
    for folder in ("cpu", "bindings", "cuda"):
        (target / "csrc" / folder).mkdir(parents=True)
    export = 'extern "C" __attribute__((visibility("default"))) int {name}() {{ return 1; }}\n'
    (target / "csrc" / "cpu" / "small.cpp").write_text(export.format(name="from_cpu"))
    (target / "csrc" / "cuda" / "small.cu").write_text(
        "__global__ void kernel(int* out) { *out = 1; }\n"
        'extern "C" __attribute__((visibility("default"))) int from_cuda() '
        "{ kernel<<<1, 1>>>(nullptr); return 1; }\n"
    )
    return target


HAS_NVCC = shutil.which("nvcc") is not None


@pytest.mark.parametrize("cuda", [False, True] if HAS_NVCC else [False])
def test_extension_is_one_library_for_every_python(cuda: bool, checkout: Path, tmp_path: Path) -> None:
    source = with_small_sources(checkout, tmp_path / "source")
    environment = {"MDLM_FAST_BUILD": "require", "MDLM_FAST_CUDA_ARCHS": "80"}
    if not cuda:  # hide nvcc, keep the compiler
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in ("c++", "g++", "gcc", "cc", "ld", "as", "sh", "ninja"):
            if found := shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
                (tools / tool).symlink_to(found)
        environment |= {"PATH": str(tools), "CUDA_HOME": ""}
    built = hook(source, "build_wheel", tmp_path / "wheel", **environment)
    assert "-cp310-abi3-linux" in built.name
    with zipfile.ZipFile(built) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["mdlm_fast/_C.abi3.so"]
        symbols = archive.read("mdlm_fast/_C.abi3.so")
    assert b"from_cpu" in symbols
    assert (b"from_cuda" in symbols) == cuda


def test_broken_source_fails_the_build_instead_of_dropping_the_kernels(checkout: Path, tmp_path: Path) -> None:
    source = with_small_sources(checkout, tmp_path / "source")
    (source / "csrc" / "cpu" / "small.cpp").write_text("this is not C++\n")
    with pytest.raises(AssertionError, match="small"):
        hook(source, "build_wheel", tmp_path / "wheel", MDLM_FAST_BUILD="auto")
