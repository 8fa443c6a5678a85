"""Options that several commands of `mdlm-fast` share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="builtin:puzzles, a local checkpoint directory, or a hub id.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the model loader's choice.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: the checkpoint's.")]
PresetOption = Annotated[
    str,
    typer.Option("--preset", "-p", help="Decoder: llada, eoser, ass, eoser-ass, rcr, fast-dllm, dream-entropy, ..."),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="FIELD=VALUE",
        help="Any field of DecodeConfig, e.g. -s steps=8 or -s 'eoser={\"g_min\": 0.1}'. May be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def parse_setting(setting: str, known: str) -> tuple[str, Any]:
    """FIELD=VALUE as (field, value); the value is JSON, or plain text where it is not.

    known: the fields there are, for the message.

    Raises:
        ValueError: there is no '='.
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--set {setting!r}: write FIELD=VALUE with a field of {known}")
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text
