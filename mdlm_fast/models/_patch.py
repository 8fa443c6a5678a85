"""An instance patch of one module's forward, and the reading of a model's output."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mdlm_fast.models._introspect import unwrapped

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()
_KNOWN_TO_END_WITH_THE_HEAD = {
    "LlamaForCausalLM": "transformers.models.llama.modeling_llama",
    "Qwen2ForCausalLM": "transformers.models.qwen2.modeling_qwen2",
}


def module_lock(module: nn.Module) -> threading.RLock:
    """The lock that serialises patched calls of `module`, whatever wrapper they come through."""
    with _LOCKS_GUARD:
        lock = _LOCKS.get(module)
        if lock is None:
            lock = _LOCKS[module] = threading.RLock()
        return lock


@contextmanager
def patched_forward(module: nn.Module, replacement: Callable[..., Tensor]) -> Iterator[None]:
    """Let `module(...)` run `replacement(original_forward, *args, **kwargs)` in this thread until the block ends.

    The patch sits in the instance's `__dict__` behind the module's own `__call__`, so its hooks still run (that is
    where FSDP and ZeRO gather the weight). Other threads keep the original forward. What was there before, a patch
    of somebody else's included, is put back on the way out, also after an exception.
    """
    owner = threading.get_ident()
    original = module.forward
    had_own = "forward" in module.__dict__

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        if threading.get_ident() != owner:
            return original(*args, **kwargs)
        return replacement(original, *args, **kwargs)

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had_own:
            module.__dict__["forward"] = original
        else:
            del module.__dict__["forward"]


def output_logits(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, an object or mapping with `logits`, or a tuple led by them.

    Raises:
        TypeError: none of these.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__} without logits; return a tensor [B, L, V], an object with "
            "`.logits`, or a tuple that starts with them"
        )
    return logits


def output_embeddings(model: Any) -> Any:
    """What `model.get_output_embeddings()` returns; None where the model has no such method or no such module.

    transformers' base class raises NotImplementedError, or AttributeError, for a body without a head.
    """
    getter = getattr(model, "get_output_embeddings", None)
    try:
        return getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        return None


def find_head(model: Any) -> nn.Module | None:
    """The module `model` names as its output head, or None if it names none that maps hidden states to logits.

    A weight-tied LLaDA returns its input embedding there, which maps ids to vectors, not vectors to logits: None.
    """
    head = output_embeddings(model)
    if not isinstance(head, nn.Module) or isinstance(head, nn.Embedding):
        return None
    return head


def is_plain_linear(head: nn.Module) -> bool:
    """Whether `head` computes exactly `F.linear(x, weight, bias)`: an `nn.Linear` whose forward nobody replaced."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in head.__dict__


def needs_no_probe(model: Any, head: nn.Module) -> bool:
    """Whether `model` is a native Llama or Qwen2, untouched, whose forward ends with its plain linear head.

    Adapters inside the layers (PEFT) leave that as it is."""
    model = unwrapped(model)
    path = _KNOWN_TO_END_WITH_THE_HEAD.get(type(model).__name__)
    own_class = type(model).__module__ == path and getattr(type(model).forward, "__module__", None) == path
    touched = own_class and ("forward" in model.__dict__ or bool(model._forward_hooks))
    return own_class and not touched and is_plain_linear(head)


def can_fuse(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the fused LM head may stand in for `F.linear` on these operands, here and now."""
    plain = all(type(t) in (Tensor, nn.Parameter) for t in (hidden, weight))
    same = weight.dtype == hidden.dtype and weight.device == hidden.device
    floating = hidden.dtype in (torch.float32, torch.bfloat16, torch.float16)
    same_bias = bias is None or (bias.dtype == hidden.dtype and type(bias) in (Tensor, nn.Parameter))
    return plain and same and floating and same_bias and not torch.is_autocast_enabled(hidden.device.type)
