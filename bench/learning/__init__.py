"""Whether the trainers learn: runs on the built-in puzzle model, each small enough for one core and a few minutes.

python -m bench.learning list
python -m bench.learning run --all --workers 2
python -m bench.learning run --only eoser-ass/sudoku/cj-grpo/1e-4/0
python -m bench.learning report
"""
