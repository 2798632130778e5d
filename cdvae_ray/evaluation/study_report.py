"""The report of the empirical study in Markdown: what was run, the tables, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdvae_ray.evaluation.study_table import StudyRow, study_markdown


def study_page(
    tables: Mapping[str, Sequence[StudyRow]],
    *,
    title: str,
    facts: Mapping[str, str],
    pictures: Mapping[str, str],
    remarks: Sequence[str],
) -> str:
    """The whole page.

    Args:
        tables: by title.
        title: of the page.
        facts: what was run, by name.
        pictures: files beside the page, by what they show.
        remarks: what a reader must know of the numbers.
    """
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "\n".join(f"{remark}\n" for remark in remarks),
        study_markdown(tables),
        "\n\n".join(f"![{shows}]({file})" for shows, file in pictures.items()),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
