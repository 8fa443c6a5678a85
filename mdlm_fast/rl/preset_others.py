"""Presets of MDPO, coupled-GRPO and TraceRL."""

from __future__ import annotations

from mdlm_fast.rl.preset_parts import (
    ADAM,
    BFLOAT16,
    CUT_PROMPTS,
    MASK_DRAWN,
    MICRO_BATCH,
    NORMALISER,
    TEMPERATURE,
    Behaviour,
    Pair,
    Setting,
)

PAIRS = (
    Pair(
        "mdpo",
        "MDPO (arXiv 2508.13148; autonomousvision/mdpo)",
        "MDPOTrainer",
        {
            "decoder": "mdpo",
            "max_completion_length": 512,
            "block_length": 512,
            "diffusion_steps": 128,
            "temperature": 0.4,
            "sample_train_steps": 8,
            "num_generations": 4,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 16,
            "num_train_epochs": 1,
            "learning_rate": 7e-7,
            "lr_scheduler_type": "constant",
            "beta": 0.02,
        },
        (
            Setting(
                "logp_temperature",
                0.4 + 2**-7,
                None,
                "the released code adds the dtype's epsilon to the temperature, which is 0.0078 in bfloat16",
            ),
            NORMALISER,
            MICRO_BATCH,
            Behaviour(
                "weights",
                "G/|U| in the policy term alone, confidences in both terms, the sum over the K steps",
                "as the code",
                "it is the published method; length_factor, confidence_weight and step_reduction change it",
            ),
            Behaviour(
                "remasking (RCR), off in the recipe",
                "anywhere on the canvas",
                "off",
                "decoder_overrides={'remasking': {'scope': 'canvas'}} is the released rule; the default is the block",
            ),
            Behaviour(
                "rollouts", "float16 autocast of a bfloat16 model", "in the model's dtype", "one policy, one dtype"
            ),
            Behaviour(
                "optimizer steps under ZeRO-2",
                "each of the K backward passes counts as a micro-batch, so weights move every 16 / K rollouts",
                "one update for each gradient_accumulation_steps rollouts, whatever K",
                "the scheduler and the log counted the latter",
            ),
            Behaviour(
                "group statistics",
                "right for one group a step only",
                "every row with its own group",
                "a broadcast over rows and groups",
            ),
            Behaviour(
                "block length",
                "drawn from 128 and 512 by each process on its own (mixture_data)",
                "block_length for all",
                "a group then compares completions of different decoders",
            ),
            Behaviour(
                "completions a device", "1, the group one a device", "any number", "groups need not span devices"
            ),
            Behaviour("second pass over a rollout", "fails", "works (num_iterations)", "old log-probs are kept"),
            BFLOAT16,
            MASK_DRAWN,
            CUT_PROMPTS,
        ),
    ),
    Pair(
        "coupled",
        "coupled-GRPO (arXiv 2506.20639; apple/ml-diffucoder)",
        "CoupledGRPOTrainer",
        {
            **ADAM,
            "decoder": "dream-entropy",
            "max_completion_length": 256,
            "diffusion_steps": 256,
            "temperature": 1.0,
            "top_p": 0.95,
            "num_generations": 10,
            "per_device_train_batch_size": 5,
            "gradient_accumulation_steps": 2,
            "num_iterations": 2,
            "num_train_epochs": 1,
            "learning_rate": 1e-6,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "beta": 0.01,
            "epsilon": 0.5,
            "sync_ref_model": True,
            "ref_model_sync_steps": 64,
        },
        (
            Setting(
                "coupled_ratio",
                "mixed",
                "per_view",
                "the mixed value is no log-prob: its log ratio is up to 3 times a token's, so clipping is tighter than "
                "epsilon says",
            ),
            Setting(
                "mask_period",
                1,
                None,
                "masks are picked by the count of micro-batches, so with two of them each sees one of the two, twice",
            ),
            NORMALISER,
            MICRO_BATCH,
            Behaviour(
                "seeds of the masks",
                "one for a batch, and they reset Python's, NumPy's and torch's generators",
                "of the sequence and the pass, in a stream of their own",
                "masks depend on the batch, and what follows on the mask",
            ),
            Behaviour(
                "rows through the LM head", "three canvases whole", "two rows a token", "the same loss, less memory"
            ),
            Behaviour("logged KL and clip ratio", "times the batch size", "means", "a broadcast over the batch"),
            BFLOAT16,
            MASK_DRAWN,
            CUT_PROMPTS,
        ),
    ),
    Pair(
        "trace",
        "TraceRL for full attention (arXiv 2509.06949; Gen-Verse/dLLM-RL)",
        "TraceTrainer",
        {
            "decoder": "llada",
            "max_completion_length": 512,
            "block_length": 32,
            "diffusion_steps": 512,
            "temperature": 0.8,
            "shrink": 8,
            "num_generations": 8,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 8,
            "learning_rate": 1e-6,
            "beta": 0.01,
            "epsilon": 0.2,
        },
        (
            Setting(
                "kl_reduction", "sum", "mean", "summed, the penalty of a group of steps grows with its number of tokens"
            ),
            TEMPERATURE,
            NORMALISER,
            Behaviour(
                "loss",
                "divided by the accumulation steps twice; the first update comes one micro-batch early, and what is "
                "left at the end is dropped",
                "divided once, every row is used",
                "an update is that of its batch",
            ),
            Behaviour(
                "tokens trained on",
                "the text tokenised again",
                "the tokens that were decoded",
                "a text may have other tokens, and the record of steps then belongs to others",
            ),
            Behaviour(
                "rollouts",
                "key-value caches, approximate",
                "exact",
                "training scores exact states; importance_sampling_cap is for approximate rollouts",
            ),
            Behaviour(
                "prompts with a mean reward below 0.2 or above 0.8", "left out", "kept", "filter the data set instead"
            ),
            Behaviour(
                "answers within 5 tokens of the limit", "count as wrong", "as the reward says", "the reward's decision"
            ),
            Behaviour("grouping of steps", "steps that commit tokens", "step numbers", "the same where all steps do"),
            BFLOAT16,
            MASK_DRAWN,
        ),
    ),
)
