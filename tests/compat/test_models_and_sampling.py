"""The drop-ins on Hugging Face models as they are, and what they draw above temperature 0."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat_oracle import Stub, front_loaded
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mdlm_fast.compat import dream, eoser_ass, fast_dllm, llada, mdpo

MASK, VOCAB = 60, 61
TOKENIZER = SimpleNamespace(eos_token_id=3)
Call = Callable[..., Tensor]

DECODERS: dict[str, Call] = {
    "llada": lambda model, prompt, **k: llada.generate(model, prompt, None, 6, 12, 6, mask_id=MASK, **k),
    "llada guided": lambda model, prompt, **k: llada.generate(
        model, prompt, torch.ones_like(prompt), 6, 12, 12, cfg_scale=1.5, mask_id=MASK, **k
    ),
    "eoser": lambda model, prompt, **k: eoser_ass.eoser_generate(model, prompt, TOKENIZER, 6, 12, 6, mask_id=MASK, **k),
    "eoser ass": lambda model, prompt, **k: eoser_ass.eoser_ass_generate(
        model, prompt, TOKENIZER, 3, 12, 2, mask_id=MASK, **k
    ),
    "rcr": lambda model, prompt, **k: mdpo.diffusion_generate(
        model, prompt, MASK, None, 6, 12, 6, conf_alg="llada", rcr=True, **k
    )[0],
    "margin": lambda model, prompt, **k: mdpo.diffusion_generate(
        model, prompt, MASK, None, 6, 12, 6, conf_alg="topk_margin", **k
    )[0],
    "threshold": lambda model, prompt, **k: fast_dllm.generate(
        model, prompt, 6, 12, 6, mask_id=MASK, threshold=0.2, **k
    )[0],
    "factor": lambda model, prompt, **k: fast_dllm.generate(model, prompt, 6, 12, 6, mask_id=MASK, factor=0.9, **k)[0],
    "dream": lambda model, prompt, **k: dream.diffusion_generate(
        model, prompt, max_new_tokens=12, steps=6, alg="entropy", mask_token_id=MASK, **k
    ),
}


def tiny(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
    }
    config: Any = LlamaConfig(**shape) if kind == "llama" else Qwen2Config(**shape)
    config.is_causal = False
    model = LlamaForCausalLM(config) if kind == "llama" else Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[MASK] = 0.0  # the mask id is never the best, but it is in the normaliser
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_hugging_face_models(decoder: str, kind: str) -> None:
    model = tiny(kind)
    for seed in range(3):
        prompt = torch.randint(0, MASK, (1, 5), generator=torch.Generator().manual_seed(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fused = DECODERS[decoder](model, prompt)
        assert torch.equal(fused, DECODERS[decoder](model, prompt, released=True))
    assert "forward" not in model.lm_head.__dict__  # no patch is left behind


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, released: bool) -> None:
    model = tiny("llama", dtype)
    prompt = torch.randint(0, MASK, (1, 5), generator=torch.Generator().manual_seed(0))
    for name, decoder in DECODERS.items():
        for temperature in (0.0, 0.8):
            torch.manual_seed(1)
            canvas = decoder(model, prompt, temperature=temperature, released=released)
            assert canvas.dtype == torch.int64, name
            if not released:
                assert bool((canvas[:, -12:] != MASK).all()), name


class NoHead(nn.Module):
    """A module that names no output head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, 70, VOCAB, generator=torch.Generator().manual_seed(5)))

    def forward(self, canvas: Tensor, attention_mask: Any = None, positions: Any = None) -> SimpleNamespace:
        whole = canvas.float().mean(1)[:, None, None] * 0.1
        logits = self.table[canvas, torch.arange(canvas.shape[1])] + torch.sin(whole * torch.arange(VOCAB))
        return SimpleNamespace(logits=logits.index_fill(2, torch.tensor([MASK]), -30.0))


@pytest.mark.parametrize("decoder", DECODERS)
def test_modules_without_an_output_head(decoder: str) -> None:
    model, prompt = NoHead(), torch.randint(0, MASK, (1, 5), generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = DECODERS[decoder](model, prompt)
    assert torch.equal(fused, DECODERS[decoder](model, prompt, released=True))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_manual_seed_decides_what_is_drawn(decoder: str, released: bool) -> None:
    model, prompt = tiny("llama"), torch.randint(0, MASK, (1, 5), generator=torch.Generator().manual_seed(2))
    drawn = []
    for seed in (1, 1, 2, 3):
        torch.manual_seed(seed)
        drawn.append(DECODERS[decoder](model, prompt, temperature=1.5, released=released))
    assert torch.equal(drawn[0], drawn[1])
    assert not (torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[0], drawn[3]))


