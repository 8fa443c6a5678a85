"""Presets of the released trainers that began as copies of d1's: CJ-GRPO, one-step GRPO, d1 itself and DMPO."""

from __future__ import annotations

from typing import Any

from mdlm_fast.rl.preset_parts import (
    ADAM,
    ALL_TOKENS,
    CUT_PROMPTS,
    D1_BEHAVIOUR,
    D1_FORK,
    DROPOUT,
    LOADED,
    LORA_TARGETS,
    MASK_DRAWN,
    MICRO_BATCH,
    NORMALISER,
    PADS,
    SYNC,
    TEMPERATURE,
    Behaviour,
    Pair,
    Setting,
)

_RUN: dict[str, Any] = {
    **ADAM,
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 2,
    "num_generations": 6,
    "num_iterations": 12,
    "num_train_epochs": 10,
    "learning_rate": 3e-6,
    "max_completion_length": 256,
    "diffusion_steps": 128,
    "epsilon": 0.5,
    "beta": 0.04,
}
_LORA = {"r": 128, "alpha": 64}
_PASSES = Behaviour("num_iterations", "12, and 8 on Countdown and Sudoku", "12", "set it by the task")

_CJ = (
    ALL_TOKENS,
    *D1_FORK,
    Setting("old_logprobs", "recompute", "rollout", "the decoder recorded them; a pass over all steps is saved"),
    Behaviour(
        "a step that commits nothing", "0 / 0: the loss is NaN", "no term of the mean over steps", "an empty mean"
    ),
    _PASSES,
    *D1_BEHAVIOUR,
)
_ENDS = Behaviour(
    "end tokens that EOSER discounts",
    "the tokenizer's eos_token_id",
    "every end token of the model",
    "LLaDA ends texts with <|eot_id|> too; decoder_overrides={'eoser': {'eos_ids': ...}} chooses",
)


def _cj(name: str, decoder: str, what: str, extra: tuple[Setting | Behaviour, ...] = (), **settings: Any) -> Pair:
    return Pair(
        name,
        f"CJ-GRPO, {what} (arXiv 2509.23924; yjyddq/EOSER-ASS-RL)",
        "CJGRPOTrainer",
        {**_RUN, "decoder": decoder, **settings},
        (*extra, *_CJ),
        _LORA,
    )


PAIRS = (
    _cj("cj-grpo", "llada", "semi-autoregressive rollouts", block_length=128),
    _cj(
        "cj-grpo-eoser",
        "eoser",
        "EOSER rollouts",
        (
            Setting(
                "decoder_overrides.eoser",
                {"g_min": 0.01, "eos_index": "block"},
                {"g_min": 0.01},
                "the factor grows over all steps; the released code starts anew in every block (alike with one)",
            ),
            _ENDS,
        ),
    ),
    _cj("cj-grpo-ass", "ass", "ASS rollouts", diffusion_steps=None),
    _cj(
        "cj-grpo-eoser-ass",
        "eoser-ass",
        "EOSER and ASS rollouts",
        (_ENDS,),
        diffusion_steps=None,
        decoder_overrides={"eoser": {"g_min": 0.01}},
    ),
    Pair(
        "one-step",
        "One-step GRPO (baseline of arXiv 2509.23924; yjyddq/EOSER-ASS-RL)",
        "OneStepGRPOTrainer",
        {**_RUN, "decoder": "llada", "block_length": 128},
        (
            *D1_FORK,
            Behaviour("beta=0", "fails", "works, without a reference", "the loss stands inside the penalty's branch"),
            _PASSES,
            *D1_BEHAVIOUR,
        ),
        _LORA,
    ),
    Pair(
        "d1",
        "diffu-GRPO (arXiv 2504.12216; dllm-reasoning/d1)",
        "DiffuGRPOTrainer",
        {**_RUN, "decoder": "llada", "block_length": 32, "temperature": 0.9, "p_mask_prompt": 0.15},
        (
            Setting(
                "mask_period",
                6,
                None,
                "masks are picked by the count of micro-batches, so with two of them each sees 6 of the 12, twice",
            ),
            TEMPERATURE,
            *D1_FORK,
            Behaviour(
                "seeds of the masks",
                "one for a batch, one of 4096, and they reset the global generators",
                "of the sequence and the pass, in a stream of their own",
                "rollouts after a mask start from one of 4096 states, and masks depend on the batch",
            ),
            Behaviour(
                "temperature on Sudoku",
                "0.9: a missing backslash drops the script's 0.3",
                "0.9",
                "what the published results were trained with",
            ),
            Behaviour("num_iterations=1 with a penalty", "fails", "works", "a variable that is not set"),
            _PASSES,
            LOADED,
            *D1_BEHAVIOUR,
        ),
        _LORA,
    ),
    Pair(
        "dmpo",
        "DMPO (arXiv 2510.08233; yuchen-zhu-zyc/DMPO)",
        "DMPOTrainer",
        {
            **ADAM,
            "decoder": "llada",
            "decoder_overrides": {"confidence": "random"},
            "eval_decoder_overrides": {"temperature": 0.0, "confidence": "prob"},
            "max_completion_length": 256,
            "block_length": 32,
            "alpha": 0.04,
            "centering": "negative",
            "replicates": 2,
            "mask_ratio_low": 0.1,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_iterations": 8,
            "num_train_epochs": 10,
            "learning_rate": 1e-6,
        },
        (
            Setting(
                "temperature",
                0.0,
                0.5,
                "the weights take a completion for a draw from the policy, with a probability to divide by; the best "
                "tokens in random order are none. 0.5 is the released config's, which the script overrides",
            ),
            Setting(
                "num_generations",
                8,
                16,
                "16 are decoded, but the softmax is over the 8 of a process; weights are shares of the whole group",
            ),
            ALL_TOKENS,
            Setting(
                "mask_ratio_high",
                1.0,
                0.9,
                "the code draws 0.1 + 0.9 u where its comment says up to 0.9; symmetric about 1/2, both canvases of a "
                "pair hide alike",
            ),
            NORMALISER,
            MICRO_BATCH,
            *DROPOUT,
            LORA_TARGETS,
            Behaviour(
                "log-probs of a completion",
                "kept in bfloat16, token by token",
                "float32",
                "the sum of 256 rounded terms puts errors of the size of a nat into an exponent",
            ),
            LOADED,
            MASK_DRAWN,
            PADS,
            CUT_PROMPTS,
            SYNC,
        ),
        _LORA,
    ),
)
