"""Drop-ins for published decoders: their signatures, their returns, their rules, on fused ops.

`llada.generate`; `eoser_ass.generate`, `.eoser_generate`, `.ass_generate`, `.eoser_ass_generate`;
`mdpo.diffusion_generate`; `fast_dllm.generate`; `dream.diffusion_generate`. Each takes a last keyword ``released``:
False runs the fused path, which gives the released tokens at temperature 0 wherever the released ranking is not decided
by rounding; True reproduces the published program in plain PyTorch, ties, dtypes and random numbers included.
"""

from __future__ import annotations

from mdlm_fast.compat import dream, eoser_ass, fast_dllm, llada, mdpo

__all__ = ["dream", "eoser_ass", "fast_dllm", "llada", "mdpo"]