@pytest.mark.parametrize(
    ("decoder", "wide"), [("llada", torch.float64), ("eoser", torch.float32), ("threshold", torch.float64)]
)
def test_released_draws_are_gumbel_noise_over_the_whole_canvas(decoder: str, wide: torch.dtype) -> None:
    model, prompt = Stub(vocab=VOCAB, seed=4, bias={MASK: -40.0, 3: -40.0}), torch.tensor([[1, 2], [4, 5]])
    torch.manual_seed(6)
    if decoder == "threshold":
        canvas = fast_dllm.generate(model, prompt, 4, 8, 4, 0.7, mask_id=MASK, released=True)[0]
    elif decoder == "eoser":
        canvas = eoser_ass.eoser_generate(model, prompt, TOKENIZER, 4, 8, 4, 0.7, mask_id=MASK, released=True)
    else:
        canvas = llada.generate(model, prompt, None, 4, 8, 4, 0.7, mask_id=MASK, released=True)
    torch.manual_seed(6)
    expected = torch.cat([prompt, torch.full((2, 8), MASK)], 1)
    for end in (6, 10):
        for count in front_loaded(4, 2):
            logits = model(expected).logits
            noise = torch.rand(logits.shape, dtype=wide)
            # exp(z) / (-log u)^T in log space: a different road to the same argmax.
            tokens = (logits.to(wide) - 0.7 * torch.log(-torch.log(noise))).argmax(-1)
            sure = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
            for row in range(2):
                places = [place for place in range(end) if expected[row, place] == MASK]
                for place in sorted(places, key=lambda place, row=row, sure=sure: -float(sure[row, place]))[:count]:
                    expected[row, place] = tokens[row, place]
    assert torch.equal(canvas, expected)


def test_fused_draws_follow_the_tempered_distribution() -> None:
    # One step, one position: the token is a draw from softmax(z / T).
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    model = Stub(vocab=4)
    model.tokens, model.places = torch.zeros(97, 12), torch.zeros(300, 12)
    model.bias = dict(enumerate(logits.tolist()))
    prompt = torch.zeros(4000, 0, dtype=torch.long)
    torch.manual_seed(3)
    drawn = llada.generate(model, prompt, None, 1, 1, 1, 0.7, mask_id=9)
    share = torch.softmax(logits / 0.7, 0)
    counts = torch.bincount(drawn[:, 0], minlength=4) / 4000
    assert bool(((counts - share).abs() < 4.5 * (share * (1 - share) / 4000).sqrt()).all())


def test_left_padding_does_not_change_a_draw() -> None:
    model = Stub(vocab=VOCAB, bias={MASK: -40.0})
    model.tokens, model.places = torch.zeros(97, 12), torch.zeros(300, 12)
    model.bias |= {token: 0.1 * token for token in range(MASK)}
    drawn = []
    for pads in (0, 3):
        prompt = torch.tensor([[0] * pads + [5, 6]])
        mask = torch.tensor([[0] * pads + [1, 1]])
        torch.manual_seed(7)
        drawn.append(llada.generate(model, prompt, mask, 4, 8, 4, 1.0, mask_id=MASK)[:, pads:])
    assert torch.equal(*drawn)


def test_ties_are_torchs_with_released() -> None:
    # Every position is equally sure, so torch.topk alone decides which is committed first.
    model = Stub(vocab=VOCAB, bias={MASK: -40.0})
    model.tokens, model.places = torch.zeros(97, 12), torch.zeros(300, 12)
    model.bias |= {5: 3.0}
    prompt = torch.tensor([[1, 2]])
    llada.generate(model, prompt, None, 4, 8, 8, mask_id=MASK, released=True)
    confidence = torch.full((10,), -torch.inf)
    confidence[2:] = torch.softmax(model(prompt).logits[0, 0], 0)[5]
    first = model.calls[1][0][0]
    assert sorted((first[2:] != MASK).nonzero()[:, 0].tolist()) == sorted((confidence.topk(2).indices - 2).tolist())
    model.calls.clear()
    llada.generate(model, prompt, None, 4, 8, 8, mask_id=MASK)
    assert (model.calls[1][0][0, 2:] != MASK).nonzero()[:, 0].tolist() == [0, 1]  # ours: the lowest position
