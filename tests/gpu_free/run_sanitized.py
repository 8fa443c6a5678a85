"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the CPU:

    python tests/gpu_free/run_sanitized.py [--large] [--op-tests]

Builds build/shim-sanitize and runs the calls of shim_cases.py on it, or with --op-tests the op tests instead. Python is
not instrumented, so the runtime is preloaded (with libstdc++, whose exceptions it must intercept from the start).
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from gpu_free.build_shim import ROOT, build_ops
from gpu_free.shim_library import LIBRARY_VARIABLE


def runtime(name: str) -> str:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    return subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the whole vocabulary and long sequences too")
    parser.add_argument("--op-tests", action="store_true", help="tests/ops instead, which take minutes")
    arguments = parser.parse_args()
    if arguments.op_tests:
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", "shim", "tests/ops"]
    else:
        command = [str(Path(__file__).with_name("run_on_shim.py")), *(["--large"] * arguments.large)]
    environment = os.environ | {
        LIBRARY_VARIABLE: str(build_ops(sanitize="address,undefined")),
        "LD_PRELOAD": " ".join(runtime(name).strip() for name in ("libasan.so", "libstdc++.so")),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
