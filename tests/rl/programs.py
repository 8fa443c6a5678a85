"""Runs a helper program once, however many test processes want its results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock


def run_once(factory: pytest.TempPathFactory, program: str, *arguments: str) -> Path:
    """The folder that ``program folder *arguments`` filled; one of the files beside this one."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of all workers
    folder = root / "-".join([Path(program).stem, *arguments]).replace(":", "-")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            run = subprocess.run(
                [sys.executable, Path(__file__).with_name(program), folder, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            (folder / "error.txt").write_text(run.stderr[-5000:] if run.returncode else "")
    error = (folder / "error.txt").read_text()
    assert not error, error
    return folder
