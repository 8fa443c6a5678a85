"""Both sides: one model, prompt, reward and optimizer, trained by our trainer or as the released one does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

import mdlm_fast as mf
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.methods.cj_grpo import CJGRPOConfig, CJGRPOTrainer

from ...baselines import cj_grpo
from .case import (
    BLOCKS,
    CHECKPOINTING,
    PROMPT,
    RANK,
    RELEASED,
    WARM_UP_STEPS,
    Case,
    as_text,
    make_base,
    make_prompt,
    make_tokenizer,
    reward_of_lists,
    reward_of_rows,
)
from .phases import LOGGED, PhaseClock

# Names that older releases of transformers need.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

#: Whether to go on after an iteration, given its number (0 for the one that warms up) and its seconds by phase.
End = Callable[[int, dict[str, float]], bool]


def adapter(case: Case, model: Any) -> LoraConfig | None:
    """LoRA on all seven matrices of a layer, and not zero, so the reference differs from the policy."""
    if case.head == "trained":
        return None
    return lora_config(model, "all", r=RANK, alpha=RANK // 2, init_lora_weights=False)


def plain_config(case: Case, **changes: Any) -> cj_grpo.PlainConfig:
    """Settings of the released way, which rounds its logits to the dtype of its model."""
    settings: dict[str, Any] = {
        "mask_id": case.vocabulary.mask_id,
        "generated": case.generated,
        "steps": case.steps,
        "blocks": BLOCKS,
        "num_iterations": case.updates,
        "beta": case.beta,
        "dtype": getattr(torch, case.dtype),
        "max_grad_norm": case.max_grad_norm,
    }
    return cj_grpo.PlainConfig(**{**settings, **changes})


class PlainSide:
    """The released way, on a model and optimizer of its own. name: one of `CHECKPOINTING`."""

    def __init__(self, case: Case, name: str = RELEASED) -> None:
        self.case, self.name = case, name
        self.model: Any = make_base(case)
        lora = adapter(case, self.model)
        if lora is not None:
            self.model = get_peft_model(self.model, lora).to(getattr(torch, case.dtype))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=case.learning_rate, weight_decay=0.0, fused=True)
        self.prompts = make_prompt(case.vocabulary).expand(case.batch, PROMPT).to(case.device)
        self.clock = PhaseClock(case.device)

    def run(self, steps: int) -> dict[str, float]:
        """One iteration with this many steps; its seconds by phase."""
        config = plain_config(self.case, steps=steps, checkpointing=CHECKPOINTING[self.name])
        self.clock.start()
        cj_grpo.iteration(self.model, self.optimizer, self.prompts, reward_of_rows, config, self.clock.phase)
        self.clock.stop()
        return self.clock.phases()


class OurSide:
    """`CJGRPOTrainer` with its defaults, but for what the released way computes: its softmax is over all ids, and the
    tokens behind an end of text are trained on.

    The first iteration, number 0, has `WARM_UP_STEPS` steps: it compiles, loads and allocates what later ones find.
    """

    def __init__(self, case: Case, iterations: int) -> None:
        self._folder = TemporaryDirectory()
        args = CJGRPOConfig(
            output_dir=self._folder.name,
            per_device_train_batch_size=case.batch,
            num_generations=case.batch,
            num_iterations=case.updates,
            max_completion_length=case.generated,
            diffusion_steps=case.steps,
            num_blocks=BLOCKS,
            temperature=1.0,
            decoder_overrides={"normalize_over": "all"},
            completion_tokens="all",
            beta=case.beta,
            reference="adapter_off" if case.beta else "none",
            learning_rate=case.learning_rate,
            max_grad_norm=case.max_grad_norm,
            max_steps=(iterations + 1) * case.updates,
            save_strategy="no",
            logging_steps=case.updates,
            report_to="none",
            disable_tqdm=True,
            use_cpu=case.device == "cpu",
            dataloader_pin_memory=False,
        )
        tokenizer, vocabulary = make_tokenizer(case.vocabulary), case.vocabulary
        base = make_base(case)
        lora = adapter(case, base)
        self.trainer = WatchedTrainer(
            model=mf.wrap(base, tokenizer, mask_id=vocabulary.mask_id, eos_ids=vocabulary.eos_id),
            reward_funcs=[reward_of_lists],
            args=args,
            train_dataset=[{"prompt": as_text(make_prompt(vocabulary))}],
            processing_class=tokenizer,
            peft_config=lora,
        )
        self.model: Any = self.trainer.policy.model
        self.model.to(getattr(torch, case.dtype))  # an adapter is made in float32
        self.trainer.remove_callback(PrinterCallback)
        self.clock = self.trainer.clock = PhaseClock(case.device)

    def run(self, begin: Callable[[int], None], end: End) -> None:
        """Trains; `begin` and `end` are called around every iteration with its number."""
        self.trainer.add_callback(Iterations(self.trainer, begin, end))
        self.trainer.train()


class WatchedTrainer(CJGRPOTrainer):
    """Keeps every loss, and the moment when the gradients were there."""

    clock: PhaseClock
    losses: list[float]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), float(loss)]
        self.gradients_at = self.clock.now()
        return loss


class Iterations(TrainerCallback):
    """Calls `begin` and `end` around every iteration of a trainer."""

    def __init__(self, trainer: WatchedTrainer, begin: Callable[[int], None], end: End) -> None:
        self._trainer, self._begin, self._end = trainer, begin, end
        self._whole = trainer.decode_config

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number, update = divmod(state.global_step, args.num_iterations)
        if update == 0:
            self._trainer.decode_config = self._whole if number else self._whole.replace(steps=WARM_UP_STEPS)
            self._begin(number)
            self._trainer.clock.start()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        clock = self._trainer.clock
        clock.add("optimizer", clock.now() - self._trainer.gradients_at)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % args.num_iterations == 0:
            self._trainer.clock.stop()

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The trainer logs its phases after every iteration, as means of its updates."""
        logs: dict[str, float] = more["logs"]
        if "time/train" in logs:
            clock = self._trainer.clock
            for name, logged in LOGGED.items():
                clock.add(name, logs[f"time/{logged}"] * args.num_iterations)
            if not self._end(state.global_step // args.num_iterations - 1, clock.phases()):
                control.should_training_stop = True
