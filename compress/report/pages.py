"""Both pages of a finished run, under the names that they have in its folder."""

from __future__ import annotations

from pathlib import Path

from compress import storage
from compress.report import html, markdown
from compress.results import Measured, Results


def write(folder: Path, results: Results, measured: Measured | None) -> list[Path]:
    """Write report.md and report.html, over what was there.

    Args:
        folder: of a finished run, or of one in the making.
        results: the run's results.
        measured: its times and memory, or None where they are not known.

    Returns:
        both files.

    Raises:
        StorageError: the disk refuses.
    """
    rendered = {
        folder / "report.md": markdown.render(results, measured),
        folder / "report.html": html.render(results, measured),
    }
    for path, text in rendered.items():
        storage.write_text(path, text)
    return list(rendered)
