"""Which checkpoints are whole: a manifest, written last, names every file of one with its size and checksum.

A folder without a manifest, or with a file that does not match it, was torn: by a crash or a full disk while it was
written, or by a crash while it was deleted, for the manifest is the first thing to go.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mdlm_fast.files import whole_file

MANIFEST = "whole.json"
#: Larger files are checked by size alone: reading many gigabytes back would hold up training.
HASHED_BYTES = 64 * 2**20


def write_manifest(folder: Path) -> None:
    """Declares a checkpoint whole, once every file of it is on disk.

    Raises:
        OSError: the disk is full."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _to_disk(path)
        files[path.relative_to(folder).as_posix()] = _fingerprint(path)
    with whole_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(files, indent=1), encoding="utf-8")
        _to_disk(temporary)
    _to_disk(folder)
    _to_disk(folder.parent)


def why_torn(folder: Path) -> str | None:
    """None for a whole checkpoint, else what is wrong with it."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _fingerprint(path) != expected:
            return f"{name} is not what was written"
    return None


def last_whole_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the most steps that is whole; torn ones above it are named in a warning."""
    for folder in reversed(_checkpoints(Path(output_dir))):
        reason = why_torn(folder)
        if reason is None:
            return folder
        warnings.warn(f"checkpoint {folder} is torn and not used: {reason}", RuntimeWarning, stacklevel=2)
    return None


def delete_old_checkpoints(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Leaves the `limit` checkpoints written last, the best one (of `load_best_model_at_end`) among them, if there is
    one, and none that is torn. limit: None or 0: nothing is deleted."""
    if not limit:
        return
    folders = _checkpoints(output_dir)
    whole = [folder for folder in folders if (folder / MANIFEST).is_file()]
    whole.sort(key=lambda folder: (folder / MANIFEST).stat().st_mtime_ns)
    protected = whole[-1:] + [folder for folder in whole[:-1] if best is not None and folder == Path(best)]
    others = [folder for folder in whole if folder not in protected]
    kept = protected + others[len(others) - max(limit - len(protected), 0) :]
    for folder in folders:
        if folder not in kept:
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Folders named like checkpoints, by their number of steps."""
    start = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [path for path in output_dir.glob(f"{start}*") if path.is_dir() and path.name[len(start) :].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[len(start) :]))


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > HASHED_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
