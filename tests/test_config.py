"""DecodeConfig: defaults, presets, blocks, and a message that says what to change for every bad combination."""

import pytest
import torch

import mdlm_fast as mf
from mdlm_fast.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_construct_and_take_overrides(name: str) -> None:
    config = mf.DecodeConfig.preset(name, gen_length=64, seed=3)
    assert (config.gen_length, config.seed) == (64, 3)
    assert sum(size for size, _ in config.blocks()) == 64


def test_presets_replace_the_rival_field() -> None:
    assert mf.DecodeConfig.preset("fast-dllm", num_blocks=2).blocks() == [(64, 64), (64, 64)]
    assert mf.DecodeConfig.preset("rcr", remasking=mf.RCR(scope="canvas")).remasking.scope == "canvas"
    config = mf.DecodeConfig(block_length=32).replace(num_blocks=2)
    assert config.block_length is None and config.blocks()[0][0] == 64
    assert mf.DecodeConfig(seed=1).replace(seeds=[1, 2]).seed is None


def test_blocks() -> None:
    assert mf.DecodeConfig(gen_length=10, block_length=4).blocks() == [(4, 4), (4, 4), (2, 4)]
    assert mf.DecodeConfig(gen_length=10, block_length=4, steps=6).blocks() == [(4, 2), (4, 2), (2, 2)]
    assert mf.DecodeConfig(gen_length=10, steps=3).blocks() == [(10, 3)]
    assert mf.DecodeConfig(gen_length=128, schedule="ass", num_blocks=4).blocks() == [
        (15, 4),
        (16, 1),
        (32, 1),
        (65, 1),
    ]
    assert mf.DecodeConfig(gen_length=0, steps=5).blocks() == [(0, 5)]
    assert mf.DecodeConfig(gen_length=128, schedule="ass", steps=7).total_steps == 7


def test_values_are_plain_and_hashable() -> None:
    config = mf.DecodeConfig(temperature=torch.tensor([0.0, 1.0]), seeds=torch.tensor([1, 2]), stop_strings="end")
    assert config.temperature == (0.0, 1.0) and config.seeds == (1, 2) and config.stop_strings == ("end",)
    assert hash(config) == hash(config.replace()) and config == config.replace()
    assert config.samples and not mf.DecodeConfig().samples
    with pytest.raises(AttributeError):
        config.steps = 3


