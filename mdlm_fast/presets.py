"""The settings of published decoders, by name, as fields of `DecodeConfig`."""

from __future__ import annotations

from typing import Any

_DREAM = {"schedule": "dream", "confidence_from": "tempered"}

#: Lengths are left to the caller except where a method has its own block length.
PRESETS: dict[str, dict[str, Any]] = {
    # LLaDA, arXiv 2502.09992: low-confidence remasking, one block unless block_length says otherwise.
    "llada": {},
    # EOSER and ASS, arXiv 2509.23924.
    "eoser": {"eoser": {}},
    "ass": {"schedule": "ass"},
    "eoser-ass": {"schedule": "ass", "eoser": {}},
    # MDPO and running confidence remasking, arXiv 2508.13148. MDPO trains on every step's predictions.
    "rcr": {"schedule": "linear", "remasking": {}},
    "mdpo": {
        "schedule": "linear",
        "temperature": 0.1,
        "confidence_from": "tempered",
        "score_scope": "masked",
        "record": "full",
    },
    # Fast-dLLM, arXiv 2505.22618, without its caches.
    "fast-dllm": {"select": "threshold", "threshold": 0.9, "block_length": 32},
    "fast-dllm-factor": {"select": "factor", "factor": 1.0, "block_length": 32},
    # Dream, arXiv 2508.15487: its four ways to choose positions.
    "dream-maskgit": {**_DREAM, "confidence": "prob"},
    "dream-margin": {**_DREAM, "confidence": "margin"},
    "dream-entropy": {**_DREAM, "confidence": "neg_entropy"},
    "dream-origin": {**_DREAM, "select": "origin"},
    # Entropy-bounded unmasking, arXiv 2505.24857.
    "entropy-bound": {"select": "entropy_bound", "entropy_bound": 0.1, "confidence": "neg_entropy"},
    # LLaDA2.0, arXiv 2512.15745: all above the threshold if they are at least the schedule's number.
    "llada2": {"select": "quota_threshold", "threshold": 0.95, "block_length": 32},
    # Self-rewarding sequential Monte Carlo, arXiv 2602.01849.
    "smc": {"smc": {}, "temperature": 1.0, "block_length": 32},
}
