"""Compilers without the target pragma (Clang) or the tile registers (GCC 10): the kernels that are left still build."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
UNITS = ("instruction_set", "linear_gemm", "linear_gemm_amx", "linear_gemm_bfloat16", "linear_gemm_float32")
COMPILER = shlex.split(os.environ.get("CXX", "c++"))

# What this build would run with, and whether it has a matrix product for float32 and for bfloat16.
PROGRAM = """
#include <cstdio>
#include "cpu/instruction_set.h"
#include "cpu/linear_gemm.h"
using namespace mdlm_fast::cpu;
int main() {
  std::printf("%s %d %d", name(instruction_set()), gemm_kernels(DType::kFloat32) != nullptr,
              gemm_kernels(DType::kBFloat16) != nullptr);
}
"""


def build(folder: Path, *pretend: str) -> Path:
    (folder / "main.cpp").write_text(PROGRAM)
    units = [str(CSRC / "cpu" / f"{unit}.cpp") for unit in UNITS]
    command = [*COMPILER, "-w", "-std=c++20", *pretend, f"-I{CSRC}", "main.cpp", *units, "-o", "program"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "program"


def run(program: Path, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MDLM_FAST_CPU_ISA": isa}
    return subprocess.run([str(program)], env=environment, capture_output=True, text=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only the portable kernels are there on other processors")
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("pretend", "lacking"),
    ((("-U__GNUC__", "-D__GNUC__=10"), ("amx",)), (("-D__clang__",), ("amx", "avx512", "avx2"))),
    ids=("GCC 10", "Clang"),
)
def test_what_the_compiler_does_not_know_is_left_out(
    tmp_path: Path, pretend: tuple[str, ...], lacking: tuple[str, ...]
) -> None:
    program = build(tmp_path, *pretend)
    best = run(program, "")
    assert best.returncode == 0, best.stderr
    isa, float32, bfloat16 = best.stdout.split()
    assert isa not in lacking
    if isa == "portable":
        assert (float32, bfloat16) == ("0", "0")
    for isa in lacking:
        refused = run(program, isa)
        assert refused.returncode != 0
        assert f"MDLM_FAST_CPU_ISA={isa}" in refused.stderr and "compiler that built this" in refused.stderr
