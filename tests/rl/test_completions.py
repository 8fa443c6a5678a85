"""The completions log: TRL's columns and file names, files whole or not at all, a table that shows what was said."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mdlm_fast.rl.completions import CompletionsLog

pq = pytest.importorskip("pyarrow.parquet")
NAN = float("nan")


def screen() -> Console:
    return Console(file=io.StringIO(), width=160)


def shown(log: CompletionsLog) -> str:
    assert log.console is not None and isinstance(log.console.file, io.StringIO)
    return log.console.file.getvalue()


def filled(folder: Path, count: int = 4, printed: int | None = None, **changed: Any) -> CompletionsLog:
    log = CompletionsLog(folder, ["right", "short"], printed, screen())
    arguments: dict[str, Any] = {
        "prompts": [f"prompt {i}" for i in range(count)],
        "completions": [f"completion {i}" for i in range(count)],
        "rewards": torch.tensor([[float(i), NAN if i == 1 else 0.5] for i in range(count)]),
        "advantages": torch.arange(count) / 2 - 0.25,
    }
    log.add(7, **{**arguments, **changed})
    return log


def test_the_file_has_the_columns_of_trl(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", extras={"gold": ["a", "b", None, "d"]}).write(12)
    assert path == tmp_path / "run" / "completions" / "completions_00012.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["step", "prompt", "completion", "right", "short", "gold", "advantage"]
    assert table.to_pydict() == {
        "step": [7] * 4,
        "prompt": [f"prompt {i}" for i in range(4)],
        "completion": [f"completion {i}" for i in range(4)],
        "right": [0.0, 1.0, 2.0, 3.0],
        "short": [0.5, None, 0.5, 0.5],
        "gold": ["a", "b", None, "d"],
        "advantage": [-0.25, 0.25, 0.75, 1.25],
    }


def test_messages_are_kept_as_messages_and_shown_as_text(tmp_path: Path) -> None:
    prompts = [[{"role": "system", "content": "[bold]be brief"}, {"role": "user", "content": "how?"}]]
    completions = [[{"role": "assistant", "content": "like [red]this[/red]"}]]
    log = filled(
        tmp_path, 1, prompts=prompts, completions=completions, rewards=torch.ones(1, 2), advantages=torch.zeros(1)
    )
    path = log.write(0)
    table = pq.read_table(path).to_pydict()
    assert table["prompt"] == prompts and table["completion"] == completions
    text = shown(log)
    for part in ("Step 0: 1 of 1", "system: [bold]be brief", "user: how?", "assistant: like [red]this[/red]", "1.00"):
        assert part in text


def test_batches_add_up_and_columns_may_come_and_go(tmp_path: Path) -> None:
    log = filled(tmp_path, 1, rewards=torch.ones(1, 2), advantages=torch.zeros(1), extras={"a": [1]})
    log.add(8, ["q"], ["r"], torch.zeros(1, 2), torch.ones(1), {"b": [{"x": 1}], "step": ["taken"]})
    table = pq.read_table(log.write(8)).to_pydict()
    assert table["step"] == [7, 8] and table["a"] == [1, None] and table["b"] == [None, {"x": 1}]
    assert table["step (extra)"] == [None, "taken"]


def test_values_of_mixed_types_are_written_as_text(tmp_path: Path) -> None:
    values = [1, "two", None, torch.tensor([3])]
    huge = [2**80, 1, 2, 3]
    table = pq.read_table(filled(tmp_path, extras={"mixed": values, "huge": huge}).write(1)).to_pydict()
    assert table["mixed"] == ["1", "two", None, "[3]"]
    assert table["huge"] == [str(value) for value in huge]


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    log = filled(tmp_path)
    assert log.write(1) is not None
    before = shown(log)
    assert log.write(2) is None and shown(log) == before
    assert [p.name for p in (tmp_path / "completions").iterdir()] == ["completions_00001.parquet"]
    log.add(3, ["q"], ["r"], torch.zeros(1, 2), torch.ones(1))
    assert pq.read_table(log.write(3)).num_rows == 1


@pytest.mark.parametrize(("printed", "expected"), [(None, 9), (20, 9), (9, 9), (4, 4), (1, 1)])
def test_how_many_are_printed(tmp_path: Path, printed: int | None, expected: int) -> None:
    state = random.getstate(), torch.get_rng_state()
    log = filled(tmp_path, 9, printed)
    path = log.write(5)
    lines = [line for line in shown(log).splitlines() if "prompt " in line]
    assert len(lines) == expected and len(set(lines)) == expected
    assert f"Step 5: {expected} of 9 completions" in shown(log)
    assert pq.read_table(path).num_rows == 9
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_no_table_when_none_is_to_be_printed(tmp_path: Path) -> None:
    log = filled(tmp_path, 3, 0)
    assert log.write(1) is not None and shown(log) == ""


def test_long_texts_are_cut_on_the_terminal_only(tmp_path: Path) -> None:
    long = "word " * 1000
    log = filled(tmp_path, 1, completions=[long], rewards=torch.ones(1, 2), advantages=torch.zeros(1))
    path = log.write(1)
    assert shown(log).count("word") < 150 and "..." in shown(log)
    assert pq.read_table(path).to_pydict()["completion"] == [long]


def test_a_failed_write_keeps_the_old_file_and_the_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled(tmp_path)
    path = log.write(1)
    assert path is not None
    old = path.read_bytes()
    log.add(2, ["q"], ["r"], torch.zeros(1, 2), torch.ones(1))
    write_table = pq.write_table

    def full(table: Any, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        log.write(1)
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == old
    monkeypatch.setattr(pq, "write_table", write_table)
    log.write(1)
    assert pq.read_table(path).to_pydict()["prompt"] == ["q"]


def test_lengths_that_do_not_agree_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        filled(tmp_path, 4, completions=["only one"])
