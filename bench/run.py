"""Runs every benchmark of this folder in turn, each in a process of its own.

python bench/run.py [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    """All modules that have a `main`, or the named ones; the exit code says whether one failed."""
    chosen = set(sys.argv[1:])
    failed = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem == "run" or "def main(" not in path.read_text() or (chosen and path.stem not in chosen):
            continue
        print(f"\n== {path.stem}\n", flush=True)
        if subprocess.run([sys.executable, path]).returncode:
            failed.append(path.stem)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
