"""Compiles every kernel for every architecture and writes table.json and docs/machine_code.md.

    PYTHONPATH=tests python -m gpu_free.machine_code.update [--arch 90a] [--language CUDA]

Needs nvcc and Triton; minutes of processor time the first time. With --arch or --language the other rows stay as they
are.
"""

from __future__ import annotations

import argparse

from gpu_free.machine_code import markdown, table
from gpu_free.machine_code.gates import find_faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=table.ARCHS, action="append")
    parser.add_argument("--language", choices=table.LANGUAGES, action="append")
    arguments = parser.parse_args()
    stored = table.load() if table.JSON.exists() else table.Table({}, {})
    versions, rows = dict(stored.versions), dict(stored.rows)
    for language in arguments.language or table.LANGUAGES:
        versions[language] = table.tool_versions(language)
        for arch in arguments.arch or table.ARCHS:
            compiled = table.compile_rows(language, arch)
            rows.setdefault(language, {})[arch] = compiled
            print(f"{language} sm_{arch}: {len(compiled)} kernels")
            for fault in find_faults(language, arch, compiled):
                print(f"  {fault}")
    ordered = {
        language: {arch: rows[language][arch] for arch in table.ARCHS if arch in rows[language]}
        for language in table.LANGUAGES
        if language in rows
    }
    updated = table.Table(versions, ordered)
    table.store(updated)
    markdown.PATH.write_text(markdown.render(updated))


if __name__ == "__main__":
    main()
