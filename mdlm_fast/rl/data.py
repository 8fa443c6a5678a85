"""Prompts: a data set checked before training, turned into token ids, and drawn in groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.models._introspect import max_length
from mdlm_fast.rl.data_checks import check_columns, check_kind, check_prompt, check_tokens, read_row
from mdlm_fast.rng import derive_seed
from mdlm_fast.tasks.evaluation import encode_texts

Prompt: TypeAlias = str | list[dict[str, str]]
Item: TypeAlias = dict[str, Any]

UNUSED_COLUMNS = ("prompt", "completion", "completion_ids")  # not passed to rewards, as in TRL
_ROWS_AT_ONCE = 1024  # texts tokenised in one call


class PromptSet(Dataset[Item]):
    """A data set of prompts, every row checked, under the keys that `GroupSampler` draws.

    Attributes:
        conversational: prompts are lists of messages, not texts.
        columns: names of the columns that reward functions get.
        longest: tokens of the longest prompt.
        epoch: what samplers shuffle by.

    Args:
        dataset: a `datasets.Dataset`, a list of dicts, or any object with ``__len__`` and ``__getitem__`` that gives
            dicts. Every row holds ``prompt``, a text or a list of ``{"role", "content"}`` messages.
        tokenizer: texts are tokenised without added special tokens; messages go through its chat template, with the
            prompt for the assistant's turn (a last message of the assistant is continued).
        max_prompt_length: longest prompt in tokens, see `prompt_limit`; None: no limit.
        mask_id: the mask token, which no prompt may hold.
        name: in messages.

    Raises:
        TypeError: `dataset` is no map-style data set. ValueError: it has no row, or a row that cannot be used; the
            message gives the row number (from 0) and what to change.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        *,
        max_prompt_length: int | None = None,
        mask_id: int | None = None,
        name: str = "train_dataset",
    ) -> None:
        check_kind(dataset, name)
        self.dataset = dataset
        self.tokenizer = tokenizer
        first = read_row(dataset, 0, name)
        self.conversational = not isinstance(first["prompt"], str)
        self.columns = tuple(column for column in first if column not in UNUSED_COLUMNS)
        check_columns(self.columns, name)
        self.longest = 0
        self.epoch = 0
        for start in range(0, len(dataset), _ROWS_AT_ONCE):
            numbers = range(start, min(start + _ROWS_AT_ONCE, len(dataset)))
            rows = tokenizer([self._checked_text(n, name) for n in numbers], add_special_tokens=False)["input_ids"]
            for number, ids in zip(numbers, rows, strict=True):
                check_tokens(ids, tokenizer, max_prompt_length, mask_id, f"{name}, row {number}")
                self.longest = max(self.longest, len(ids))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int, int]) -> Item:
        """{"row": dict, "index": its number, "sample": number of the completion in its group, "generation": running
        number of the rollout}. A plain index is sample 0 of rollout 0, for evaluation."""
        index, sample, generation = key if isinstance(key, tuple) else (key, 0, 0)
        return {"row": dict(self.dataset[index]), "index": index, "sample": sample, "generation": generation}

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the samplers that draw from this data set."""
        self.epoch = epoch

    def encode(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of the items' prompts, int64 [B, P] each, on the CPU, padded on the left."""
        return encode_texts(self.tokenizer, [self.text(item["row"]["prompt"]) for item in items])

    def text(self, prompt: Prompt) -> str:
        """The text that is tokenised: the prompt itself, or its messages in the chat template."""
        if isinstance(prompt, str):
            return prompt
        unfinished = prompt[-1]["role"] == "assistant"
        text: str = self.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=not unfinished, continue_final_message=unfinished
        )
        return text

    def reward_columns(self, items: Sequence[Item]) -> dict[str, list[Any]]:
        """The columns of some items, as keyword arguments of reward functions."""
        return {column: [item["row"][column] for item in items] for column in self.columns}

    def _checked_text(self, number: int, name: str) -> str:
        where = f"{name}, row {number}"
        row = read_row(self.dataset, number, name)
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise ValueError(f"{where}: it lacks the column {missing[0]!r} that row 0 has")
        check_prompt(row["prompt"], self.conversational, where)
        if self.conversational and getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"{where}: the prompt is a list of messages, but the tokenizer has no chat template; give prompts as "
                "texts, or set tokenizer.chat_template"
            )
        try:
            return self.text(row["prompt"])
        except Exception as error:  # templates raise what they like
            raise ValueError(f"{where}: the chat template refuses the messages ({error})") from error


