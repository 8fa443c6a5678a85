"""load_model(): checkpoints of LLaDA, Dream, masked LMs and native models, from a folder or the hub."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mdlm_fast.models import checkpoint, hub
from mdlm_fast.models.families import TRANSLATIONS, load_translated
from mdlm_fast.models.rope import keep_frequencies_float32, rotate_in_float32
from mdlm_fast.models.saving import read_settings
from mdlm_fast.models.wrapper import MaskedDiffusionModel
from mdlm_fast.models.wrapping import wrap

BUILTIN = "builtin:"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
# tokenizer.json alone says what these do; AutoTokenizer may prefer the usual class of the model's type.
_GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_model(
    path_or_id: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    requires_grad: bool = False,
    tokenizer: Any = None,
    **wrap_options: Any,
) -> MaskedDiffusionModel:
    """Load a masked diffusion model from a local folder, the Hugging Face hub, or this package.

    LLaDA and Dream checkpoints load into transformers' own Llama and Qwen2, one tensor at a time; masked LMs (BERT and
    kin) and native decoders with `is_causal: false` load as transformers loads them. No code from a checkpoint is
    ever run.

    Args:
        path_or_id: folder, hub id such as "GSAI-ML/LLaDA-8B-Instruct", or "builtin:puzzles".
        device: such as "cpu" or "cuda:0"; default: "cuda" if there is one.
        dtype: of the weights, torch dtype or its name; default: as the config or the checkpoint says.
        attn_implementation: "sdpa" (default), "eager", or another name that transformers knows.
        requires_grad: leave gradients on, for training.
        tokenizer: used instead of the checkpoint's own.
        wrap_options: `mask_id`, `eos_ids`, `shift`, `attention`, `block_size`, `vocab_limit` as in `wrap`, instead of
            what the checkpoint says.

    Returns:
        The model in eval mode, with its tokenizer if the checkpoint brings one that works without its own code.

    Raises:
        FileNotFoundError: no such folder or file, or a missing shard.
        ConnectionError: the hub cannot be reached or refuses.
        ValueError: an unknown architecture, damaged files, weights that do not fit the config.
    """
    directory = _locate(path_or_id)
    fields = checkpoint.read_json(directory / "config.json")
    settings = read_settings(directory)
    where = _device(device)
    asked = None if dtype == "auto" else dtype
    kind = _dtype(asked if asked is not None else fields.get("dtype", fields.get("torch_dtype")), asked)
    translate = TRANSLATIONS.get(str(fields.get("model_type", "")).lower())
    if tokenizer is None:
        tokenizer = _tokenizer(directory, fields)
    defaults: dict[str, Any] = {}
    if translate is not None:
        translation = translate(fields, directory)
        model: Any = load_translated(
            translation, directory, device=where, dtype=kind, attn_implementation=attn_implementation
        )
        defaults = {"shift": translation.shift}
        if tokenizer is None:
            defaults["vocab_limit"] = translation.vocab_limit
    else:
        model = _load_native(directory, fields, dtype=kind, attn_implementation=attn_implementation).to(where)
        if settings.pop("rope_float32", False):
            rotate_in_float32(model)
    keep_frequencies_float32(model)
    model.requires_grad_(requires_grad)
    known = ("mask_id", "eos_ids", "shift", "attention", "block_size", "vocab_limit")
    defaults.update({name: settings.pop(name) for name in known if name in settings})
    return wrap(model.eval(), tokenizer, settings=settings, **(defaults | wrap_options))


def _locate(path_or_id: str | os.PathLike[str]) -> Path:
    name = os.fspath(path_or_id)
    if name.startswith(BUILTIN):
        return built_in_folder(name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_file():
        raise ValueError(f"path_or_id={name!r} is a file; give the folder that holds config.json and the weights")
    if hub.is_hub_id(name):
        return hub.download(name)
    raise FileNotFoundError(f"path_or_id={name!r} is not a folder, and not a hub id of the form owner/name either")


def built_in_folder(name: str) -> Path:
    """The folder of a model inside the package, named "builtin:...".

    Raises:
        FileNotFoundError: there is no such model."""
    directory = Path(__file__).resolve().parent.parent / "data" / name.removeprefix(BUILTIN)
    if not (directory / "config.json").is_file():
        known = sorted(BUILTIN + path.parent.name for path in directory.parent.glob("*/config.json"))
        raise FileNotFoundError(f"{name!r} is not a built-in model; there is {', '.join(known)}")
    return directory


def _device(device: str | torch.device | None) -> torch.device:
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not a torch device such as 'cpu' or 'cuda:0'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for, but torch sees no CUDA device")
    return chosen


def _dtype(value: Any, asked: Any) -> torch.dtype | None:
    """A torch dtype from its name; None = as the checkpoint. `asked` is what the caller wrote, for the message."""
    if value in (None, "auto"):
        return None
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        origin = "dtype" if asked is not None else "config.json: dtype"
        raise ValueError(f"{origin}={value!r} is not a floating-point torch dtype such as 'bfloat16'")
    return found


def _load_native(
    directory: Path, fields: dict[str, Any], *, dtype: torch.dtype | None, attn_implementation: str | None
) -> Any:
    """A model whose class transformers has, with the loading report turned into an error."""
    model_type = fields.get("model_type")
    architecture = next(iter(fields.get("architectures") or []), "")
    masked = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not architecture.endswith("ForCausalLM")
    if not masked and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = (
            "; it brings its own code, which load_model never runs: load it with transformers and "
            "trust_remote_code=True if you trust it, and pass it to mdlm_fast.wrap"
            if "auto_map" in fields
            else ""
        )
        raise ValueError(f"{directory}/config.json: model_type={model_type!r} is not a model this package knows{hint}")
    for path in checkpoint.weight_files(directory):
        if path.suffix == ".safetensors":
            checkpoint.check_safetensors(path)
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    model, report = auto.from_pretrained(
        directory,
        config=config,
        dtype=dtype or "auto",
        attn_implementation=attn_implementation,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    misshaped = [
        f"{key} is {tuple(found)}, the config says {tuple(wanted)}" for key, found, wanted in report["mismatched_keys"]
    ]
    unexpected = [] if masked else list(report["unexpected_keys"])  # masked LMs are often saved with other heads
    checkpoint.refuse_faults(
        directory, missing=list(report["missing_keys"]), unexpected=unexpected, misshaped=misshaped
    )
    return model


def _tokenizer(directory: Path, fields: dict[str, Any]) -> Any:
    """The checkpoint's tokenizer; None if it brings none, and with a warning if it cannot be read."""
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        if str(fields.get("model_type", "")).lower() == "dream":  # its own tokenizer code is Qwen2's
            return Qwen2Tokenizer.from_pretrained(directory)
        if _declared_tokenizer(directory) in _GENERIC_TOKENIZERS:
            return PreTrainedTokenizerFast.from_pretrained(directory)
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"the tokenizer in {directory} cannot be read ({reason}); the model is loaded without one, so it takes and "
            "gives ids only. Pass tokenizer= to load_model if you have one",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _declared_tokenizer(directory: Path) -> str:
    """`tokenizer_class` of tokenizer_config.json; a bare tokenizer.json counts as generic."""
    if not (directory / "tokenizer.json").is_file():
        return ""
    if not (directory / "tokenizer_config.json").is_file():
        return _GENERIC_TOKENIZERS[0]
    return str(checkpoint.read_json(directory / "tokenizer_config.json").get("tokenizer_class", ""))
