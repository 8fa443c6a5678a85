"""Masked LMs that others trained, from PyPI packages, decode as their authors say.

sapiens 1.0.5 (MIT, Merck): human antibodies, one token an amino acid, with fairseq; doi 10.1080/19420862.2021.2020203.
rxnmapper 0.4.3 (MIT, IBM): chemical reactions as SMILES; doi 10.1126/sciadv.abe4166.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

import mdlm_fast as mf
from mdlm_fast.models import MaskedDiffusionModel, load_model, save_model, wrap

ALPHABET = ["<s>", "<pad>", "</s>", "<unk>", *"ACDEFGHIKLMNPQRSTVWY", "<mask>"]
MASK = ALPHABET.index("<mask>")
HEAVY_MASKED = (
    "**QLV*SGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTA"
    "VYYCARRDYRFDMGFDYWGQGTTVTVSS"
)
HEAVY = "QVQLVQ" + HEAVY_MASKED[6:]
SMILES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations, (
        f"{name} is not installed; `make test` installs it: pip install --no-deps sapiens==1.0.5 rxnmapper==0.4.3"
    )
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def sapiens(tmp_path_factory) -> MaskedDiffusionModel:
    """The heavy-chain model, renamed from fairseq to transformers, saved, and loaded again by us."""
    path = package_folder("sapiens") / "models" / "v1" / "checkpoint_vh.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    config = RobertaConfig(
        vocab_size=25,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=256,
        max_position_embeddings=146,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    renames = [
        (r"^decoder\.lm_head\.weight$", "lm_head.decoder.weight"),
        (r"^decoder\.lm_head\.bias$", "lm_head.decoder.bias"),
        (r"^decoder\.lm_head\.", "lm_head."),
        (r"^decoder\.sentence_encoder\.embed_tokens\.", "roberta.embeddings.word_embeddings."),
        (r"^decoder\.sentence_encoder\.embed_positions\.", "roberta.embeddings.position_embeddings."),
        (r"^decoder\.sentence_encoder\.emb_layer_norm\.", "roberta.embeddings.LayerNorm."),
        (r"^decoder\.sentence_encoder\.layers\.", "roberta.encoder.layer."),
        (r"\.self_attn\.([qkv])_proj\.", r".attention.self.\1."),
        (r"\.self\.q\.", ".self.query."),
        (r"\.self\.k\.", ".self.key."),
        (r"\.self\.v\.", ".self.value."),
        (r"\.self_attn\.out_proj\.", ".attention.output.dense."),
        (r"\.self_attn_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.fc1\.", ".intermediate.dense."),
        (r"\.fc2\.", ".output.dense."),
        (r"\.final_layer_norm\.", ".output.LayerNorm."),
    ]
    renamed = {}
    for key, tensor in state.items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        renamed[key] = tensor
    renamed["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, 128)
    renamed["lm_head.bias"] = renamed["lm_head.decoder.bias"]
    model = RobertaForMaskedLM(config)
    report = model.load_state_dict(renamed, strict=False)
    assert not report.unexpected_keys and not report.missing_keys
    folder = tmp_path_factory.mktemp("sapiens") / "vh"
    save_model(wrap(model.eval(), mask_id=MASK, eos_ids=[]), folder)
    return load_model(folder, device="cpu")


def encode(residues: str) -> torch.Tensor:
    return torch.tensor([[0, *(MASK if r == "*" else ALPHABET.index(r) for r in residues), 2]])


def decode(ids: torch.Tensor) -> str:
    return "".join(ALPHABET[i] for i in ids.tolist() if i > 3)


def test_sapiens_gives_the_numbers_of_its_own_readme(sapiens):
    scores = sapiens.logits(encode(HEAVY_MASKED))[0, 1:6].softmax(-1)
    printed = torch.tensor(
        [
            [0.003272, 0.004147, 0.004011, 0.004590],
            [0.012038, 0.003854, 0.006803, 0.008174],
            [0.003384, 0.003895, 0.003726, 0.004068],
            [0.004612, 0.005325, 0.004443, 0.004641],
            [0.005519, 0.003664, 0.003555, 0.005269],
        ]
    )
    torch.testing.assert_close(scores[:, 4:8], printed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_sapiens_fills_in_its_own_example(sapiens, steps):
    ids = encode(HEAVY_MASKED)
    out = mf.generate(sapiens, ids, gen_length=0, steps=steps, forbid_ids=[0, 1, 2, 3])
    assert decode(out.sequences[0]) == HEAVY
    assert torch.equal(out.sequences[ids != MASK], ids[ids != MASK])


def test_sapiens_recovers_a_sequence_masked_by_half_in_a_padded_batch(sapiens):
    generator = torch.Generator().manual_seed(0)
    whole = encode(HEAVY).repeat(4, 1)
    hidden = torch.rand(whole.shape, generator=generator) < 0.5
    hidden[:, [0, -1]] = False
    ids = torch.where(hidden, MASK, whole)
    out = mf.generate(sapiens, ids, gen_length=0, steps=16, forbid_ids=[0, 1, 2, 3])
    recovered = (out.sequences == whole)[hidden].float().mean()
    assert recovered > 0.7
    left = torch.cat([torch.ones(2, 5, dtype=torch.long), ids[:2]], dim=1)
    right = torch.cat([ids[2:], torch.ones(2, 5, dtype=torch.long)], dim=1)
    padded, real = torch.cat([left, right]), torch.ones(4, ids.shape[1] + 5, dtype=torch.long)
    real[:2, :5] = 0
    real[2:, -5:] = 0
    again = mf.generate(sapiens, padded, real, gen_length=0, steps=16, forbid_ids=[0, 1, 2, 3])
    assert torch.equal(again.sequences[real.bool()].view_as(whole), out.sequences)


def test_rxnmapper_albert_fills_in_reactions():
    folder = package_folder("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    words = (folder / "vocab.txt").read_text().split("\n")
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Split(Regex(SMILES), "removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="[MASK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    model = load_model(folder, device="cpu", tokenizer=tokenizer)
    assert model.mask_id == words.index("[MASK]")
    reactants = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>"
    texts = [f"{reactants}CC(C)[MASK]c1ncccc1F", f"{reactants}CC(C)Sc1ncccc1[MASK]"]
    pieces = [tokenizer.encode(f"[CLS]{text}[SEP]", add_special_tokens=False) for text in texts]
    ids = torch.tensor(pieces)
    out = mf.generate(model, ids, gen_length=0, steps=1)
    filled = [
        words[int(row[place])] for row, place in zip(out.sequences, (ids == model.mask_id).int().argmax(1), strict=True)
    ]
    assert filled == ["S", "F"]
    trajectory = mf.generate(model, ids, gen_length=0, steps=1, record="trajectory").trajectory
    assert trajectory is not None
    assert trajectory.commit_logp[ids == model.mask_id].exp().min() > 0.95
