"""Choosing a backend, and what happens when one is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mdlm_fast import ops
from mdlm_fast.ops import _registry
from mdlm_fast.ops._library import LIBRARY, load_compiled_backends
from mdlm_fast.ops._schemas import SCHEMAS


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def test_a_choice_holds_until_it_is_undone() -> None:
    before = ops.current_backend()
    with ops.use_backend("reference"):
        assert ops.current_backend() == "reference"
        with ops.use_backend(None):
            assert ops.current_backend() is None
        assert ops.current_backend() == "reference"
    assert ops.current_backend() == before
    choice = ops.use_backend("reference")
    assert ops.current_backend() == "reference"
    with choice:
        pass
    assert ops.current_backend() == before


def test_a_choice_is_undone_after_an_error() -> None:
    before = ops.current_backend()
    with pytest.raises(KeyError), ops.use_backend("reference"):
        raise KeyError
    assert ops.current_backend() == before


def test_unknown_and_absent_backends() -> None:
    with pytest.raises(ValueError, match=r"name='cuda9' is unknown: choose one of cuda, cpp, triton, reference"):
        ops.use_backend("cuda9")
    _registry.register_backend(_registry.Backend("absent", missing="the moon is not full"))
    try:
        with pytest.raises(RuntimeError, match="'absent' is not there: the moon is not full"):
            ops.use_backend("absent")
    finally:
        del _registry._backends["absent"]


def test_a_backend_without_the_op_says_so() -> None:
    if "cpp" not in ops.available_backends("score_rows"):
        return
    with ops.use_backend("cpp"), pytest.raises(RuntimeError, match="'cpp' has no score_rows for torch\\.float64"):
        ops.score_rows(torch.zeros(2, 3, dtype=torch.float64))
    with ops.use_backend(None):  # the automatic choice, whatever the environment asks for: the reference
        assert ops.score_rows(torch.zeros(2, 3, dtype=torch.float64)).token.tolist() == [0, 0]


def test_report() -> None:
    report = {entry["name"]: entry for entry in ops.backend_report()}
    reference = report["reference"]
    assert reference["available"] and reference["reason"] is None and reference["ops"] == sorted(SCHEMAS)
    assert report["cpp"]["available"] == (report["cpp"]["reason"] is None)
    with ops.use_backend("reference"):
        assert [entry["name"] for entry in ops.backend_report() if entry["chosen"]] == ["reference"]


def test_a_missing_or_broken_library_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDLM_FAST_BACKEND", raising=False)
    with pytest.warns(RuntimeWarning, match="does not exist") as caught:
        backend, _ = load_compiled_backends(tmp_path / "_C.abi3.so")
    assert len(caught) == 1 and backend.missing is not None and not backend.ops
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.warns(RuntimeWarning, match=r"broken.so does not load .*build it again"):
        assert load_compiled_backends(broken)[0].missing is not None
    monkeypatch.setenv("MDLM_FAST_BACKEND", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_compiled_backends(broken)[0].missing is not None


def test_the_library_that_is_there_loads_quietly() -> None:
    if not LIBRARY.exists():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_compiled_backends()[0].missing is None


def test_environment_variable() -> None:
    code = "from mdlm_fast import ops; print(ops.current_backend())"
    assert python(code, MDLM_FAST_BACKEND="reference").stdout.strip() == "reference"
    failed = python(code, MDLM_FAST_BACKEND="abacus")
    assert failed.returncode != 0
    assert "MDLM_FAST_BACKEND=abacus: backend name='abacus' is unknown" in failed.stderr


def test_ops_need_torch_alone() -> None:
    """No other package of the environment is imported."""
    code = (
        "import sys; import torch; before = set(sys.modules); import mdlm_fast.ops; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new & {'transformers', 'numpy', 'rich', 'typer', 'safetensors', 'accelerate', 'matplotlib'} "
        "- {m.split('.')[0] for m in before}))"
    )
    assert python(code).stdout.strip() == "[]"
