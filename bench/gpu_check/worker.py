"""Runs the items of a stage in a process of its own and reports each as a line of JSON.

A kernel that reads outside its buffers takes the whole CUDA context with it, and one that waits for what never comes
takes the process; then the parent starts another worker behind the item at fault. See `supervise`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.gpu_check.settings import Settings, prepare_process

LOST_CONTEXT = 3  # exit status


@dataclass(frozen=True)
class Item:
    """One piece of work: `run` returns what goes into the results."""

    name: str
    run: Callable[[], dict[str, Any]]


def able(settings: Settings, op: str) -> list[str]:
    """Those of the backends that have an op on the device."""
    import torch

    from mdlm_fast.ops import available_backends

    return [b for b in settings.backends if b in available_backends(op, settings.device, torch.bfloat16)]


def stage_items(stage: str, settings: Settings) -> Iterator[Item]:
    """The items of a stage, from its module: a name in this package, or with dots anywhere."""
    yield from importlib.import_module(stage if "." in stage else f"bench.gpu_check.{stage}").items(settings)


def run_items(stage: str, settings: Settings, emit: Callable[[dict[str, Any]], None]) -> bool:
    """Run what is not done yet; False if the device was lost."""
    end = time.monotonic() + settings.seconds
    left_out = 0
    for item in stage_items(stage, settings):
        if item.name in settings.done:
            continue
        if time.monotonic() > end:
            left_out += 1
            continue
        emit({"begin": item.name})
        try:
            emit({"end": item.name, "result": item.run()})
        except Exception as error:
            emit({"end": item.name, "error": describe(error)})
        if not device_alive(settings):
            return False
    if left_out:
        emit({"left_out": left_out})
    return True


def describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def device_alive(settings: Settings) -> bool:
    if settings.device == "cpu":
        return True
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the next item may need most of the memory
    except RuntimeError:
        return False
    return True


def end_with_parent() -> None:
    """A thread that ends this process when its parent is gone: a hung kernel would hold the device."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    end_with_parent()
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print goes to the log

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=lines, flush=True)

    stage, settings = sys.argv[1], Settings.loads(sys.argv[2])
    prepare_process()
    alive = run_items(stage, settings, emit)
    lines.close()
    if not alive:  # without the interpreter's shutdown: destructors on a lost context may hang or abort
        os._exit(LOST_CONTEXT)


if __name__ == "__main__":
    main()
