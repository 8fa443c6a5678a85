"""Facts about the adapters of a PEFT model."""

from __future__ import annotations

from peft import PeftModel, PeftType
from torch import nn


def active_adapter(module: PeftModel) -> str:
    """Name of the one active adapter.

    Raises:
        ValueError: none or several are active.
    """
    active = module.active_adapters
    if len(active) != 1:
        raise ValueError(f"the model has {len(active)} active adapters; a reference policy needs one that is trained")
    return str(active[0])


def adapter_parameters(module: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Parameters of an adapter, by their names with the adapter's left out."""
    found = {}
    for name, parameter in module.named_parameters():
        before, mark, after = f".{name}.".rpartition(f".{adapter}.")
        if mark:
            found[f"{before}.{after}".strip(".")] = parameter
    return found


def trained_outside(module: PeftModel) -> list[str]:
    """Names of trained parameters that belong to no adapter, such as biases with `bias="all"`."""
    adapters = set(module.peft_config)
    return [name for name, p in module.named_parameters() if p.requires_grad and not adapters & set(name.split("."))]


def adds_nothing(module: PeftModel) -> bool:
    """Whether the model computes what it does without its adapter: LoRA with B = 0, and no module trained whole.

    Raises:
        ValueError: the weights are sharded or on the meta device.
    """
    adapter = active_adapter(module)
    config = module.peft_config[adapter]
    if config.peft_type != PeftType.LORA or getattr(config, "modules_to_save", None):
        return False
    for name, parameter in adapter_parameters(module, adapter).items():
        if "lora_B" not in name and "lora_embedding_B" not in name:
            continue
        if parameter.numel() == 0 or parameter.is_meta:
            raise ValueError(
                f"{name} is sharded or on the meta device, so whether the adapter is fresh cannot be seen; pass "
                "reference='adapter_off' if it is"
            )
        if parameter.any():
            return False
    return True
