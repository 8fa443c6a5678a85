"""``mdlm-fast pretrain``: trains the built-in puzzle model."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import torch

from .pretraining.config import PretrainConfig
from .pretraining.training import train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mdlm-fast pretrain")
    parser.add_argument("--folder", type=Path, default=Path("pretrain-run"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stop-after", type=int, default=None)
    parser.add_argument("--monitor-every", type=int, default=500)
    for field in fields(PretrainConfig):
        kind = type(field.default)
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind if kind is not bool else int, default=None)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    overrides = {f.name: getattr(args, f.name) for f in fields(PretrainConfig) if getattr(args, f.name) is not None}
    config = replace(PretrainConfig(), **overrides)
    train(config, args.folder, stop_after=args.stop_after, monitor_every=args.monitor_every)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