class GroupSampler(Sampler[tuple[int, int, int]]):
    """Prompts in random order, each as often as it has completions, every generation batch as often as it is used.

    Draws keys (index, sample, generation) of `PromptSet`. A generation batch holds num_generations completions of each
    of its prompts, and comes `repeat_count` times in a row (TRL's scheme): a loader with batches of
    per_device_train_batch_size * steps_per_generation keys yields one batch for each micro-batch of training, and the
    first of every `repeat_count` is decoded. Of W processes, accelerate gives each every W-th batch, so a generation
    batch is cut into W runs of consecutive keys, and a group may span processes. An incomplete last generation batch is
    left out, so all processes get equally many batches, all full.

    The order is a function of (seed, epoch). The epoch is kept in the data set, as accelerate's loader sets that of
    the sampler or, where it skips batches after a resume on several processes, only that of the data set.

    Args:
        prompts: the data set.
        num_generations: completions of each prompt.
        generation_batch_size: completions of a generation batch, over all processes; see `check_group_sizes`.
        repeat_count: num_iterations * steps_per_generation.
        seed: of the order.
        shuffle: False: the order of the data set.

    Raises:
        ValueError: the data set has too few prompts for one generation batch.
    """

    def __init__(
        self,
        prompts: PromptSet,
        *,
        num_generations: int,
        generation_batch_size: int,
        repeat_count: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.prompts_per_generation = generation_batch_size // num_generations
        if len(prompts) < self.prompts_per_generation:
            raise ValueError(
                f"the data set has {len(prompts)} prompts, but a generation batch takes {self.prompts_per_generation} "
                f"({generation_batch_size} completions, {num_generations} of each); add prompts, raise num_generations "
                "or lower per_device_train_batch_size or steps_per_generation"
            )
        self.prompts = prompts
        self.num_generations = num_generations
        self.repeat_count = repeat_count
        self.seed = seed
        self.shuffle = shuffle

    @property
    def generations(self) -> int:
        """Generation batches of an epoch."""
        return len(self.prompts) // self.prompts_per_generation

    def __len__(self) -> int:
        return self.generations * self.repeat_count * self.prompts_per_generation * self.num_generations

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch = self.prompts.epoch
        order = list(range(len(self.prompts)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(len(order), generator=generator).tolist()
        for number in range(self.generations):
            start = number * self.prompts_per_generation
            chosen = order[start : start + self.prompts_per_generation]
            generation = epoch * self.generations + number
            for _ in range(self.repeat_count):
                for index in chosen:
                    for sample in range(self.num_generations):
                        yield index, sample, generation

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration draws."""
        self.prompts.set_epoch(epoch)


def check_group_sizes(
    per_device_train_batch_size: int, steps_per_generation: int, world_size: int, num_generations: int
) -> int:
    """Completions of a generation batch, over all processes.

    Raises:
        ValueError: num_generations is below 2 or does not divide the generation batch; the message lists what does.
    """
    batch = per_device_train_batch_size * steps_per_generation * world_size
    if num_generations >= 2 and batch % num_generations == 0:
        return batch
    fitting = ", ".join(str(size) for size in range(2, batch + 1) if batch % size == 0)
    why = "groups must be whole" if num_generations >= 2 else "advantages compare the completions of a prompt"
    raise ValueError(
        f"num_generations={num_generations} does not fit a generation batch of {batch} completions "
        f"(per_device_train_batch_size={per_device_train_batch_size} * steps_per_generation={steps_per_generation} * "
        f"{world_size} processes): {why}; " + (f"it can be {fitting}" if fitting else "make the batch larger than 1")
    )


def prompt_limit(
    model: MaskedDiffusionModel, max_completion_length: int, max_prompt_length: int | None = None
) -> int | None:
    """Longest prompt in tokens: `max_prompt_length`, by default what the model's positions leave beside a completion.

    Returns:
        None where neither the user nor the model sets a limit.

    Raises:
        ValueError: the model has no room for a completion, or for a prompt of `max_prompt_length` besides.
    """
    config = getattr(model.model, "config", None)
    stated = [getattr(config, field, None) for field in ("max_position_embeddings", "max_sequence_length")]
    positions = next((count for count in (max_length(model.model), *stated) if count is not None), None)
    if positions is None:
        return max_prompt_length
    room = positions - max_completion_length
    if room < 1:
        raise ValueError(
            f"max_completion_length={max_completion_length} leaves no room for a prompt: the model was built for "
            f"{positions} positions; lower it"
        )
    if max_prompt_length is not None and max_prompt_length > room:
        raise ValueError(
            f"max_prompt_length={max_prompt_length} and max_completion_length={max_completion_length} exceed the "
            f"{positions} positions that the model was built for; lower one of them"
        )
    return room if max_prompt_length is None else max_prompt_length


def answer_backslide(step_rewards: Tensor, correct: float = 1.0) -> Tensor:
    """Whether some earlier step's answer was right and the final one is wrong: MDPO's filter of training prompts.

    Args:
        step_rewards: float [B, S], NaN for an answer that was not scored, which counts as neither.
        correct: reward from which on an answer is right.

    Returns:
        bool [B].

    Source: MDPO (arXiv 2508.13148).
    """
    return (step_rewards[:, :-1] >= correct).any(1) & (step_rewards[:, -1] < correct)
