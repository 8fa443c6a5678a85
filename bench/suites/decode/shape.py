"""What is decoded, and the matrix of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

PROMPT = 32
BLOCK = 32
TOKENS_A_STEP = 4
SMALL_VOCAB, LARGE_VOCAB = 1024, 126464

#: Which layouts each system decodes in, by its name.
LAYOUTS = {
    "LLaDA": ("block", "canvas"),
    "EOSER/CJ-GRPO rollout": ("canvas",),
    "Fast-dLLM": ("block",),
    "dInfer, torch.compile": ("block",),
    "Dream": ("canvas",),
    "MDPO": ("block", "canvas"),
}


@dataclass(frozen=True)
class Shape:
    """A decode.

    Attributes:
        decoder: the baseline's name, of LAYOUTS.
        batch: B, prompts.
        generated: G, tokens after each prompt.
        layout: "block", blocks decoded left to right, or "canvas", one block of G.
        temperature: 0 is greedy.
        vocab: V.
        prompt: P, tokens of each prompt.
        block: tokens of a block.
    """

    decoder: str
    batch: int = 1
    generated: int = 64
    layout: str = "block"
    temperature: float = 0.0
    vocab: int = LARGE_VOCAB
    prompt: int = PROMPT
    block: int = BLOCK

    @property
    def steps(self) -> int:
        """Of all blocks together; rules that decide from the scores take as many as they need."""
        return self.generated // TOKENS_A_STEP

    @property
    def block_length(self) -> int:
        return self.block if self.layout == "block" else self.generated

    @property
    def half_done(self) -> Shape:
        """The same decode with the first half of its tokens given: the cost of its first step is that of a mean one."""
        return replace(self, generated=self.generated // 2, prompt=self.prompt + self.generated // 2)

    def case(self) -> dict[str, Any]:
        """As a record has it."""
        case = asdict(self) | {"steps": self.steps}
        del case["block"]  # the same in all
        return case


def shapes(full: bool) -> Iterator[Shape]:
    """The matrix, vocabulary by vocabulary.

    The small set has every system at batch 1 and 4, greedy, 64 tokens of 126,464 ids, and LLaDA's decoder along every
    axis from there.
    """
    if full:
        axes = product((SMALL_VOCAB, LARGE_VOCAB), LAYOUTS.items(), (1, 4, 16), (64, 128, 256), (0.0, 0.7))
        for vocab, (decoder, layouts), batch, generated, temperature in axes:
            for layout in layouts:
                yield Shape(decoder, batch, generated, layout, temperature, vocab)
        return
    for decoder, layouts in LAYOUTS.items():
        yield from (Shape(decoder, batch, layout=layouts[0]) for batch in (1, 4))
    yield Shape("LLaDA", batch=16)
    yield from (Shape("LLaDA", generated=generated) for generated in (128, 256))
    yield Shape("LLaDA", layout="canvas")
    yield Shape("LLaDA", temperature=0.7)
    yield Shape("LLaDA", vocab=SMALL_VOCAB)
