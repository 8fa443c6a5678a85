"""The README says what is true: its example runs, its commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mdlm_fast.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("sudoku 1 0 3 4 0 4 1 2 2 1 0 3 4 0 2 0 : ")
    assert lines[2].startswith("24 forward passes, ")


BLOCKS = "\n".join(re.findall(r"```\n(.*?)```", README, flags=re.DOTALL))


@pytest.mark.parametrize("command", re.findall(r"^mdlm-fast (.*?)(?: +#.*)?$", BLOCKS, flags=re.MULTILINE))
def test_commands_exist_and_their_options_are_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    assert main([words[0], "--help"]) == 0
    text = capsys.readouterr().out
    for word in words[1:]:
        assert not word.startswith("--") or word in text


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)\b", README + (ROOT / ".ci" / "run").read_text())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"\]\((?!http)([^)#]+)\)", text))
    named |= set(re.findall(r"\b((?:tests|bench|docs|csrc|kernels|mdlm_fast)/[\w./*]+)", text))
    for name in named:
        base = document.parent if f"]({name})" in text else ROOT
        assert list(base.glob(name.rstrip("./"))), f"{document.name} names {name}, which does not exist"
