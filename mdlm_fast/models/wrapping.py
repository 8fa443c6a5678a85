"""wrap(): find out what decoding must know about a Hugging Face model, and refuse what cannot work."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from mdlm_fast.models import _introspect as inspect_model
from mdlm_fast.models._patch import find_head, output_embeddings
from mdlm_fast.models.wrapper import ATTENTION_KINDS, MaskedDiffusionModel, as_ids

# model_type -> (mask id, EOS ids, vocab limit, shift) of the released checkpoints, for configs that do not say.
LLADA_EOT = 126348
RELEASED: dict[str, tuple[int, tuple[int, ...], int | None, bool]] = {
    "llada": (126336, (126081, LLADA_EOT), None, False),
    "dream": (151666, (151643, 151645), 151667, True),
}


def wrap(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    mask_id: int | None = None,
    eos_ids: int | Sequence[int] | None = None,
    shift: bool | None = None,
    attention: str | None = None,
    block_size: int | None = None,
    vocab_limit: int | None = None,
    settings: dict[str, Any] | None = None,
) -> MaskedDiffusionModel:
    """Wrap a Hugging Face model for decoding. The model itself is not changed, moved or put into eval mode.

    What is not given is taken from the model's config, then the tokenizer, then the released values of its family.

    Args:
        model: LLaDA, Dream, a masked LM (BERT and kin), or a decoder with `config.is_causal = False`; native classes
            and `trust_remote_code` ones alike, PEFT adapters included.
        tokenizer: Hugging Face tokenizer, for text output; optional.
        mask_id: id of the mask token.
        eos_ids: one id or several.
        shift: True if row l - 1 of the model's logits predicts position l, as in Dream.
        attention: "full", "causal" or "block" (see `MaskedDiffusionModel`); default: what the model's config says.
        block_size: tokens per block for attention="block".
        vocab_limit: first id that has no token; default: from the tokenizer, where the head is wider.
        settings: kept as `.settings`.

    Raises:
        ValueError: no mask id, an id out of range, an output head that maps nothing to logits (a weight-tied LLaDA
            names its input embedding), a head narrower than the vocabulary, or attention without what it needs.
        TypeError: `model` is not a torch module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    config = getattr(model, "config", None)
    vocab_size = _vocab_size(model, config)
    family = RELEASED.get(str(getattr(config, "model_type", "")).lower())
    if family is not None and family[0] >= vocab_size:
        family = (-1, (), None, family[3])  # a small model of that kind: the released ids mean nothing there
    mask_id = _first(mask_id, getattr(config, "mask_token_id", None), getattr(tokenizer, "mask_token_id", None))
    if mask_id is None and family is not None and family[0] >= 0:
        mask_id = family[0]
    if mask_id is None:
        raise ValueError(
            "mask_id is unknown: neither config.mask_token_id nor tokenizer.mask_token_id is set; pass mask_id="
        )
    known = inspect_model.embedding_count(model) or vocab_size
    if not 0 <= mask_id < known:
        raise ValueError(f"mask_id={mask_id} is not an id the model can read (0 to {known - 1})")
    eos = as_ids("eos_ids", eos_ids) if eos_ids is not None else _eos_ids(config, tokenizer, family)
    if wrong := [i for i in eos if i >= vocab_size]:
        raise ValueError(f"eos_ids contains {wrong[0]}; the model's logits cover ids 0 to {vocab_size - 1}")
    if shift is None:
        shift = family is not None and family[3]
    attention = _attention(model, attention, block_size)
    if vocab_limit is None:
        vocab_limit = _vocab_limit(tokenizer, family, vocab_size, mask_id)
    if vocab_limit is not None and not 0 < vocab_limit <= vocab_size:
        raise ValueError(f"vocab_limit={vocab_limit} must lie in 1 to {vocab_size}, the width of the logits")
    return MaskedDiffusionModel(
        model,
        tokenizer,
        mask_id=int(mask_id),
        eos_ids=eos,
        shift=bool(shift),
        attention=attention,
        block_size=block_size,
        vocab_size=vocab_size,
        vocab_limit=vocab_limit,
        settings=settings,
    )


def _first(*values: int | None) -> int | None:
    return next((v for v in values if v is not None), None)


def _vocab_size(model: nn.Module, config: Any) -> int:
    output = output_embeddings(model)
    if isinstance(output, nn.Embedding):
        raise ValueError(
            f"{type(model).__name__}.get_output_embeddings() returns its input embedding, which maps ids to vectors "
            "and not vectors to logits (LLaDA's code does so when weight_tying is on); load the checkpoint with "
            "mdlm_fast.load_model instead"
        )
    head = find_head(model)
    width = getattr(head, "out_features", None)
    declared = getattr(config, "vocab_size", None)
    if width is None and declared is None:
        raise ValueError(f"{type(model).__name__} has neither config.vocab_size nor an output head with out_features")
    if width is not None and declared is not None and width < declared:
        raise ValueError(f"the output head gives {width} logits but config.vocab_size is {declared}")
    return int(width) if width is not None else int(declared)  # type: ignore[arg-type]


def _eos_ids(config: Any, tokenizer: Any, family: Any) -> tuple[int, ...]:
    found = list(inspect_model.config_ids(config, "eos_token_id"))
    token_id = getattr(tokenizer, "eos_token_id", None)
    if token_id is not None:
        found.append(int(token_id))
    if family is not None and (not found or set(found) & set(family[1])):
        found.extend(family[1])
    return tuple(dict.fromkeys(found))


def _vocab_limit(tokenizer: Any, family: Any, vocab_size: int, mask_id: int) -> int | None:
    if tokenizer is not None and hasattr(tokenizer, "get_vocab"):
        limit = max(max(tokenizer.get_vocab().values(), default=-1) + 1, mask_id + 1)
    elif family is not None and family[2] is not None:
        limit = family[2]
    else:
        return None
    return limit if limit < vocab_size else None


def _attention(model: nn.Module, attention: str | None, block_size: int | None) -> str:
    if attention is None:
        attention = "causal" if inspect_model.is_causal(model) else "full"
        if attention == "causal":
            warnings.warn(
                f"{type(model).__name__} attends causally, so a mask cannot see what follows it; masked diffusion "
                "models need config.is_causal = False, or wrap(..., attention='full')",
                RuntimeWarning,
                stacklevel=3,
            )
    if attention not in ATTENTION_KINDS:
        raise ValueError(f"attention={attention!r} must be one of {', '.join(map(repr, ATTENTION_KINDS))}")
    if attention == "block":
        if block_size is None or block_size < 1:
            raise ValueError(f"attention='block' needs block_size of at least 1, got {block_size!r}")
        if "position_ids" not in inspect_model.forward_arguments(model) or inspect_model.max_length(model) is not None:
            raise ValueError(
                f"attention='block' needs a rotary decoder that takes a 4-D mask; {type(model).__name__} does not"
            )
    elif block_size is not None:
        raise ValueError(f"block_size={block_size} is only used with attention='block', got {attention!r}")
    return attention
