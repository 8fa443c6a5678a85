"""What a trainer is given, made what it works with: the model, its adapter, no dropout."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from mdlm_fast.models import MaskedDiffusionModel, load_model, wrap


def as_model(
    model: Any, tokenizer: Any, peft_config: Any = None, device: torch.device | None = None
) -> MaskedDiffusionModel:
    """A MaskedDiffusionModel of one, of a Hugging Face model, or of a path or hub id; with an adapter if asked.

    device: where a path or hub id is loaded; of several processes on a machine each has its own.

    Raises:
        ValueError: no mask token, no tokenizer, or an adapter that would catch the LM head.
    """
    if isinstance(model, str):
        model = load_model(model, device=device)
    elif not isinstance(model, MaskedDiffusionModel):
        model = wrap(model, tokenizer)
    if tokenizer is not None and model.tokenizer is None:
        model.tokenizer = tokenizer
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, so it cannot read prompts: pass processing_class=")
    if model.attention == "block":
        raise ValueError("attention='block' is not supported in training yet: pass a model with full attention")
    adapted = isinstance(model.model, PeftModel)
    if adapted and peft_config is not None:
        raise ValueError("the model holds an adapter already: leave out peft_config, or pass the model without it")
    if not any(parameter.requires_grad for parameter in model.model.parameters()):
        if adapted:
            raise ValueError("the model's adapter is frozen: load it with PeftModel.from_pretrained(is_trainable=True)")
        model.model.requires_grad_(True)  # load_model loads for decoding
    if peft_config is None:
        return model
    from mdlm_fast.rl.lora import check_adapted

    check_adapted(model.model, peft_config)
    return model.with_module(get_peft_model(model.model, peft_config))


def place_copy(module: nn.Module, accelerator: Any) -> None:
    """Puts a frozen copy of the policy where the policy will be: in shards under FSDP2, else whole on the device."""
    if accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        fsdp2_prepare_model(accelerator, module)
    else:
        module.to(accelerator.device)


def turn_off_dropout(module: nn.Module) -> None:
    """Sets the rate of every dropout to 0: modules, and the rates that attention layers keep as numbers."""
    for part in module.modules():
        if isinstance(part, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            part.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p", "activation_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
