"""The benchmarks: harness, baselines, suites and report, run by `mdlm-fast bench` and `pytest bench/`.

Installed as `mdlm_fast.bench`, hence relative imports. `gpu_check` and `learning` are programs of a checkout and stay
there.
"""
