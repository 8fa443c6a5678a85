"""Problems by task name and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdlm_fast.tasks import TASKS, get_task, load_rows, reward_columns


def test_problems_inside_the_package() -> None:
    assert [len(load_rows(get_task(name))) for name in ("sudoku", "countdown")] == [500, 256]
    assert len(load_rows(get_task("sudoku"), limit=3)) == 3
    row = load_rows(get_task("countdown"), limit=1)[0]
    assert row == {"numbers": [30, 100, 93], "target": 23}


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
def test_tasks_without_problems_ask_for_a_file(name: str) -> None:
    with pytest.raises(ValueError, match=f"task '{name}' has no problems inside the package; pass data="):
        load_rows(get_task(name))


def test_unknown_task_and_bad_limit() -> None:
    with pytest.raises(ValueError, match="task 'chess' is unknown; choose one of sudoku, countdown, gsm8k, math500"):
        get_task("chess")
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_rows(get_task("sudoku"), limit=0)


@pytest.mark.parametrize(
    ("name", "line", "row"),
    [
        ("gsm8k", '{"question": "q", "answer": "w #### 3"}', {"question": "q", "answer": "w #### 3"}),
        ("math500", '{"problem": "q", "answer": "x"}', {"question": "q", "answer": "x"}),
        ("countdown", '{"input": "1,2,3", "output": "6"}', {"numbers": [1, 2, 3], "target": 6}),
        ("countdown", '{"numbers": [1, 2, 3, 4], "target": 10}', {"numbers": [1, 2, 3, 4], "target": 10}),
        ("sudoku", '{"Puzzle": "3102200002100320"}', {"puzzle": "3102200002100320"}),
    ],
)
def test_data_files(tmp_path: Path, name: str, line: str, row: dict[str, object]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"\n{line}\n{line}\n")
    assert load_rows(get_task(name), path) == [row, row] and load_rows(get_task(name), path, limit=1) == [row]
    assert set(reward_columns(get_task(name), [row])) == set(TASKS[name].columns)


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"question": "q"}'])
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "q", "answer": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2: not a gsm8k problem"):
        load_rows(get_task("gsm8k"), path)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no problem"):
        load_rows(get_task("sudoku"), tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        load_rows(get_task("sudoku"), tmp_path / "missing")