BAD = [
    ({"select": "best"}, "select='best': choose one of quota"),
    ({"confidence": "entropy"}, "confidence='entropy': choose one of"),
    ({"confidence_from": "T"}, "confidence_from='T'"),
    ({"score_scope": "all"}, "score_scope='all'"),
    ({"record": "yes"}, "record='yes'"),
    ({"cache": "dual"}, "cache='dual': key-value caches are not available yet; set cache=None"),
    ({"gen_length": -1}, "gen_length=-1 must be at least 0"),
    ({"gen_length": 40000}, "gen_length=40000.*at most 32767 steps"),
    ({"steps": 0}, "steps=0 must be at least 1"),
    ({"block_length": 0}, "block_length=0 must be at least 1"),
    ({"block_length": 4, "num_blocks": 2}, "both set the blocks: give one"),
    ({"gen_length": 0}, "gen_length=0 has no length to derive the number of steps from: give steps"),
    ({"gen_length": 0, "steps": 2, "block_length": 4}, "leave block_length and num_blocks out"),
    ({"gen_length": 0, "select": "threshold", "threshold": 0.5, "eoser": mf.EOSER()}, "give steps"),
    ({"gen_length": 12, "block_length": 4, "steps": 8}, "steps=8 must be a multiple of the number of blocks, 3"),
    ({"gen_length": 4, "num_blocks": 5}, "num_blocks=5 is more than gen_length=4"),
    ({"gen_length": 9, "num_blocks": 6}, "num_blocks=6 does not fit gen_length=9.*set block_length instead"),
    ({"schedule": "sine"}, "unknown schedule 'sine'"),
    ({"schedule": "ass", "block_length": 32}, "schedule='ass' sets its block sizes; give num_blocks instead"),
    ({"schedule": "ass", "steps": 8}, "takes floor.log2.gen_length.. = 7 steps for gen_length=128; leave steps out"),
    ({"schedule": "ass", "num_blocks": 9}, "num_blocks=9"),
    ({"schedule": "ass", "select": "threshold", "threshold": 0.5}, "does not follow schedule='ass'"),
    ({"select": "threshold"}, "select='threshold' needs threshold: give threshold="),
    ({"select": "factor"}, "needs factor"),
    ({"threshold": 0.5}, "threshold=0.5 has no effect with select='quota': set select='threshold'"),
    ({"select": "threshold", "threshold": float("nan")}, "threshold=nan"),
    ({"select": "factor", "factor": 1.0, "confidence": "margin"}, "set confidence='prob', not 'margin'"),
    ({"select": "entropy_bound", "entropy_bound": 0.1}, "set confidence='neg_entropy', not 'prob'"),
    ({"select": "threshold", "threshold": 0.5, "confidence": "random"}, "means nothing"),
    ({"select": "origin"}, "set schedule='dream', not 'uniform'"),
    ({"alg_temp": -0.1}, "alg_temp=-0.1 must be at least 0"),
    ({"alg_temp": 0.1, "select": "threshold", "threshold": 0.5}, "alg_temp=0.1.*set select='quota'"),
    ({"remasking": mf.RCR(), "select": "threshold", "threshold": 0.5}, "remasking follows a schedule"),
    ({"remasking": mf.RCR(), "alg_temp": 0.5}, "set it to 0"),
    ({"eoser": mf.EOSER(), "confidence": "random"}, "remove eoser"),
    ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
    ({"temperature": (0.5, float("inf"))}, "temperature=inf"),
    ({"top_k": 0}, "top_k=0 must be at least 1"),
    ({"top_p": 0.0}, "top_p=0 leaves no token"),
    ({"top_p": 1.5}, r"top_p=1.5 must be in \[0, 1\]"),
    ({"cfg_scale": -1.0}, "cfg_scale=-1.0"),
    ({"vocab_limit": 0}, "vocab_limit=0"),
    ({"forbid_ids": (-2,)}, "forbid_ids holds -2"),
    ({"seed": 1, "seeds": (1,)}, "give one of them"),
    ({"seeds": (1,), "row_ids": (1,)}, "give one of them"),
    ({"smc": mf.SMC(4)}, "set a temperature above 0"),
    ({"smc": mf.SMC(4), "temperature": 1.0, "max_batch": 3}, "max_batch=3 is below smc.particles=4"),
    ({"num_return_sequences": 0}, "num_return_sequences=0"),
    ({"max_batch": 0}, "max_batch=0"),
    ({"stop_strings": ("",)}, "give non-empty strings"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_combinations_fail_at_construction(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mf.DecodeConfig(**values)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: mf.EOSER(g_min=0.9, g_max=0.5), ValueError, "g_min=0.9 is above g_max=0.5"),
        (lambda: mf.EOSER(g_min=-0.1), ValueError, "EOSER.g_min=-0.1"),
        (lambda: mf.EOSER(eos_index="step"), ValueError, "EOSER.eos_index='step'"),
        (lambda: mf.EOSER(eos_ids=()), ValueError, "at least one token id"),
        (lambda: mf.RCR(running="mean"), ValueError, "RCR.running='mean'"),
        (lambda: mf.RCR(scope="all"), ValueError, "RCR.scope='all'"),
        (lambda: mf.SMC(0), ValueError, "SMC.particles=0"),
        (lambda: mf.SMC(resampling="residual"), ValueError, "SMC.resampling='residual'"),
        (lambda: mf.SMC(threshold=2), ValueError, "SMC.threshold=2"),
        (lambda: mf.DecodeConfig(steps=2.5), TypeError, "steps must be an integer, got 2.5"),
        (lambda: mf.DecodeConfig(temperature="hot"), TypeError, "temperature must be a number"),
        (lambda: mf.DecodeConfig(schedule=3), TypeError, "schedule must be a string"),
        (lambda: mf.DecodeConfig(seed="x"), TypeError, "seed must be an integer"),
        (lambda: mf.DecodeConfig(eoser=True), TypeError, "eoser must be None or mdlm_fast.EOSER.*got True"),
        (lambda: mf.DecodeConfig(remasking="rcr"), TypeError, "remasking must be None or mdlm_fast.RCR.*got 'rcr'"),
        (lambda: mf.DecodeConfig(smc=4), TypeError, "smc must be None or mdlm_fast.SMC.*got 4"),
        (lambda: mf.DecodeConfig(token_hook=3), TypeError, "token_hook must be callable"),
        (lambda: mf.DecodeConfig(streamer=3), TypeError, "streamer must be callable or have put and end"),
        (lambda: mf.DecodeConfig.preset("lada"), ValueError, "unknown preset 'lada'; choose one of"),
    ],
)
def test_bad_parts(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
