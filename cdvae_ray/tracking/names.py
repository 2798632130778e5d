"""Names of metrics."""

from __future__ import annotations

import re


def metric_name(*parts: str) -> str:
    """The parts joined by dots, in characters that any tracker takes.

    Letters are made small, "&" is dropped (C&W is cw), and whatever else is no letter, digit, dot
    or hyphen becomes one underscore: "AT PGD-Linf (Table 7)" is at_pgd-linf_table_7.
    """
    small = (part.lower().replace("&", "") for part in parts)
    return ".".join(re.sub("[^a-z0-9.-]+", "_", part).strip("_") for part in small)
