"""The /sys of real machines, from the texts in tests/sysfs: what they hold is written in their heads."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "sysfs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def unpack(name: str, root: Path) -> Path:
    """Writes a machine's tree below `root`, and returns that."""
    folder = root
    for line in (FOLDER / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        if line.endswith(":"):
            folder = root / line.removesuffix(":")
            folder.mkdir(parents=True, exist_ok=True)
        elif " -> " in line:
            link, target = line.split(" -> ")
            (folder / link).symlink_to(os.path.relpath(root / target, folder))
        elif line:
            file, _, text = line.partition("=")
            write(folder / file, text)
    return root


def write(path: Path, text: str) -> None:
    """One file, as sysfs would show it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("\\n", "\n") + "\n")
