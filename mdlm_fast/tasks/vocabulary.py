"""The word-level vocabulary of the built-in puzzle model.

Every whole integer from 0 to ``MAX_INTEGER`` is one token, so a worked Countdown answer such as
``30 + 93 = 123 ; 123 - 100 = 23`` is eleven tokens. Sudoku cells use the same integers (0 is a blank).
Texts are sequences of these words separated by single spaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

MAX_INTEGER = 399
SPECIALS = ("<pad>", "<mask>", "<eos>")
WORDS = ("sudoku", "countdown", "to", ":", "+", "-", "*", "/", "=", ";", "(", ")")
TOKENS: tuple[str, ...] = SPECIALS + WORDS + tuple(str(n) for n in range(MAX_INTEGER + 1))
TOKEN_IDS: dict[str, int] = {token: i for i, token in enumerate(TOKENS)}
PAD_ID, MASK_ID, EOS_ID = (TOKEN_IDS[t] for t in SPECIALS)
INTEGER_OFFSET = TOKEN_IDS["0"]
VOCAB_SIZE = len(TOKENS)


def encode(text: str) -> list[int]:
    """Token ids of a text of words separated by white space.

    Raises:
        ValueError: a word is not in the vocabulary.
    """
    ids = []
    for word in text.split():
        if word not in TOKEN_IDS:
            raise ValueError(
                f"text holds the word {word!r}, which is not in the puzzle vocabulary; known are the integers 0 to "
                f"{MAX_INTEGER} and {' '.join(WORDS)}, separated by spaces"
            )
        ids.append(TOKEN_IDS[word])
    return ids


def decode(ids: Sequence[int]) -> str:
    """The text of token ids up to the first EOS, other special tokens left out."""
    words = []
    for i in ids:
        if i == EOS_ID:
            break
        if i >= len(SPECIALS):
            words.append(TOKENS[i])
    return " ".join(words)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same vocabulary as a Hugging Face tokenizer (WordLevel on white space)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel(dict(TOKEN_IDS), unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<pad>",  # unknown words become padding, which no prompt holds, so callers can refuse them
        mask_token="<mask>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
