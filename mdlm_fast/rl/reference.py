"""The reference policy of a KL penalty: the model with its adapter off, a second adapter, a frozen copy, or none.

| kind | weights beside the policy's | follows the policy (`sync`) |
|---|---|---|
| adapter_off | none: the base model under a fresh adapter is the model that training started from | no |
| adapter | a second adapter, "reference", with the values the first had at the start | yes |
| copy | the whole model again | yes |
| none | none | - |

Make it before the model goes into DistributedDataParallel, FSDP or DeepSpeed: it may add parameters. A copy is a module
of its own (`Reference.module`), which must be sharded as the policy is before `sync`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl.adapters import active_adapter, adapter_parameters, adds_nothing, trained_outside

KINDS = ("auto", "adapter_off", "adapter", "copy", "none")
ADAPTER = "reference"


class Scorer(NamedTuple):
    """What to score with: `model.token_logprobs(..., module=module)`; module=None calls `model.model` itself."""

    model: MaskedDiffusionModel
    module: nn.Module | None


class Reference(ABC):
    """A reference policy; make one with `make_reference`.

    Attributes:
        kind: "adapter_off", "adapter", "copy" or "none".
        module: a module of its own, or None where the policy's module plays the reference.
    """

    kind: str
    module: nn.Module | None = None

    @abstractmethod
    def scorer(self, wrapped: nn.Module | None = None) -> AbstractContextManager[Scorer]:
        """Context in which the reference can be scored, with gradients and dropout off.

        On the way out, also after an exception, the policy's module is as it was: training mode of every submodule,
        active adapter, requires_grad of every parameter.

        Args:
            wrapped: the policy's module inside a wrapper (FSDP), to be called where the policy's module plays the
                reference; handed back as `Scorer.module`.

        Raises:
            RuntimeError: there is no reference policy.
        """

    def sync(self, alpha: float) -> None:
        """Move the reference towards the policy: alpha * policy + (1 - alpha) * reference, 0 < alpha <= 1.

        Raises:
            ValueError: a reference that cannot move, or alpha out of range.
        """
        raise ValueError(f"sync_ref_model: reference={self.kind!r} cannot follow the policy; use 'adapter' or 'copy'")

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, not copied; empty where the model that training starts from gives it again."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: the state of another kind of reference, or of another model.
        """
        _check_names(state, {}, self.kind)


def make_reference(model: MaskedDiffusionModel, kind: str = "auto", *, beta: float) -> Reference:
    """The reference policy that `model` is now.

    Args:
        model: the policy, before training. With "adapter" it gets a second, frozen adapter named "reference"; one of
            that name is replaced.
        kind: see the table above; "auto" is "none" where beta is 0, "adapter_off" under a LoRA adapter that adds
            nothing yet (B = 0), "adapter" under one that does, else "copy". A kind asked for by name does not depend on
            beta; "adapter_off" is the base model, whatever the adapter holds.
        beta: weight of the KL penalty.

    Raises:
        ValueError: an unknown kind, a kind that the model cannot give, "none" with a beta, or an adapter whose values
            cannot be seen here.
    """
    if kind not in KINDS:
        raise ValueError(f"reference={kind!r} must be one of {', '.join(KINDS)}")
    if kind == "auto":
        kind = "none" if beta == 0 else _fitting_kind(model.model)
    if kind == "none":
        if beta != 0:
            raise ValueError(
                f"reference='none' leaves beta={beta} without a reference policy; set beta=0 or another kind"
            )
        return NoReference()
    if kind == "copy":
        return FrozenCopy(model)
    if not isinstance(model.model, PeftModel):
        raise ValueError(f"reference={kind!r} needs a PEFT adapter; {type(model.model).__name__} has none. Use 'copy'")
    if outside := trained_outside(model.model):
        raise ValueError(f"reference={kind!r} shares {outside[0]}, which is trained too, with the policy; use 'copy'")
    return AdapterOff(model) if kind == "adapter_off" else SecondAdapter(model)


class NoReference(Reference):
    """No reference policy: beta is 0."""

    kind = "none"

    def scorer(self, wrapped: nn.Module | None = None) -> AbstractContextManager[Scorer]:
        """Raises RuntimeError."""
        raise RuntimeError("there is no reference policy (beta=0); nothing can be scored with it")


class AdapterOff(Reference):
    """The policy's module with its adapter switched off."""

    kind = "adapter_off"

    def __init__(self, policy: MaskedDiffusionModel) -> None:
        self._policy = policy

    @contextmanager
    def scorer(self, wrapped: nn.Module | None = None) -> Iterator[Scorer]:
        """See `Reference.scorer`."""
        module = _peft(self._policy)
        with _put_back(module), module.disable_adapter():
            yield Scorer(self._policy, wrapped)


