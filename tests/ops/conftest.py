"""Every op test runs on each backend that is there.

Where MDLM_FAST_SHIM_LIBRARY names a library built by tests/gpu_free/build_shim.py, the CUDA kernels on the CPU are one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gpu_free.shim_library import register_from_environment

from mdlm_fast import ops

register_from_environment()


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.use_backend(request.param):
        yield request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("ops")
    if "backend" in metafunc.fixturenames:
        assert marker is not None, "name the ops a test with the backend fixture needs: @pytest.mark.ops(...)"
        names = [name for name in ops.available_backends(marker.args[0]) if all(_has(name, op) for op in marker.args)]
        metafunc.parametrize("backend", names, indirect=True)


def _has(backend: str, op: str) -> bool:
    return backend in ops.available_backends(op)
