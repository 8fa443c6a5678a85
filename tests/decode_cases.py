"""Configurations and prompts that several decode tests share."""

from __future__ import annotations

import torch
from hash_scorer import VOCAB

import mdlm_fast as mf

EMPTY = torch.zeros(1, 0, dtype=torch.int64)


def random_prompts(count: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(2, VOCAB - 1, (count, length), generator=torch.Generator().manual_seed(seed))


CONFIGS = {
    "quota": mf.DecodeConfig(gen_length=12, steps=6, temperature=0.9, seed=3),
    "blocks": mf.DecodeConfig(gen_length=12, steps=6, block_length=4, eoser=mf.EOSER(), seed=3),
    "threshold": mf.DecodeConfig(gen_length=12, select="threshold", threshold=0.4, block_length=6, seed=3),
    "sampled threshold": mf.DecodeConfig(gen_length=12, select="threshold", threshold=0.3, temperature=1.2, seed=3),
    "remasking": mf.DecodeConfig(gen_length=12, steps=6, remasking=mf.RCR(), temperature=0.7, seed=3),
    "alg_temp": mf.DecodeConfig(gen_length=12, steps=6, schedule="dream", alg_temp=0.5, temperature=0.7, seed=3),
    "origin": mf.DecodeConfig.preset("dream-origin", gen_length=12, steps=6, temperature=0.7, seed=3),
    "stop": mf.DecodeConfig(gen_length=12, block_length=3, stop_at_eos=True, temperature=1.0, seed=3),
    "remasking stop": mf.DecodeConfig(
        gen_length=12, block_length=6, steps=8, stop_at_eos=True, remasking=mf.RCR(), temperature=1.0, seed=6
    ),
    "guidance": mf.DecodeConfig(gen_length=12, steps=6, cfg_scale=1.0, temperature=0.5, seed=3),
}
