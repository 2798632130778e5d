"""The report on defences in Markdown: what was run, the table, the checklist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdvae_ray.evaluation.attack_report import Check
from cdvae_ray.evaluation.defense_checklist import checklist_markdown
from cdvae_ray.evaluation.defense_table import DefenseNumber, defense_markdown


def defense_page(
    numbers: Sequence[DefenseNumber],
    checks: Mapping[str, Sequence[Check]],
    remarks: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
        numbers: of all defences.
        checks: the checklist of each defence, by its name.
        remarks: what the numbers say beside each other.
        title: of the page.
        facts: what was run, by name.
    """
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        defense_markdown(numbers, remarks=remarks),
        f"## Checklist\n\n{checklist_markdown(checks)}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
