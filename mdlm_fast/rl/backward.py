"""One micro-batch's backward passes: a pack of views at a time, one synchronisation of gradients for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn

from mdlm_fast.ops import HeadGradient
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.divergence import check_gradients, check_ratios, naming_bad_logits
from mdlm_fast.rl.losses import Watch, pack_loss
from mdlm_fast.rl.scoring import Normaliser, score_views
from mdlm_fast.rl.views import View

if TYPE_CHECKING:
    from mdlm_fast.rl.trainer import MaskedDiffusionTrainer

_WHOLE_WEIGHTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def accumulate(
    trainer: MaskedDiffusionTrainer, model: nn.Module, buffer: RolloutBuffer, views: Sequence[View], first: int = 0
) -> Tensor:
    """Adds the gradient of the views' loss to the parameters' and returns the loss, detached.

    first: number of the micro-batch's first completion in the buffer, for messages.

    Raises:
        TrainingDiverged: see `mdlm_fast.rl.divergence`.
    """
    args = trainer.args
    watch = Watch(args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high)
    normaliser = Normaliser.of(buffer.batch.trajectory, args.training_temperature)
    packs = packs_in_step(trainer, views, buffer)
    place: Any = {"optimizer_step": trainer.state.global_step + 1, "prompts": buffer.prompts_of(first)}
    total = torch.zeros((), device=args.device)
    seen: list[tuple[View, Tensor]] = []
    for number, pack in enumerate(packs):
        last = number == len(packs) - 1
        collected = _collected(trainer, last)
        with _synchronised(trainer.accelerator, model, last=last):
            measuring = trainer.planner.measure(pack, model) if trainer.planner.must_measure else nullcontext()
            with trainer.compute_loss_context_manager(), measuring:
                with naming_bad_logits(trainer.policy, pack, normaliser, **place):
                    logps, entropies = score_views(trainer.policy, pack, normaliser, model, collected)
                loss = pack_loss(
                    pack,
                    logps,
                    entropies,
                    trainer.token_loss,
                    beta=args.beta,
                    kl_estimator=args.kl_estimator,
                    watch=watch,
                )
            seen += [(view, logp.detach()) for view, logp in zip(pack, logps, strict=True)]
            trainer.accelerator.backward(loss, **_backward_options(trainer.accelerator))
        total += loss.detach()
    if trainer.accelerator.sync_gradients:
        trainer.head_gradient.add()
    with trainer.processes.raising_together():
        check_ratios([view for view, _ in seen], [logp for _, logp in seen], args.max_log_ratio, **place)
    if trainer.accelerator.sync_gradients and trainer.accelerator.scaler is None:  # a scaler skips such steps
        check_gradients(model, optimizer_step=place["optimizer_step"])
    trainer.reporter.updated(watch, first_pass=trainer.first_pass)
    return total


def _collected(trainer: MaskedDiffusionTrainer, last: bool) -> HeadGradient | None:
    """What collects the LM head's gradient in a pack, so that it is computed once an optimizer step.

    None where a wrapper must see it: sharded weights, and several processes' last pack, in whose backward pass
    gradients are reduced; what the packs before it collected is there by then."""
    if trainer.accelerator.distributed_type not in _WHOLE_WEIGHTS:
        return None
    if last and trainer.processes.count > 1 and trainer.accelerator.sync_gradients:
        trainer.head_gradient.add()
        return None
    return trainer.head_gradient


def packs_in_step(trainer: MaskedDiffusionTrainer, views: Sequence[View], buffer: RolloutBuffer) -> list[list[View]]:
    """The views in packs; where processes must run the same number of forward passes, or at least one to synchronise,
    filled up with passes of no weight."""
    packs = trainer.planner.packs(views)
    wanted = 0
    if trainer.processes.count > 1:
        wanted = trainer.processes.maximum(len(packs)) if trainer.processes.must_march_in_step else 1
    return packs + [[_weightless(buffer)] for _ in range(wanted - len(packs))]


def _weightless(buffer: RolloutBuffer) -> View:
    batch = buffer.batch
    canvas, device = batch.trajectory.sequences[:1], batch.trajectory.sequences.device
    position = batch.generated[0].long().argmax()[None]
    nothing = torch.zeros(1, device=device)
    first = torch.zeros(1, dtype=torch.int64, device=device)
    masked = torch.where(batch.trajectory.eligible[:1], batch.trajectory.mask_id, canvas)
    return View(
        canvas=lambda: masked,
        attention_mask=batch.attention_mask[:1],
        rows=position.to(torch.int32),
        targets=canvas[0, position],
        owner=first,
        sequence=first,
        weight=nothing,
        kl_weight=nothing,
        advantage=nothing,
        step=-1,
    )


def _synchronised(accelerator: Any, model: nn.Module, *, last: bool) -> ExitStack:
    """The context of a pack: gradients are reduced over processes in the last pack of an optimizer step alone.

    DeepSpeed takes its cue from the accelerator's flag, the others from `no_sync`."""
    stack = ExitStack()
    if last:
        return stack
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        before = accelerator.sync_gradients
        accelerator.gradient_state._set_sync_gradients(False)
        stack.callback(accelerator.gradient_state._set_sync_gradients, before)
    else:
        stack.enter_context(accelerator.no_sync(model))
    return stack


def _backward_options(accelerator: Any) -> dict[str, Any]:
    # DeepSpeed would divide by the number of micro-batches; the loss is divided already.
    return {"scale_wrt_gas": False} if accelerator.distributed_type == DistributedType.DEEPSPEED else {}
