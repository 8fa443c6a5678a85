"""What all tests of the trainers share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def imports_out_of_garbage_collection() -> Iterator[None]:
    """Every `train()` collects garbage, which takes half a second over all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
