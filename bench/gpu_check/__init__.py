"""Checks and measurements of the GPU backends, in one run: see `python -m bench.gpu_check --help`."""
