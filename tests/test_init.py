"""The package root: lazy, complete, and cheap to import."""

import subprocess
import sys

import pytest

import mdlm_fast


def modules_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_import_of_the_root_imports_nothing_else() -> None:
    loaded = modules_after("import mdlm_fast")
    assert not loaded & {"torch", "transformers", "numpy", "rich", "typer", "matplotlib"}


def test_ops_need_torch_alone() -> None:
    program = (
        "sys.modules.update(dict.fromkeys(('transformers', 'rich', 'typer', 'matplotlib', 'safetensors', 'triton')))\n"
        "import torch, mdlm_fast.ops\n"
        "assert mdlm_fast.ops.score_rows(torch.tensor([[0.0, 1.0]])).token.tolist() == [1]"
    )
    assert "mdlm_fast.ops" in modules_after(f"exec({program!r})")


def test_every_exported_name_resolves_and_is_listed() -> None:
    for name in mdlm_fast.__all__:
        assert getattr(mdlm_fast, name) is not None
        assert name in dir(mdlm_fast)
    assert mdlm_fast.use_backend is mdlm_fast.ops.use_backend


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mdlm_fast.nothing  # noqa: B018
