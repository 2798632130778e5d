"""How every report lays out a table, and draws a figure into a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        header: of each column.
        lines: as many cells each.
    """
    return "\n".join(
        [
            f"| {' | '.join(header)} |",
            f"|{'---|' * len(header)}",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )


def aligned_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The same as text for a terminal, indented, each column as wide as its widest cell."""
    rows = (header, *lines)
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def png_bytes(figure: Any, *, dpi: int = 120) -> bytes:
    """A figure as a PNG that says nothing of the software, so that equal figures are equal bytes.

    Args:
        figure: matplotlib's.
        dpi: pixels an inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": ""})
    return buffer.getvalue()
