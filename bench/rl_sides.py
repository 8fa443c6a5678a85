"""Both sides of bench/rl_iteration.py: one model, prompt, reward and optimizer, trained by us or the plain way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.utils import logging

import mdlm_fast as mf
from bench import rl_plain
from mdlm_fast.rl.methods.cj_grpo import CJGRPOConfig, CJGRPOTrainer

VOCAB, MASK, EOS = 126464, 126336, 126081
BATCH, PROMPT, GENERATED, BLOCKS = 4, 32, 64, 2

logging.set_verbosity_error()
warnings.filterwarnings("ignore", category=FutureWarning)  # names of transformers that older releases need


@dataclass(frozen=True)
class Case:
    """One comparison: an iteration is a rollout of 4 completions of one prompt and the updates on it.

    Attributes:
        head: "trained" (every weight; no KL term) or "frozen" (LoRA of rank 8 on the layers' matrices, whose KL term is
            measured from the model without it).
        steps: S. iterations: updates on a rollout. dtype: of the weights.
        checkpointing: whose layers are computed again in the backward pass: "plain", "both" or "none".
        views: steps whose graphs live at a time on our side, 0: the trainer chooses.
        learning_rate, max_grad_norm: of both.
    """

    head: str
    steps: int
    dtype: str = "float32"
    device: str = "cpu"
    iterations: int = 2
    checkpointing: str = "plain"
    views: int = 0
    learning_rate: float = 3e-6
    max_grad_norm: float = 0.2

    @property
    def beta(self) -> float:
        return 0.04 if self.head == "frozen" else 0.0

    def lora(self) -> LoraConfig | None:
        """The adapter: on all seven matrices of a layer, and not zero, so the reference differs from the policy."""
        if self.head == "trained":
            return None
        matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return LoraConfig(r=8, lora_alpha=4, target_modules=matrices, init_lora_weights=False)

    def plain(self, **changes: Any) -> rl_plain.PlainConfig:
        """The plain side's settings."""
        settings: dict[str, Any] = {
            "mask_id": MASK,
            "generated": GENERATED,
            "steps": self.steps,
            "blocks": BLOCKS,
            "num_iterations": self.iterations,
            "beta": self.beta,
            "checkpointing": self.checkpointing != "none",
            "max_grad_norm": self.max_grad_norm,
        }
        return rl_plain.PlainConfig(**{**settings, **changes})


def make_base(case: Case) -> Any:
    """The random model: native Llama without causal masking, 4 layers of width 256, 126,464 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    config.is_causal = False
    model: Any = LlamaForCausalLM(config)
    return model.to(case.device, getattr(torch, case.dtype))


def make_prompt() -> Tensor:
    """int64 [P], the prompt of the group."""
    return torch.randint(3, MASK - 500, (PROMPT,), generator=torch.Generator().manual_seed(1))


def reward_of_ids(ids: list[int]) -> float:
    """The share of even tokens."""
    return sum(token % 2 == 0 for token in ids) / max(len(ids), 1)


class PlainSide:
    """The plain iteration on a model and optimizer of its own."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model: Any = make_base(case)
        adapter = case.lora()
        if adapter is not None:
            self.model = get_peft_model(self.model, adapter).to(getattr(torch, case.dtype))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=case.learning_rate, weight_decay=0.0, fused=True)
        self.prompts = make_prompt().expand(BATCH, PROMPT).to(case.device)

    def run(self, steps: int | None = None) -> list[float]:
        """One iteration, by default of the case's number of steps; its losses."""

        def reward(completions: Tensor) -> Tensor:
            return torch.tensor([reward_of_ids(row) for row in completions.tolist()], device=completions.device)

        config = self.case.plain(steps=steps or self.case.steps)
        return rl_plain.iteration(self.model, self.optimizer, self.prompts, reward, config)


class OurSide:
    """`CJGRPOTrainer`, told to stop after a number of iterations; callbacks see each begin and end.

    The first iteration has 2 steps and warms up: it compiles, loads and allocates what later ones find there.
    """

    def __init__(self, case: Case, iterations: int) -> None:
        self._folder = TemporaryDirectory()
        args = CJGRPOConfig(
            output_dir=self._folder.name,
            per_device_train_batch_size=BATCH,
            num_generations=BATCH,
            num_iterations=case.iterations,
            max_completion_length=GENERATED,
            diffusion_steps=case.steps,
            num_blocks=BLOCKS,
            temperature=1.0,
            decoder_overrides={"normalize_over": "all"},  # as the plain side's softmax
            completion_tokens="all",
            beta=case.beta,
            reference="adapter_off" if case.beta else "none",
            learning_rate=case.learning_rate,
            max_grad_norm=case.max_grad_norm,
            views_per_backward=case.views or "auto",
            gradient_checkpointing=case.checkpointing == "both",
            gradient_checkpointing_kwargs={"use_reentrant": False},
            max_steps=(iterations + 1) * case.iterations,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=case.device == "cpu",
            dataloader_pin_memory=False,
        )
        tokenizer = make_tokenizer()
        wrapped = mf.wrap(make_base(case), tokenizer, mask_id=MASK, eos_ids=EOS)
        prompt = " ".join(f"t{token}" for token in make_prompt().tolist())
        self.trainer = RecordingTrainer(
            model=wrapped,
            reward_funcs=[lambda completion_ids, **_: [reward_of_ids(ids) for ids in completion_ids]],
            args=args,
            train_dataset=[{"prompt": prompt}],
            processing_class=tokenizer,
            peft_config=case.lora(),
        )
        self.model: Any = self.trainer.policy.model
        self.model.to(getattr(torch, case.dtype))  # an adapter is made in float32
        self.trainer.remove_callback(PrinterCallback)

    def run(self, begin: Callable[[int], None], end: Callable[[int], None]) -> None:
        """Trains; `begin` and `end` are called around every iteration with its number, 0 for the one that warms up."""
        trainer, whole = self.trainer, self.trainer.decode_config
        cycle = trainer.args.num_iterations

        class Watch(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % cycle == 0:
                    trainer.decode_config = whole if state.global_step else whole.replace(steps=2)
                    begin(state.global_step // cycle)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % cycle == 0:
                    end(state.global_step // cycle - 1)

        trainer.add_callback(Watch())
        trainer.train()


class RecordingTrainer(CJGRPOTrainer):
    """Keeps every loss."""

    losses: list[Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.detach()]
        return loss


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: t0, t1, ..."""
    words = {f"t{token}": token for token in range(VOCAB)}
    model = Tokenizer(WordLevel(words, unk_token="t0"))
    model.pre_tokenizer = WhitespaceSplit()
    names = {"mask_token": f"t{MASK}", "eos_token": f"t{EOS}", "pad_token": f"t{EOS}"}
    return PreTrainedTokenizerFast(tokenizer_object=model, **names)