class SecondAdapter(Reference):
    """The policy's module with the frozen adapter "reference" active."""

    kind = "adapter"

    def __init__(self, policy: MaskedDiffusionModel) -> None:
        self._policy = policy
        module = _peft(policy)
        self._trained = active_adapter(module)
        if self._trained == ADAPTER:
            raise ValueError(f"the adapter to train is named {ADAPTER!r}, the name of its frozen copy; rename it")
        if ADAPTER in module.peft_config:
            module.delete_adapter(ADAPTER)
        config = copy.deepcopy(module.peft_config[self._trained])
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True  # PiSSA and kin would change the base model's weights once more
        training = [(part, part.training) for part in module.modules()]
        module.add_adapter(ADAPTER, config)
        for part, was in training:
            part.training = was
        for reference, trained in self._pairs():
            reference.requires_grad_(False)
            reference.data = trained.detach().clone()  # of the dtype the trained adapter was given

    @contextmanager
    def scorer(self, wrapped: nn.Module | None = None) -> Iterator[Scorer]:
        """See `Reference.scorer`."""
        module = _peft(self._policy)
        with _put_back(module):
            try:
                module.set_adapter(ADAPTER)
                yield Scorer(self._policy, wrapped)
            finally:
                module.set_adapter(self._trained)

    def sync(self, alpha: float) -> None:
        """See `Reference.sync`."""
        _mix(self._pairs(), alpha)

    def state_dict(self) -> dict[str, Tensor]:
        """The second adapter."""
        return {name: parameter.detach() for name, parameter in adapter_parameters(self._policy.model, ADAPTER).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Reference.load_state_dict`."""
        _load(state, adapter_parameters(self._policy.model, ADAPTER), self.kind)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        trained = adapter_parameters(self._policy.model, self._trained)
        return [
            (parameter, trained[name]) for name, parameter in adapter_parameters(self._policy.model, ADAPTER).items()
        ]


class FrozenCopy(Reference):
    """A copy of the policy's module."""

    kind = "copy"

    def __init__(self, policy: MaskedDiffusionModel) -> None:
        self._policy = policy
        self.module = copy.deepcopy(policy.model).eval().requires_grad_(False)
        facts = ("mask_id", "eos_ids", "shift", "attention", "block_size", "vocab_size", "vocab_limit", "settings")
        self._copy = MaskedDiffusionModel(
            self.module, policy.tokenizer, **{name: getattr(policy, name) for name in facts}
        )
        self._moved = False

    @contextmanager
    def scorer(self, wrapped: nn.Module | None = None) -> Iterator[Scorer]:
        """See `Reference.scorer`."""
        with torch.no_grad():
            yield Scorer(self._copy, None)

    def sync(self, alpha: float) -> None:
        """See `Reference.sync`."""
        policy = _sharded_parameters(self._policy.model)
        _mix([(parameter, policy[name]) for name, parameter in _sharded_parameters(self._copy.model).items()], alpha)
        self._moved = True

    def state_dict(self) -> dict[str, Tensor]:
        """The copy's parameters; nothing as long as it is the model that training started from."""
        if not self._moved:
            return {}
        return {name: parameter.detach() for name, parameter in _sharded_parameters(self._copy.model).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Reference.load_state_dict`; an empty state leaves the copy as it is."""
        if state:
            _load(state, _sharded_parameters(self._copy.model), self.kind)
            self._moved = True


def _peft(policy: MaskedDiffusionModel) -> PeftModel:
    assert isinstance(policy.model, PeftModel)
    return policy.model


def _sharded_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name; under FSDP2 the shards, for a pass without gradients leaves the outer ones gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return dict(module.named_parameters())


def _fitting_kind(module: nn.Module) -> str:
    if not isinstance(module, PeftModel) or trained_outside(module):
        return "copy"
    return "adapter_off" if adds_nothing(module) else "adapter"


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; training modes and requires_grad, which PEFT changes, are put back."""
    training = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, was in training:
            part.training = was
        for parameter, needed in wanted:
            parameter.requires_grad_(needed)


@torch.no_grad()
def _mix(pairs: list[tuple[nn.Parameter, nn.Parameter]], alpha: float) -> None:
    """Each first parameter becomes alpha * second + (1 - alpha) * first."""
    if not 0 < alpha <= 1:
        raise ValueError(
            f"alpha={alpha} must lie in (0, 1]: the reference becomes alpha * policy + (1 - alpha) * reference"
        )
    for reference, policy in pairs:
        reference.lerp_(policy.detach().to(reference.device, reference.dtype), alpha)


def _check_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kind: str) -> None:
    if wrong := sorted(set(state) ^ set(wanted)):
        where = "has no" if wrong[0] in wanted else "has an unexpected"
        raise ValueError(
            f"the saved reference {where} {wrong[0]!r} ({len(wrong)} such names); reference={kind!r} does not fit the "
            "checkpoint: resume with the reference and the model it was made with"
        )


@torch.no_grad()
def _load(state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], kind: str) -> None:
    _check_names(state, parameters, kind)
    for name, parameter in parameters.items():
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"the saved reference has {name} of shape {tuple(state[name].shape)}, not {tuple(parameter.shape)}"
            )
        value = state[name].to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)
