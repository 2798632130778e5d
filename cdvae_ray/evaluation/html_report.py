"""One page to look at: numbers at a glance, then every report whole, in one file without a script.

The page loads nothing: pictures are part of it, and its own policy forbids anything else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.attack_report import Outcome
from cdvae_ray.evaluation.headlines import Headline

_DEEPEST = 6


@dataclass(frozen=True, kw_only=True)
class ReportLink:
    """What a line of the page goes back to."""

    text: str
    """Id of an MLflow run, or that there is none."""
    address: str = ""
    """Where its page is; empty: nowhere."""


@dataclass(frozen=True, kw_only=True)
class ReportStep:
    """A model or report that the page rests on."""

    name: str
    """What was made."""
    settings: str
    """Job and preset, for people."""
    digest: str
    """Of all that determines it."""
    was_stored: bool
    """Found rather than made."""
    run: ReportLink
    """Its MLflow run."""


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A job's own report."""

    key: str
    """A word for addresses within the page."""
    title: str
    results: Sequence[str]
    """Tables and figures of the paper that it holds."""
    page: str
    """Its Markdown."""
    pictures: Mapping[str, bytes]
    """PNGs by the names that the page has for them; those that it does not show come last."""
    run: ReportLink
    checks: Mapping[Outcome, int] = field(default_factory=dict)
    """Lines of its checklists by outcome, if it has any."""


def report_html(
    *,
    title: str,
    facts: Mapping[str, str],
    remarks: Sequence[str],
    headlines: Sequence[Headline],
    sections: Sequence[ReportSection],
    steps: Sequence[ReportStep],
) -> str:
    """The whole page.

    Args:
        title: of the page.
        facts: what was run, by name.
        remarks: what a reader must know before any number.
        headlines: numbers at a glance.
        sections: reports in the order to show them.
        steps: models and reports that were made or found.

    Raises:
        DataError: a section shows a picture that it does not bring.
    """
    environment = Environment(
        loader=PackageLoader("cdvae_ray.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=title,
        facts=facts,
        remarks=remarks,
        lines=[_headline_line(each) for each in headlines],
        sections=[
            {
                "key": each.key,
                "title": each.title,
                "results": ", ".join(each.results),
                "run": each.run,
                "checks": each.checks,
                # Markdown without HTML of its own: nothing in it can be taken for the page's.
                "body": section_html(each),
            }
            for each in sections
        ],
        steps=steps,
    )


def section_html(section: ReportSection) -> str:
    """A section's Markdown as HTML below a heading of level 2, pictures embedded.

    Raises:
        DataError: it shows a picture that it does not bring.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("table_open", _open_table)
    markdown.add_render_rule("table_close", _close_table)
    tokens = markdown.parse(section.page)
    shown = {_file_of(child) for token in tokens for child in token.children or ()}
    # In angle brackets a name may hold blanks and parentheses.
    beside = [
        f"![{name.removesuffix('.png')}](<{name}>)"
        for name in section.pictures
        if name not in shown
    ]
    tokens += markdown.parse("\n\n".join(beside))
    seen: set[str] = set()
    for place, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(_DEEPEST, int(token.tag[1:]) + 2)}"
        if token.type == "heading_open":
            token.attrSet("id", _anchor(section.key, tokens[place + 1].content, seen))
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", _embedded(section, _file_of(child)))
    rendered = markdown.renderer.render(tokens, markdown.options, {})
    return str(rendered)


def _file_of(token: Token) -> str:
    """The file that an image shows, as the section names it; "" of other tokens."""
    return unquote(str(token.attrGet("src"))) if token.type == "image" else ""


def _anchor(key: str, heading: str, seen: set[str]) -> str:
    slug = f"{key}-{re.sub(r'[^a-z0-9]+', '-', heading.lower()).strip('-')}"
    anchor, number = slug, 1
    while anchor in seen:
        number += 1
        anchor = f"{slug}-{number}"
    seen.add(anchor)
    return anchor


def _embedded(section: ReportSection, file: str) -> str:
    if file not in section.pictures:
        raise DataError(
            f"report section {section.title}",
            got=f"the picture {file}, which it does not bring",
            expected=f"one of {', '.join(section.pictures) or 'none'}",
            remedy="make that report again",
        )
    encoded = base64.b64encode(section.pictures[file]).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def _open_table(renderer: Any, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    # Tables are wider than screens: each scrolls by itself, also by keyboard.
    return '<div class="wide" tabindex="0">\n<table>\n'


def _close_table(renderer: Any, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    return "</table>\n</div>\n"


def _headline_line(headline: Headline) -> dict[str, Any]:
    """What the template shows of a number; positions of shares are percent of the bar."""
    scale = 100.0 if headline.is_share else 1.0
    bar = None
    if headline.is_share:
        low = headline.value if headline.low is None else headline.low
        high = headline.value if headline.high is None else headline.high
        bar = {
            "value": _percent(headline.value),
            "low": _percent(low),
            "width": _percent(high) - _percent(low),
            "paper": None if headline.paper is None else _percent(headline.paper),
        }
    return {
        "result": headline.result,
        "quantity": headline.quantity,
        "threat_model": headline.threat_model,
        "images": "" if headline.images is None else f"{headline.images:,}",
        "value": _number(headline.value, scale, headline.is_share),
        "interval": ""
        if headline.low is None or headline.high is None
        else f"[{_number(headline.low, scale, headline.is_share)}, "
        f"{_number(headline.high, scale, headline.is_share)}]",
        "paper": ""
        if headline.paper is None
        else _number(headline.paper, scale, headline.is_share),
        "unit": " %" if headline.is_share else "",
        "bar": bar,
    }


def _number(value: float, scale: float, is_share: bool) -> str:
    return f"{value * scale:.1f}" if is_share else f"{value:.4g}"


def _percent(share: float) -> float:
    return round(100 * min(1.0, max(0.0, share)), 2)
