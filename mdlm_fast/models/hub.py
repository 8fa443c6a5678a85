"""Checkpoints from the Hugging Face hub, with one clear error when that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name."""
    return _HUB_ID.match(name) is not None and not name.endswith((".safetensors", ".bin", ".json"))


def download(name: str) -> Path:
    """The local snapshot of a hub repository: small files and safetensors, pickled weights only if there are no others.

    Raises:
        FileNotFoundError: no such repository, or no access to it.
        ConnectionError: the hub cannot be reached and the repository is not in the local cache.
    """
    with _one_error(name):
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.bin"]))
    return folder


def download_config(name: str) -> Path:
    """The local snapshot of a hub repository with its config.json at least; raises as `download` does."""
    with _one_error(name):
        return Path(snapshot_download(name, allow_patterns=["config.json"]))


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise FileNotFoundError(f"{name!r} is gated on the hub; accept its terms and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{name!r} is neither a local folder nor a repository on the hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(
            f"{name!r} is not a local folder, and the Hugging Face hub could not deliver it ({reason})"
        ) from error
