"""The Triton Philox: published known answers and equality with mdlm_fast.rng, under Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mdlm_fast import rng

PROGRAM = Path(__file__).with_name("philox_program.py")

# Random123's published vectors for philox4x32 with 10 rounds (its file kat_vectors): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def run(mode: str, given: dict[str, Any], interpret: bool) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    # A later Triton changes the default of this one and warns until it is set.
    environment.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    result = subprocess.run(
        [sys.executable, str(PROGRAM), mode], input=json.dumps(given), env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_interpreted_philox_has_the_published_answers_and_the_bits_of_rng() -> None:
    generator = torch.Generator().manual_seed(20)
    n = 601  # not a multiple of the block
    seeds = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)
    positions = torch.randint(0, 2**31 - 1, (n,), generator=generator)
    steps = torch.randint(0, 4096, (n,), generator=generator)
    given = {
        "words": [words(counter) + words(key) for counter, key, _ in KNOWN_ANSWERS],
        "seeds": seeds.tolist(),
        "positions": positions.tolist(),
        "steps": steps.tolist(),
        "stream": rng.STREAMS["position_choice"],
    }
    result = run("interpret", given, interpret=True)
    assert result["words"] == [words(answer) for _, _, answer in KNOWN_ANSWERS]
    assert result["uniform"] == rng.uniform(seeds, positions, steps, "position_choice").tolist()


def test_philox_compiles_for_gpus_without_local_memory() -> None:
    ptx = run("compile", {}, interpret=False)
    assert list(ptx) == ["80", "90", "100"]
    for capability, text in ptx.items():
        assert f".target sm_{capability}" in text
        assert ".local" not in text  # registers only: nothing spilled at this level
        assert "mul.hi.u32" in text or "mul.wide.u32" in text  # one wide multiply, not a 64-bit emulation
