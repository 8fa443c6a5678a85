"""Runs the calls of shim_cases.py on the library that MDLM_FAST_SHIM_LIBRARY names and says which failed:

    MDLM_FAST_SHIM_LIBRARY=build/shim-races/libmdlm_fast_shim.so python tests/gpu_free/run_on_shim.py [--large] [op ...]

For libraries that find mistakes themselves (--races, --sanitize); results are compared elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from gpu_free.shim_cases import all_calls
from gpu_free.shim_library import LIBRARY_VARIABLE, register_from_environment

from mdlm_fast import ops


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the whole vocabulary and long sequences too")
    parser.add_argument("ops", nargs="*", help="ops whose calls are run; all by default")
    arguments = parser.parse_args()
    shim = register_from_environment()
    if shim is None:
        parser.error(f"{LIBRARY_VARIABLE} names no library")
    failed = run = 0
    for call in all_calls():
        if (call.large and not arguments.large) or (arguments.ops and not set(call.needs) & set(arguments.ops)):
            continue
        if not all("shim" in ops.available_backends(op) for op in call.needs):
            print(f"no kernels: {call}")
            continue
        for schedule in ("forward", "random:1"):
            shim.set_schedule(schedule)
            run += 1
            try:
                call.run("shim")
            except RuntimeError as error:
                failed += 1
                print(f"FAILED {call}, schedule {schedule}: {str(error).splitlines()[0]}")
    print(f"{run - failed} of {run} calls passed")
    return int(failed > 0 or run == 0)


if __name__ == "__main__":
    sys.exit(main())
