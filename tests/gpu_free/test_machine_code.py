"""The machine code of every GPU kernel, compiled ahead of time: it is what the table says, and it passes the gates."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest
from gpu_free.machine_code import markdown, table, tools, triton_kernels
from gpu_free.machine_code.gates import find_faults

UPDATE = "after a change that is meant: PYTHONPATH=tests python -m gpu_free.machine_code.update"
# The other architectures take as long again each.
CASES = [
    pytest.param(language, arch, marks=[] if arch == "90a" else pytest.mark.slow)
    for language in table.LANGUAGES
    for arch in table.ARCHS
]


@pytest.mark.parametrize("language", table.LANGUAGES)
@pytest.mark.parametrize("arch", table.ARCHS)
def test_the_table_passes_the_gates(language: str, arch: str) -> None:
    assert find_faults(language, arch, table.load().rows[language][arch]) == []


@pytest.mark.parametrize(("language", "arch"), CASES)
def test_kernels_compile_to_what_the_table_says(language: str, arch: str) -> None:
    if find_spec("triton") is None or shutil.which("c++filt") is None:
        pytest.skip("needs Triton, which brings NVIDIA's disassembler, and c++filt")
    if language == "CUDA" and tools.find("nvcc") is None:
        pytest.skip("needs nvcc")
    compiled = table.compile_rows(language, arch)
    assert find_faults(language, arch, compiled) == []
    stored = table.load()
    versions = table.tool_versions(language)
    if versions != stored.versions[language]:
        pytest.skip(f"gates passed, numbers not compared: the table is of {stored.versions[language]}, here {versions}")
    expected = stored.rows[language][arch]
    assert compiled.keys() == expected.keys(), UPDATE
    changed = [f"{name}: {expected[name]} became {row}" for name, row in compiled.items() if row != expected[name]]
    assert not changed, "\n".join([UPDATE, *changed])


def test_every_triton_kernel_that_is_launched_is_in_the_table() -> None:
    for arch, rows in table.load().rows["Triton"].items():
        assert {name.split(":")[0] for name in rows} == triton_kernels.launched_functions(), arch


def test_the_page_is_the_tables() -> None:
    assert markdown.PATH.read_text() == markdown.render(table.load()), UPDATE
