"""Text of a page that a command writes, between two marks that name the command."""

from __future__ import annotations

import sys
from pathlib import Path


def fill(page: Path, which: str, command: str, text: str) -> None:
    """Puts text between a page's marks; ends the program where they are not there once.

    Args:
        page: Markdown.
        which: the text's name, which both marks hold.
        command: what writes it.
        text: to put there.
    """
    first, last = f"<!-- {which}: {command} -->", f"<!-- end of {which} -->"
    content = page.read_text()
    if content.count(first) != 1 or content.count(last) != 1:
        sys.exit(f"{page}: expected one pair of the marks {first} and {last}")
    before, _, rest = content.partition(first)
    _, _, after = rest.partition(last)
    page.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}")
