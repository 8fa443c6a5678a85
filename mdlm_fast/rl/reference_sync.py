"""A reference policy that follows the one being trained (sync_ref_model, as in TRL)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.reference import Reference, make_reference


def trainer_reference(model: MaskedDiffusionModel, args: RLConfig, beta: float) -> Reference:
    """The reference policy that the config asks for; one that can move, if it is to follow the policy.

    beta: of the penalty from the reference; 0 where the method measures it from the policy that acted.

    Raises:
        ValueError: a reference that the model cannot give, or that cannot follow it.
    """
    reference = make_reference(model, args.reference, beta=beta)
    if args.sync_ref_model and args.reference == "auto" and reference.kind == "adapter_off":
        reference = make_reference(model, "adapter", beta=beta)
    if args.sync_ref_model and reference.kind not in ("adapter", "copy"):
        raise ValueError(
            f"sync_ref_model=True, but this trainer's reference is {reference.kind!r}, which cannot follow the policy: "
            "set reference='copy' (or 'adapter' under LoRA), or turn sync_ref_model off"
        )
    return reference


class ReferenceSync(TrainerCallback):
    """Moves the reference towards the policy every `ref_model_sync_steps` optimizer steps."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before the step's log and checkpoint."""
        if state.global_step % args.ref_model_sync_steps == 0:
            self._reference.sync(args.ref_model_mixup_alpha)
