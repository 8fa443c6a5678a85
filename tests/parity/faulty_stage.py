"""A stage of bench.gpu_check whose items go wrong in every way that a worker must survive."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from bench.gpu_check.settings import Settings
from bench.gpu_check.worker import Item


def refuse() -> dict[str, Any]:
    raise RuntimeError("refused\nsecond line")


def die() -> NoReturn:
    print("last words", flush=True)
    os._exit(9)


def hang() -> dict[str, Any]:
    time.sleep(60)
    return {}


def items(settings: Settings) -> Iterator[Item]:
    yield Item("first", lambda: {"value": 1})
    yield Item("raises", refuse)
    yield Item("dies", die)
    yield Item("between", lambda: {"value": 2})
    if settings.options.get("hang"):
        yield Item("hangs", hang)
    yield Item("last", lambda: {"value": 3})
