"""MaskedDiffusionTrainer: rollout, rewards, views, log-probs, loss, in `transformers.Trainer`'s loop.

A method says which rows (`views`), which advantage (`advantages`) and, if it is not the clipped one, which loss of a
token (`token_loss`); the reduction is in the views' weights. Everything else is here and in the files this one calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.ops import HeadGradient
from mdlm_fast.rl import backward, objectives
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.checkpoints import CheckpointedTrainer
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.data import GroupSampler, PromptSet, check_group_sizes, prompt_limit
from mdlm_fast.rl.divergence import naming_rollout
from mdlm_fast.rl.evaluation import evaluate_prompts
from mdlm_fast.rl.metrics import Metrics
from mdlm_fast.rl.packing import PackPlanner
from mdlm_fast.rl.processes import OtherProcessFailed, Processes
from mdlm_fast.rl.producer import Producer
from mdlm_fast.rl.reference_sync import ReferenceSync, trainer_reference
from mdlm_fast.rl.reporting import Reporter
from mdlm_fast.rl.reward_checks import RewardError
from mdlm_fast.rl.rewards import RewardRunner
from mdlm_fast.rl.rollout import RolloutBatch
from mdlm_fast.rl.setup import as_model, place_copy, turn_off_dropout
from mdlm_fast.rl.showing import Showcase
from mdlm_fast.rl.views import View


class MaskedDiffusionTrainer(CheckpointedTrainer):
    """Trains a masked diffusion language model with reinforcement learning; the base of the methods' trainers.

    Args:
        model: a MaskedDiffusionModel, a Hugging Face model, or a path or hub id.
        reward_funcs: one function or several, as TRL's: called with prompts, completions, completion_ids and the data
            set's columns as keywords; each returns a list of numbers or None. Coroutine functions run concurrently.
        args: the method's config.
        train_dataset: a map-style data set with a column `prompt`, plain texts or conversations.
        eval_dataset: the same, for `evaluate`.
        processing_class: the tokenizer; default: the model's.
        peft_config: a peft.LoraConfig, e.g. from `mdlm_fast.rl.lora.lora_config`.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        ValueError, TypeError: anything that cannot work, before the first forward pass, saying what to change.
    """

    config_class: ClassVar[type[RLConfig]] = RLConfig
    #: Whether every pass over a rollout looks at other views of it (random masks).
    views_differ: ClassVar[bool] = False
    #: Whether rewards are of every step's prediction.
    step_rewards: ClassVar[bool] = False
    #: Whether the divergence is measured from the policy that acted instead of a reference.
    kl_to_old: ClassVar[bool] = False
    #: Whether the loss compares new log-probs with those of the policy that acted.
    uses_old: ClassVar[bool] = True

    args: RLConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
        args: RLConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = self.config_class() if args is None else args
        if not isinstance(args, RLConfig):
            raise TypeError(f"args must be a {self.config_class.__name__}, got {type(args).__name__}")
        self.rewards = RewardRunner(reward_funcs, args.reward_weights)
        set_seed(args.seed)  # an adapter's first values are drawn
        self.policy: MaskedDiffusionModel = as_model(model, processing_class, peft_config, args.device)
        tokenizer = processing_class or self.policy.tokenizer
        if args.disable_dropout:
            turn_off_dropout(self.policy.model)
        self._limit = prompt_limit(self.policy, args.max_completion_length, args.max_prompt_length)
        self.prompts = self._prompt_set(train_dataset, "train_dataset", tokenizer)
        evaluated = None if eval_dataset is None else self._prompt_set(eval_dataset, "eval_dataset", tokenizer)
        for checked in (self.prompts, evaluated):
            if checked is not None:
                self.rewards.check_before_training(checked.columns)
        assert args.steps_per_generation is not None
        check_group_sizes(
            args.per_device_train_batch_size, args.steps_per_generation, args.world_size, args.num_generations
        )
        self.decode_config = args.decode_config()
        super().__init__(
            model=self.policy.model,
            args=args,
            data_collator=_as_list,
            train_dataset=self.prompts,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # The loss is already divided by everything it is to be divided by.
        self.model_accepts_loss_kwargs = False
        self.processes = Processes(self.accelerator)
        self.reference = trainer_reference(self.policy, args, args.reference_weight)
        if self.reference.module is not None:
            place_copy(self.reference.module, self.accelerator)
        if args.sync_ref_model:
            self.add_callback(ReferenceSync(self.reference))
        self.head_gradient = HeadGradient()
        self.planner = PackPlanner(args.views_per_backward, self.args.device)
        self.metrics = Metrics(self.args.device)
        self.reporter = Reporter(self.metrics, self.processes, self.rewards.names)
        self.producer = Producer(self)
        self.showcase = Showcase(self)

    def _prompt_set(self, dataset: Any, name: str, tokenizer: Any = None) -> PromptSet:
        tokenizer = self.processing_class if tokenizer is None else tokenizer
        limit, mask_id = self._limit, self.policy.mask_id
        return PromptSet(dataset, tokenizer, max_prompt_length=limit, mask_id=mask_id, name=name)

    # ---- what a method says ------------------------------------------------------------------------------------

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        """The rows of one pass over a chunk of completions, with weights that add up to the method's reduction."""
        raise NotImplementedError

    def advantages(self, rewards: Tensor, groups: Tensor, log_ratio: Tensor | None) -> Tensor:
        """float32 [N] (or [N, S]) from the combined rewards [N] (or [N, S]) of all processes.

        groups: int64 [N]. log_ratio: see `sequence_log_ratio`."""
        return objectives.group_advantages(rewards, groups, scale=self.args.scale_rewards)

    def sequence_log_ratio(self, buffer: RolloutBuffer) -> Tensor | None:
        """float32 [B], log of reference over rollout probability of each completion, for methods whose advantages need
        it."""
        return None

    def token_loss(self, logp: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
        """The policy's loss of each token, float32 [N]."""
        args = self.args
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        return objectives.clipped_policy_loss(logp, old_logp, advantage, args.epsilon, high, args.delta)

    def reward(self, items: list[dict[str, Any]], batch: RolloutBatch) -> Tensor:
        """float32 [B, F] (or [B, S, F]): the reward functions' answers, NaN where one gave None."""
        log = self.reporter
        return self.call_rewards(self.prompts, items, batch, log_extra=log.log_extra, log_metric=log.log_metric)

    def call_rewards(
        self, prompts: PromptSet, items: list[dict[str, Any]], batch: RolloutBatch, **logging: Any
    ) -> Tensor:
        """float32 [B, F], the reward functions' answers to completions of a data set's rows.

        logging: log_extra and log_metric of `RewardRunner`."""
        with self.processes.raising_together():
            return self.rewards(
                prompts=[item["row"]["prompt"] for item in items],
                texts=batch.texts,
                completion_ids=batch.completion_ids,
                columns=prompts.reward_columns(items),
                trainer_state=self.state,
                **logging,
            )

    # ---- transformers.Trainer ----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Batches hold what one process decodes at a time; each comes once for every micro-batch trained on it."""
        assert self.args.steps_per_generation is not None
        return self._get_dataloader(
            dataset=self.prompts,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        assert args.steps_per_generation is not None
        return GroupSampler(
            self.prompts,
            num_generations=args.num_generations,
            generation_batch_size=self._train_batch_size * args.steps_per_generation * args.world_size,
            repeat_count=args.num_iterations * args.steps_per_generation,
            shuffle=args.shuffle_dataset,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: its views, a pack at a time. The first of a cycle decodes and scores what all train on."""
        args = self.args
        assert args.steps_per_generation is not None
        cycle = args.steps_per_generation * args.num_iterations
        self.restore()
        at = self.micro_step % cycle
        if at == 0 or self.buffer is None:
            with naming_rollout(self.policy, optimizer_step=self.state.global_step + 1):
                self.buffer = self.producer.produce(inputs)
        #: Whether nothing was updated since the rollout.
        self.first_pass = at < args.gradient_accumulation_steps
        iteration, micro = divmod(at, args.steps_per_generation)
        first = micro * args.per_device_train_batch_size
        model.train()
        with self.metrics.phase("train"):
            views = self.buffer.micro_batch(iteration, first, args.per_device_train_batch_size)
            loss = backward.accumulate(self, model, self.buffer, views, first)
        self.micro_step += 1
        if self.micro_step % cycle == 0:
            self.showcase.draw(self.buffer)
            self.buffer = None  # a checkpoint between two rollouts need not hold one
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rewards of one completion for each prompt of the evaluation data set (see `mdlm_fast.rl.evaluation`).

        Raises:
            ValueError: there is no evaluation data set. RewardError: a reward function failed."""
        prompts = self.eval_dataset if eval_dataset is None else self._prompt_set(eval_dataset, "eval_dataset")
        if prompts is None:
            raise ValueError("there is no data set to evaluate on: pass eval_dataset= here or to the trainer")
        assert isinstance(prompts, PromptSet)
        try:
            with self.metrics.paused():
                results = evaluate_prompts(self, prompts, metric_key_prefix)
        except (RewardError, OtherProcessFailed) as error:
            if not self.is_in_train:
                raise
            raise self.rescue(error) from error
        self.log(results)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, results)
        return results

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was collected since the last log, averaged over processes."""
        if self.is_in_train and "loss" in logs:
            steps = self.state.global_step - self._flushed_at
            self._flushed_at = self.state.global_step
            logs = {**logs, **self.processes.mean(self.metrics.flush(steps))}
            self.showcase.write()
        super().log(logs, start_time)


def _as_list(items: list[dict[str, Any]]) -> Any:
    """The collator: a batch is the list of its items."""
    return items
