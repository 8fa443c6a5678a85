"""Reading checkpoint folders: files, shards, and tensors put into a model one at a time under their native names."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 5


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; is it a model directory?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: safetensors before pickles, one file before shards.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
        ValueError: an index without `weight_map`.
    """
    for name in _SINGLE:
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ValueError(f"{index} has no weight_map")
            shards = [directory / shard for shard in sorted(set(weight_map.values()))]
            if lost := [shard.name for shard in shards if not shard.is_file()]:
                raise FileNotFoundError(f"{index} names {lost[0]}, which is not there ({len(lost)} shards missing)")
            return shards
    raise FileNotFoundError(f"{directory} holds no weights: neither {_SINGLE[0]} nor {_SINGLE[1]}, whole or sharded")


def weight_names(directory: Path) -> set[str]:
    """The keys of a checkpoint, without reading its tensors where the format allows."""
    names: set[str] = set()
    for path in weight_files(directory):
        if path.suffix == ".safetensors":
            with _open_safetensors(path) as file:
                names.update(file.keys())
        else:
            names.update(key for key, _ in read_tensors(path))
    return names


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each weight in one file; only one tensor at a time is in memory for safetensors.

    Raises:
        ValueError: the file is damaged, or a pickle that holds more than tensors.
    """
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, file.get_tensor(key)
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or holds more than tensors ({reason}); it was not loaded") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(state).__name__}")
    yield from state.items()


def check_safetensors(path: Path) -> None:
    """Raise ValueError if the file's header cannot be read or does not match its length."""
    with _open_safetensors(path):
        pass


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); copy or download it again") from error


def load_into(
    model: nn.Module,
    directory: Path,
    *,
    rename: Callable[[str], str | None],
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Fill a model built on the meta device, tensor by tensor, so that no second copy of the weights exists.

    Args:
        model: its parameters are replaced; buffers are left alone.
        directory: checkpoint folder.
        rename: checkpoint key to parameter name; None for a key to ignore.
        device: where the parameters go.
        dtype: of the floating-point parameters; None keeps the checkpoint's.

    Raises:
        ValueError: missing, unexpected or wrongly shaped weights, all named.
    """
    wanted = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()  # type: ignore[union-attr]
    found: set[str] = set()
    unexpected: list[str] = []
    misshaped: list[str] = []
    for path in weight_files(directory):
        for key, tensor in read_tensors(path):
            name = rename(key)
            if name is None or name in tied:
                continue
            if name not in wanted:
                unexpected.append(key)
                continue
            found.add(name)
            if tensor.shape != wanted[name]:
                misshaped.append(f"{key} is {tuple(tensor.shape)}, the config says {tuple(wanted[name])}")
            else:
                cast = dtype if tensor.is_floating_point() else None
                # A copy: what is mapped from a file would change, or fault, with the file.
                _set_parameter(model, name, tensor.to(device=device, dtype=cast, copy=True))
    missing = [name for name in wanted if name not in found and name not in tied]
    refuse_faults(directory, missing=missing, unexpected=unexpected, misshaped=misshaped)


def refuse_faults(directory: Path, *, missing: list[str], unexpected: list[str], misshaped: list[str]) -> None:
    """Raise one ValueError that names what is wrong with a checkpoint's weights, if anything is."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshaped))
    faults = [f"{kind}: {_listed(names)}" for kind, names in kinds if names]
    if faults:
        raise ValueError(f"the weights in {directory} do not fit its config.json; " + "; ".join(faults))


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(sorted(names)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
