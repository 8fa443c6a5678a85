"""Training checkpoints: written to a temporary name, renamed, and verified by their SHA-256 when read."""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"mdlm-fast-pretrain-1\n"
_NAME = re.compile(r"checkpoint-(\d+)\.bin")


class CorruptCheckpointError(ValueError):
    """A checkpoint file is cut short or altered."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Writes ``checkpoint-<step>.bin`` atomically and deletes all but the newest ``keep`` checkpoints."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    path = folder / f"checkpoint-{step}.bin"
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in list_checkpoints(folder)[keep:]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads one checkpoint.

    Raises:
        CorruptCheckpointError: the file is not a whole, unaltered checkpoint.
    """
    data = path.read_bytes()
    start = len(_MAGIC) + 32
    digest, payload = data[len(_MAGIC) : start], data[start:]
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(payload).digest() != digest:
        raise CorruptCheckpointError(f"checkpoint {path} is corrupt ({len(data)} bytes, checksum differs); delete it")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
    return state


def load_newest(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest sound checkpoint and the messages about corrupt newer ones; None for a folder without checkpoints.

    Raises:
        CorruptCheckpointError: there are checkpoints and none is sound.
    """
    problems: list[str] = []
    for path in list_checkpoints(folder):
        try:
            return load_checkpoint(path), problems
        except CorruptCheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CorruptCheckpointError("no sound checkpoint to resume from: " + "; ".join(problems))
    return None
