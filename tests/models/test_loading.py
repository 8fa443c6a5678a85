"""load_model and save_model: native checkpoints, and one clear error for everything that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import mdlm_fast
from mdlm_fast.models import hub, load_model, save_model, wrap

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "initializer_range": 0.3,
}
NATIVE: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, is_causal=False)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, is_causal=False)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "bert with its other head": lambda: BertForPreTraining(BertConfig(**SIZES)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SIZES, embedding_size=8)),
}


def words(size: int = 40) -> PreTrainedTokenizerFast:
    vocab = {"[MASK]": 3, "[EOS]": 4} | {f"w{i}": i for i in range(size) if i not in (3, 4)}
    backend = Tokenizer(WordLevel(vocab, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", eos_token="[EOS]", unk_token="w0")


@pytest.mark.parametrize("family", NATIVE)
def test_native_checkpoint_round_trip(family, tmp_path):
    torch.manual_seed(1)
    model = NATIVE[family]().eval()
    model.save_pretrained(tmp_path / "m", max_shard_size="10KB")
    words().save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors.index.json").is_file()
    loaded = load_model(tmp_path / "m", device="cpu")
    ids = torch.randint(0, 40, (2, 7))
    output = model(ids)
    expected = output.logits if "logits" in output else output.prediction_logits
    assert torch.equal(loaded.logits(ids), expected)
    assert loaded.mask_id == 3 and 4 in loaded.eos_ids and loaded.attention == "full"
    assert loaded.tokenizer.decode([7, 8]) == "w7 w8"
    again = load_model(save_model(loaded, tmp_path / "again"), device="cpu", dtype=torch.float64)
    assert again.dtype == torch.float64
    torch.testing.assert_close(again.logits(ids).float(), expected, rtol=1e-4, atol=1e-5)
    assert again.tokenizer.mask_token_id == 3


def test_what_the_folder_says_goes_before_what_is_found(tmp_path):
    model = wrap(NATIVE["llama"](), words(38), mask_id=9, eos_ids=[], shift=True, vocab_limit=37, settings={"a": [1]})
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", device="cpu", requires_grad=True)
    assert (loaded.mask_id, loaded.eos_ids, loaded.shift, loaded.vocab_limit) == (9, (), True, 37)
    assert loaded.settings == {"a": [1]}
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_saving_replaces_a_model_whole_and_nothing_else(tmp_path, monkeypatch):
    first, second = (wrap(NATIVE[name](), mask_id=3) for name in ("llama", "qwen2"))
    target = tmp_path / "deep" / "m"
    save_model(first, target)
    (target / "left over").write_text("from before")
    monkeypatch.setattr(type(second.model), "save_pretrained", _fails_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_model(second, target)
    assert json.loads((target / "config.json").read_text())["model_type"] == "llama"
    monkeypatch.undo()
    save_model(second, target)
    assert json.loads((target / "config.json").read_text())["model_type"] == "qwen2"
    assert not (target / "left over").exists()
    assert [p.name for p in target.parent.iterdir()] == ["m"]
    other = tmp_path / "notes"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a model folder"):
        save_model(first, other)
    with pytest.raises(FileExistsError):
        save_model(first, other / "diary.txt")
    assert (other / "diary.txt").read_text() == "mine"


def _fails_half_way(self: Any, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    raise OSError("disk full")


# --------------------------------------------------------------------------------------------------- what can be wrong


@pytest.fixture
def folder(llada, tmp_path) -> Path:
    return llada.write(tmp_path / "m", *llada.make())


def edit(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def test_missing_folders_and_files(folder, tmp_path):
    for name in (str(tmp_path / "nothing"), "./no/such/place", "nothing"):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            load_model(name)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_model(folder / "config.json")
    with pytest.raises(FileNotFoundError, match="'builtin:chess' is not a built-in model; there is builtin:puzzles"):
        load_model("builtin:chess")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor pytorch_model.bin"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        load_model(folder)


def test_a_missing_shard_is_named(llada, tmp_path):
    folder = llada.write(tmp_path / "m", *llada.make(), "sharded")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load_model(folder)


def test_missing_unexpected_and_misshapen_weights_are_named(folder):
    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.transformer.blocks.1.attn_out.weight"]
        weights["model.transformer.wpe.weight"] = torch.zeros(3)
        weights["model.transformer.ln_f.weight"] = torch.zeros(47)

    edit(folder, change)
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "missing: model.layers.1.self_attn.o_proj.weight;" in message
    assert "unexpected: model.transformer.wpe.weight" in message
    assert "model.transformer.ln_f.weight is (47,), the config says (48,)" in message


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_native_weights_that_do_not_fit_are_named(family, tmp_path):
    model = NATIVE[family]()
    model.save_pretrained(tmp_path / "m")
    norm = next(n for n, p in model.named_parameters() if p.ndim == 1)
    key = next(n for n in load_file(tmp_path / "m" / "model.safetensors") if n == norm)
    edit(tmp_path / "m", lambda w: w.pop(key))
    with pytest.raises(ValueError, match=f"missing: {key}"):
        load_model(tmp_path / "m")
    edit(tmp_path / "m", lambda w: w.update({key: torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"wrongly shaped: .* is \(5,\), the config says \(16,\)"):
        load_model(tmp_path / "m")
    if family == "llama":
        edit(tmp_path / "m", lambda w: w.update({key: torch.ones(16), "extra": torch.zeros(1)}))
        with pytest.raises(ValueError, match="unexpected: extra"):
            load_model(tmp_path / "m")


@pytest.mark.parametrize("native", [False, True])
def test_damaged_weights(folder, native):
    if native:
        NATIVE["llama"]().save_pretrained(folder)
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
            load_model(folder)


def test_pickles_that_hold_more_than_tensors_are_not_run(llada, tmp_path):
    folder = llada.write(tmp_path / "m", *llada.make(), "bin")
    marker = tmp_path / "ran"
    torch.save({"x": _Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_model(folder)
    assert not marker.exists()
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors, got list"):
        load_model(folder)


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt_diffusion"},
            "model_type='gpt_diffusion' is not a model this package knows; it brings its own code",
        ),
        ({"model_type": ..., "auto_map": ...}, "model_type=None is not a model this package knows$"),
        ({"block_type": "sequential"}, "block_type='sequential' is not supported"),
        ({"scale_logits": True}, "scale_logits=True is not supported"),
        ({"d_model": ...}, "d_model must be a positive integer, got None"),
        ({"n_heads": 5}, "d_model=48 is not a multiple of n_heads=5"),
        ({"n_kv_heads": 4}, "n_heads=6 is not a multiple of n_kv_heads=4"),
        ({"n_heads": 0}, "n_heads must be a positive integer, got 0"),
        ({"embedding_size": 80}, "embedding_size=80 is smaller than vocab_size=96"),
        ({"torch_dtype": "int8"}, "config.json: dtype='int8' is not a floating-point torch dtype"),
        ({"mask_token_id": ...}, "mask_id is unknown"),
        ({"mask_token_id": 96}, "mask_id=96 is not an id the model can read"),
    ],
)
def test_configs_that_cannot_be_loaded(folder, changes, message):
    configure(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_broken_json_and_wrong_arguments(folder):
    with pytest.raises(ValueError, match="dtype='bf17' is not a floating-point torch dtype"):
        load_model(folder, dtype="bf17")
    with pytest.raises(ValueError, match="device='tpu9' is not a torch device"):
        load_model(folder, device="tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            load_model(folder, device="cuda")
    (folder / "tokenizer.json").write_text("{")
    with pytest.warns(RuntimeWarning, match=r"the tokenizer in .* cannot be read"):
        assert load_model(folder, device="cpu").tokenizer is None
    given = load_model(folder, device="cpu", tokenizer=words(), mask_id=11, eos_ids=[12], shift=True)
    assert (given.tokenizer.mask_token_id, given.mask_id, given.eos_ids, given.shift) == (3, 11, (12,), True)
    (folder / "config.json").write_text("{,}")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        load_model(folder)


def test_hub_errors_become_one_message(monkeypatch):
    def offline(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("cannot find the files")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        ConnectionError, match="'GSAI-ML/LLaDA-8B-Instruct' is not a local folder, and the Hugging Face hub"
    ):
        load_model("GSAI-ML/LLaDA-8B-Instruct")


def test_hub_id_is_downloaded_and_loaded(folder, monkeypatch):
    asked: list[Any] = []

    def deliver(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, "*.bin" in allow_patterns, "*.py" in allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", deliver)
    assert mdlm_fast.load_model("owner/name", device="cpu").mask_id == 90
    assert asked == [("owner/name", False, False)]
    assert huggingface_hub.snapshot_download is not deliver
