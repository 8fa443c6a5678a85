"""Prompts: what data sets are accepted, how they become ids, and which process draws which completion."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from mdlm_fast.models import load_model
from mdlm_fast.rl.data import GroupSampler, PromptSet, answer_backslide, check_group_sizes, prompt_limit
from mdlm_fast.tasks.evaluation import encode_prompts
from mdlm_fast.tasks.vocabulary import MASK_ID, PAD_ID, build_tokenizer, encode

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m.content }} {% endfor %}{% if add_generation_prompt %}:{% endif %}"
)
TEXTS = ["countdown 1 2 3 to 6 :", "sudoku 1", "to : + -"]


def tokenizer(template: str | None = TEMPLATE) -> Any:
    made = build_tokenizer()
    made.chat_template = template
    return made


def rows(*prompts: Any, **columns: list[Any]) -> list[dict[str, Any]]:
    return [{"prompt": p, **{name: values[i] for name, values in columns.items()}} for i, p in enumerate(prompts)]


def chat(*contents: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": content} for content in contents]


class MapStyle:
    """Neither a list nor torch's Dataset; raises for an index outside, as databases do."""

    def __init__(self, data: list[dict[str, Any]]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index]


# ---- data sets -------------------------------------------------------------------------------------------------------


def hub_dataset(data: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(data)


@pytest.mark.parametrize("kind", [list, tuple, MapStyle, hub_dataset])
def test_kinds_of_data_sets_give_the_same_items(kind: Any) -> None:
    prompts = PromptSet(kind(rows(*TEXTS, answer=[5, 6, 7], completion=["a", "b", "c"])), tokenizer())
    assert len(prompts) == 3 and not prompts.conversational
    assert prompts.columns == ("answer",)
    assert prompts.longest == 7
    items = [prompts[2, 1, 40], prompts[0]]
    assert items[0] == {
        "row": {"prompt": TEXTS[2], "answer": 7, "completion": "c"},
        "index": 2,
        "sample": 1,
        "generation": 40,
    }
    assert (items[1]["index"], items[1]["sample"], items[1]["generation"]) == (0, 0, 0)
    assert prompts.reward_columns(items) == {"answer": [7, 5]}


@pytest.mark.parametrize("kind", [list, hub_dataset])
def test_encoding_pads_on_the_left(kind: Any) -> None:
    plain = PromptSet(kind(rows(*TEXTS)), tokenizer())
    ids, mask = plain.encode([plain[i] for i in (1, 0, 2)])
    expected = [encode(TEXTS[i]) for i in (1, 0, 2)]
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.tolist() == [[PAD_ID] * (7 - len(row)) + row for row in expected]
    assert mask.tolist() == [[0] * (7 - len(row)) + [1] * len(row) for row in expected]

    messages = PromptSet(kind(rows(*(chat(text[:-1].strip()) for text in TEXTS))), tokenizer())
    assert messages.conversational and messages.longest == 7
    ids, mask = messages.encode([messages[0], messages[2]])
    assert ids.tolist() == [encode("countdown 1 2 3 to 6 :"), [PAD_ID] * 3 + encode("to : + :")]
    assert mask.sum(1).tolist() == [7, 4]


def test_prompts_are_encoded_as_in_evaluation() -> None:
    model = load_model("builtin:puzzles")
    prompts = PromptSet(rows(*TEXTS), model.tokenizer)
    for ours, theirs in zip(
        prompts.encode([prompts[i] for i in range(3)]), encode_prompts(model, list(TEXTS)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_last_message_of_the_assistant_is_continued() -> None:
    prompts = PromptSet(rows(chat("1 2") + chat("3 +", role="assistant")), tokenizer())
    assert prompts.encode([prompts[0]])[0].tolist() == [encode("1 2 3 +")]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(rows(*TEXTS))


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (None, TypeError, "train_dataset is missing"),
        ("org/name", TypeError, "is a str, not a data set of rows; load it first"),
        ({"train": rows("1")}, TypeError, r"is a dict.*one split of it, such as dataset\['train'\]"),
        (Stream(), TypeError, "is a Stream: prompts are drawn by number.*turn a stream into a list"),
        (iter(rows("1")), TypeError, "prompts are drawn by number"),
        ([], ValueError, "train_dataset is empty"),
        ([{"prompt": "1"}, "2"], ValueError, "row 1: it is a str, not a dict"),
        ([{"text": "1"}], ValueError, r"row 0: there is no 'prompt' \(columns: 'text'\)"),
        (rows("1", "2", None), ValueError, "row 2: there is no 'prompt'"),
        (rows("1", " \n"), ValueError, "row 1: the prompt is empty; remove the row"),
        (rows(chat("1"), chat("1", "")), ValueError, "row 1: the prompt's last message is empty"),
        (rows(chat("1"), []), ValueError, "row 1: the prompt's last message is empty"),
        (rows("1", chat("1")), ValueError, "row 1: the prompt is a list of messages, that of row 0 is a text"),
        (rows(chat("1"), "1"), ValueError, "row 1: the prompt is a text, that of row 0 is a list of messages"),
        (rows("1", 5), ValueError, "row 1: the prompt is a int, that of row 0 is a text"),
        (rows(5), ValueError, "row 0: the prompt must be a text or a list of"),
        (rows([{"role": "user"}]), ValueError, "row 0: the prompt must be a text or a list of"),
        (rows([{"role": "user", "content": [{"type": "image"}]}]), ValueError, "row 0: the prompt must be a text or"),
        (rows(chat("1"), chat("1", role="bad")), ValueError, r"row 1: the chat template refuses .*no such role"),
        (rows("1", "to 1 2 3 4 5"), ValueError, "row 1: the prompt has 6 tokens, more than the limit of 5; shorten it"),
        (rows("1", "1 <mask>"), ValueError, "row 1: the prompt holds the mask token, id 1"),
        (rows("1", "1 hello"), ValueError, "row 1: the prompt holds words that the tokenizer does not know"),
        ([{"prompt": "1", "a": 1}, {"prompt": "1"}], ValueError, "row 1: it lacks the column 'a' that row 0 has"),
        (rows("1", trainer_state=[1]), ValueError, "column 'trainer_state'.*rename the column"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PromptSet(dataset, tokenizer(), max_prompt_length=5, mask_id=MASK_ID)


def test_row_numbers_are_right_beyond_the_first_block_and_errors_are_chained() -> None:
    with pytest.raises(ValueError, match=r"^held_out, row 2500: the prompt has 2 tokens"):
        PromptSet(rows(*["1"] * 2500, "1 2", "1"), tokenizer(), max_prompt_length=1, name="held_out")

    class Broken(MapStyle):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"prompt": "1"} if index < 2 else {}["gone"]

    with pytest.raises(ValueError, match=r"row 2: it cannot be read \(KeyError: 'gone'\)") as caught:
        PromptSet(Broken(rows(*TEXTS)), tokenizer())
    assert isinstance(caught.value.__cause__, KeyError)


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(
        ValueError, match="row 0: the prompt is a list of messages, but the tokenizer has no chat templ"
    ):
        PromptSet(rows(chat("1")), tokenizer(None))
    assert len(PromptSet(rows("1"), tokenizer(None))) == 1


def test_streams_and_splits_of_the_hub_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(rows(*TEXTS))
    with pytest.raises(TypeError, match="is a IterableDataset: prompts are drawn by number"):
        PromptSet(dataset.to_iterable_dataset(), tokenizer())
    with pytest.raises(TypeError, match=r"is a DatasetDict.*dataset\['train'\]"):
        PromptSet(datasets.DatasetDict(train=dataset), tokenizer())


def test_the_limit_of_prompts_comes_from_the_model() -> None:
    model = load_model("builtin:puzzles")
    positions = model.model.config.max_position_embeddings
    assert prompt_limit(model, 24) == positions - 24
    assert prompt_limit(model, 24, 30) == 30
    with pytest.raises(ValueError, match=f"max_completion_length={positions} leaves no room for a prompt"):
        prompt_limit(model, positions)
    with pytest.raises(ValueError, match=f"max_prompt_length={positions - 23} and max_completion_length=24 exceed"):
        prompt_limit(model, 24, positions - 23)


def test_the_limit_counts_learned_positions_first_and_may_be_absent() -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    from mdlm_fast.models import wrap

    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    config.max_position_embeddings = 40  # two of them stand before the first token
    model = wrap(RobertaForMaskedLM(config), mask_id=3, eos_ids=(2,))
    assert prompt_limit(model, 8) == 30
    model.model = torch.nn.Identity()  # says nothing about its length
    assert prompt_limit(model, 8) is None and prompt_limit(model, 8, 7) == 7


# ---- groups ----------------------------------------------------------------------------------------------------------


def sampler_of(count: int, **changed: Any) -> GroupSampler:
    prompts = PromptSet(rows(*[str(i) for i in range(count)]), tokenizer())
    settings: dict[str, Any] = {"num_generations": 3, "generation_batch_size": 12, "repeat_count": 2, "seed": 5}
    return GroupSampler(prompts, **{**settings, **changed})


def test_the_order_of_keys_by_hand() -> None:
    sampler = sampler_of(5, num_generations=2, generation_batch_size=4, repeat_count=3, shuffle=False)
    first = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    second = [(2, 0, 1), (2, 1, 1), (3, 0, 1), (3, 1, 1)]
    assert list(sampler) == first * 3 + second * 3  # prompt 4 does not fill a generation batch
    sampler.set_epoch(2)
    assert [generation for _, _, generation in sampler] == [4] * 12 + [5] * 12


@pytest.mark.parametrize("count", [4, 7, 9])
def test_the_order_is_that_of_trl(count: int) -> None:
    theirs = pytest.importorskip("trl.trainer.utils").RepeatSampler
    sampler = sampler_of(count, shuffle=False)
    expected = theirs(range(count), mini_repeat_count=3, batch_size=4, repeat_count=2, shuffle=False)
    assert [index for index, _, _ in sampler] == list(expected)


@pytest.mark.parametrize(
    ("world", "per_device", "steps", "iterations", "group", "count"),
    [
        (1, 4, 2, 1, 4, 13),
        (2, 3, 2, 2, 4, 9),
        (3, 2, 2, 3, 4, 12),
        (3, 4, 1, 2, 6, 7),
        (2, 1, 1, 1, 2, 3),
        (3, 5, 1, 2, 3, 8),
    ],
)
def test_every_process_gets_its_part(
    world: int, per_device: int, steps: int, iterations: int, group: int, count: int
) -> None:
    """Simulated as accelerate shards it: groups may span processes, their union must still be whole."""
    size = check_group_sizes(per_device, steps, world, group)
    sampler = sampler_of(
        count, num_generations=group, generation_batch_size=size, repeat_count=iterations * steps, seed=count
    )
    local = per_device * steps
    batches = [
        list(BatchSamplerShard(BatchSampler(sampler, local, drop_last=False), world, process))
        for process in range(world)
    ]
    generations = count // (size // group)
    assert {len(own) for own in batches} == {generations * iterations * steps}
    assert len(sampler) == sum(len(batch) for own in batches for batch in own)
    seen: Counter[int] = Counter()
    decoded: list[tuple[int, int, int]] = []
    for micro, parts in enumerate(zip(*batches, strict=True)):
        assert all(len(part) == local for part in parts)
        generation, repeat = divmod(micro, iterations * steps)
        keys = [key for part in parts for key in part]
        if repeat:
            assert keys == decoded
            continue
        decoded = keys
        assert {number for _, _, number in keys} == {generation}
        samples: dict[int, set[int]] = {}
        for index, sample, _ in keys:
            samples.setdefault(index, set()).add(sample)
        assert list(samples.values()) == [set(range(group))] * (size // group)
        seen.update(list(samples))
    assert set(seen.values()) == {1} and len(seen) == generations * (size // group)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int, int]]:
        sampler = sampler_of(40, seed=seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch)
        return list(sampler)

    def indices(seed: int, epoch: int) -> list[int]:
        return [index for index, _, _ in order(seed, epoch)]

    assert order(3, 1) == order(3, 1)
    assert len({tuple(indices(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert sorted(indices(3, 1)) == sorted(indices(4, 0))
    before = torch.get_rng_state()
    list(sampler_of(40))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_resumed_run_draws_what_the_uninterrupted_one_would(world: int) -> None:
    """With accelerate's own loaders: the second epoch, whole and from its middle in a new process."""

    def loader(process: int) -> Any:
        sampler = sampler_of(30, generation_batch_size=6 * world, num_generations=2)
        plain = DataLoader(sampler.prompts, batch_size=6, sampler=sampler, collate_fn=list)
        return prepare_data_loader(plain, num_processes=world, process_index=process, put_on_device=False)

    def keys(batches: Any) -> list[list[tuple[int, int, int]]]:
        return [[(item["index"], item["sample"], item["generation"]) for item in batch] for batch in batches]

    for process in range(world):
        whole = loader(process)
        first, second = keys(whole), keys(whole)  # accelerate counts epochs by itself
        assert first != second and len(first) == len(second)
        resumed = skip_first_batches(loader(process), 3)
        resumed.set_epoch(1)
        assert keys(resumed) == second[3:]


def test_group_sizes() -> None:
    assert check_group_sizes(4, 2, 3, 6) == 24
    with pytest.raises(ValueError, match=r"num_generations=5 does not fit a generation batch of 12.*: groups must be"):
        check_group_sizes(2, 2, 3, 5)
    with pytest.raises(ValueError, match=r"it can be 2, 3, 4, 6, 12$"):
        check_group_sizes(2, 2, 3, 5)
    with pytest.raises(ValueError, match=r"num_generations=1 .* compare the completions of a prompt; it can be 2, 4$"):
        check_group_sizes(4, 1, 1, 1)
    with pytest.raises(ValueError, match=r"make the batch larger than 1"):
        check_group_sizes(1, 1, 1, 2)


def test_too_few_prompts_for_a_generation_batch() -> None:
    with pytest.raises(ValueError, match=r"3 prompts, but a generation batch takes 4 \(12 completions, 3 of each\)"):
        sampler_of(3)


# ---- answer backslide ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("correct", [1.0, 0.5])
def test_answer_backslide(seed: int, correct: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 3, (40, 1 + seed * 2), generator=generator) / 2
    rewards[torch.rand(rewards.shape, generator=generator) < 0.1] = torch.nan
    expected = [any(r >= correct for r in row[:-1]) and row[-1] < correct for row in rewards.tolist()]
    assert answer_backslide(rewards, correct).tolist() == expected
    assert answer_backslide(torch.tensor([[1.0, torch.nan]])).tolist() == [False]
