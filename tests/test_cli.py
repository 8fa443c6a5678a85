"""The command line: what it prints, what a program can read, and how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

import mdlm_fast
from mdlm_fast.cli import main
from mdlm_fast.tasks import countdown_test_puzzles, sudoku_prompt, sudoku_test_puzzles

PUZZLES = Path(mdlm_fast.__file__).parent / "data" / "puzzles"
COMMANDS = ("demo", "generate", "eval", "pretrain", "train", "estimate", "doctor")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that must fail."""
    status, out, err = run(capsys, *arguments)
    assert status != 0
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1
    assert err.startswith("mdlm-fast: error: ")
    return err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"mdlm-fast {mdlm_fast.__version__}\n", "")
    for arguments in (["--help"], []):
        status, out, _ = run(capsys, *arguments)
        assert status == 0
        assert all(command in out for command in COMMANDS)
    for command in COMMANDS:
        status, out, err = run(capsys, command, "--help")
        assert (status, err) == (0, "")
        assert f"mdlm-fast {command}" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["bogus"], "bogus"),
        (["generate", "--bogus"], "--bogus"),
        (["eval"], "task"),
        (["eval", "chess"], "chess"),
        (["eval", "sudoku", "--limit", "0"], "0"),
        (["generate", "sudoku :", "--preset", "nothing"], "nothing"),
        (["generate", "sudoku :", "-s", "steps"], "FIELD=VALUE"),
        (["generate", "sudoku :", "-s", "colour=3"], "colour"),
        (["generate", "sudoku :", "-s", "steps=5", "-s", "num_blocks=2"], "steps=5"),
        (["generate", "sudoku :", "-s", "temperature=hot"], "hot"),
        (["generate", "sudoku :", "--model", "builtin:chess"], "builtin:chess"),
        (["generate", "sudoku :", "--model", "./absent/folder"], "absent/folder"),
        (["generate", "sudoku :", "--dtype", "float3"], "float3"),
        (["generate", "sudoku :", "--device", "abacus"], "abacus"),
        (["generate", "play chess"], "play chess"),
        (["demo", "--output", "/absent/folder/picture.png"], "/absent/folder"),
        (["demo", "--puzzles", "1000"], "1000"),
        (["pretrain", "--folder", "absent", "--hidden-size", "7"], "hidden_size"),
        (["pretrain", "--bogus"], "--bogus"),
        (["pretrain", "--steps", "many"], "many"),
        (["pretrain", "--folder", __file__], "test_cli.py"),
        (["eval", "sudoku", "--task", "countdown"], "one task"),
        (["eval", "sudoku", "--data", "absent.jsonl"], "error: absent.jsonl: No such file"),
        (["generate", "sudoku :", "--chat"], "--chat"),
        (["generate", "sudoku :", "-s", 'eoser={"gamma": 1}'], "'gamma' is not one of its fields: g_min"),
    ],
)
def test_errors_are_one_line_naming_the_value(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in fails(capsys, *arguments)


def test_damaged_checkpoint_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab')
    assert "config.json" in fails(capsys, "generate", "a", "--model", str(tmp_path))


def test_weights_of_another_architecture_are_one_line(tmp_path: Path) -> None:
    folder = shutil.copytree(PUZZLES, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2", "architectures": []}))
    command = [sys.executable, "-m", "mdlm_fast.cli", "generate", "a", "--model", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)  # its log is written to the true one
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "do not fit its config.json" in result.stderr


def test_damaged_tokenizer_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shutil.copytree(PUZZLES, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text("{")
    for arguments in (["generate", "a"], ["eval", "sudoku"]):
        error = fails(capsys, *arguments, "--model", str(folder))
        assert "has no tokenizer" in error and "cannot be read" in error


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="nothing"):
        main(["--debug", "generate", "sudoku :", "--preset", "nothing"])


def test_interrupt_is_a_status_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mdlm_fast.doctor.report", interrupted)
    assert run(capsys, "doctor") == (130, "", "")


def test_generate_prints_texts_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, target = countdown_test_puzzles()[0]
    prompts = [sudoku_prompt(sudoku_test_puzzles()[0]), f"countdown {' '.join(map(str, numbers))} to {target} :"]
    status, out, err = run(capsys, "generate", *prompts, "-p", "eoser", "-s", 'eoser={"g_min": 0.2}')
    assert (status, err) == (0, "")
    texts = out.splitlines()
    assert len(texts) == 2
    assert len(texts[0].split()) == 16  # a Sudoku answer: this model has learned at least its form

    monkeypatch.setattr("sys.stdin", StringIO("\n".join(prompts) + "\n"))
    status, out, _ = run(capsys, "generate", "-p", "eoser", "-s", 'eoser={"g_min": 0.2}', "--json")
    result = json.loads(out)
    assert status == 0
    assert result["outputs"] == [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    assert result["model"] == "builtin:puzzles"
    assert result["stats"]["forwards"] == 24
    monkeypatch.setattr("sys.stdin", StringIO("\n"))
    assert "no prompt" in fails(capsys, "generate")


def test_eval_prints_accuracy_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "eval", "sudoku", "--limit", "8", "--json", "-p", "ass")
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert result["task"] == "sudoku" and result["preset"] == "ass" and result["problems"] == 8
    assert result["accuracy"] == result["solved"] / 8
    status, out, _ = run(capsys, "eval", "--task", "sudoku", "--limit", "8", "-p", "ass")
    assert f"{result['accuracy']:.4f}" in next(line for line in out.splitlines() if line.startswith("accuracy"))


def test_doctor_says_what_is_there_and_why_not_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert status == 0
    backends = {backend["name"]: backend for backend in found["backends"]}
    assert backends["reference"]["available"]
    assert all(backend["available"] or backend["reason"] for backend in backends.values())
    if backends["cpp"]["available"]:
        assert found["cpu"]["instructions"] in ("amx", "avx512", "avx2", "portable")
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    for word in ("python", "torch", "triton", "nvcc", "threads", "instructions", "reference"):
        assert word in out


def test_demo_json_has_the_table_and_the_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    status, out, err = run(capsys, "demo", "--puzzles", "2", "--output", str(picture), "--json")
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert Path(summary["picture"]) == picture and picture.read_bytes().startswith(b"\x89PNG")
    rows = {row["decoder"]: row for row in summary["results"]}
    assert list(rows) == ["LLaDA", "EOSER", "RCR", "LLaDA, 4 steps", "ASS", "EOSER + ASS"]
    for name in ("LLaDA", "EOSER"):
        assert (rows[name]["forwards"], rows[name]["tokens_per_forward"]) == (24, 1.0)
    for name in ("LLaDA, 4 steps", "ASS", "EOSER + ASS"):
        assert (rows[name]["forwards"], rows[name]["tokens_per_forward"]) == (4, 6.0)
    assert all(0 <= row["sudoku_solved"] <= 2 and row["seconds"] > 0 for row in rows.values())


def test_demo_without_a_terminal_prints_lines_without_control_codes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mdlm_fast.cli", "demo", "--puzzles", "1", "--output", str(tmp_path / "p.png")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    last = [line for line in result.stdout.splitlines() if line.startswith("pass  24")]
    assert len(last) == 2 and all("·" not in line for line in last)
    assert "EOSER + ASS" in result.stdout
    assert str(tmp_path / "p.png") in result.stdout


def test_input_that_is_no_text_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    error = fails(capsys, "eval", "sudoku", "--data", str(tmp_path / "bytes.jsonl"))
    assert "bytes.jsonl', line 1: not a sudoku problem" in error
    command = [sys.executable, "-m", "mdlm_fast.cli", "generate"]
    result = subprocess.run(command, input=b"\xff\xfe\n", capture_output=True, cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.startswith(b"mdlm-fast: error: standard input is not UTF-8 text")
    assert result.stderr.count(b"\n") == 1


def test_installed_command_fails_with_a_status(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("mdlm-fast")), "generate", "--bogus"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "mdlm-fast: error: No such option: --bogus (try --help)\n"
