"""The detection report in Markdown: the paper's table, the 2 x 2 behind it, what tempers both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdvae_ray.evaluation.adaptive_table import AdaptiveRow
from cdvae_ray.evaluation.bootstrap import Estimate
from cdvae_ray.evaluation.detection_controls import ControlRow
from cdvae_ray.evaluation.detection_table import (
    SPACE_SYMBOLS,
    DetectionRow,
    DifferenceRow,
)
from cdvae_ray.evaluation.layout import markdown_table

_MAIN = "adversarial against clean and noisy"


def detection_markdown(
    *,
    title: str,
    facts: Mapping[str, str],
    rows: Sequence[DetectionRow],
    differences: Sequence[DifferenceRow],
    controls: Sequence[ControlRow],
    adaptive: Sequence[AdaptiveRow],
    skipped: Sequence[str],
) -> str:
    """The whole report.

    Args:
        title: of the page.
        facts: what was run, by name.
        rows, differences, controls, adaptive: the tables.
        skipped: what has no number, with the reason.
    """
    protocol = rows[0].protocol if rows else "strict"
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        _same_attack_part(rows),
        _two_by_two_part(rows),
        _redundant_part(rows),
        _difference_part(differences),
    ]
    if protocol == "strict":
        parts += [_attack_free_part(rows), _unseen_part(rows)]
    parts += [_control_part(controls, rows), _adaptive_part(adaptive)]
    if skipped:
        parts.append("## Not measured\n\n" + "\n".join(f"- {reason}" for reason in skipped))
    return "\n\n".join(part for part in parts if part) + "\n"


def _same_attack_part(rows: Sequence[DetectionRow]) -> str:
    chosen = [row for row in _of(rows, "same_attack") if _on_own_target(row)]
    lines = [
        "## Each detector on attacks on its own function",
        "Combination trained, setting chosen and numbers taken on one attack, successful attacks "
        "only: as the paper's table is. TNR at 95 % TPR (of clean and noisy images) and AUROC in "
        "percent with 95 % intervals"
        + (
            ", the paper's in parentheses."
            if any(row.paper_auroc is not None for row in chosen)
            else "."
        ),
        markdown_table(
            [
                *("detector", "attacked", "attack", "n", "TNR", "AUROC"),
                *("AUPR adversarial / clean", "TPR at 0.1 / 1 / 5 % FPR"),
            ],
            [
                [
                    _name(row),
                    row.attacked,
                    row.attack,
                    str(row.clean_images),
                    _cell(row.tnr_at_95_tpr, row.paper_tnr_at_95_tpr),
                    _cell(row.auroc, row.paper_auroc),
                    f"{100 * row.aupr_adversarial.value:.1f} / {100 * row.aupr_clean.value:.1f}",
                    " / ".join(
                        f"{100 * each.value:.1f}"
                        for each in (row.tpr_at_01_fpr, row.tpr_at_1_fpr, row.tpr_at_5_fpr)
                    ),
                ]
                for row in chosen
            ],
        ),
    ]
    return "\n\n".join(lines) if chosen else ""


def _two_by_two_part(rows: Sequence[DetectionRow]) -> str:
    chosen = [row for row in _of(rows, "same_attack") if row.space in ("images", "class_essential")]
    targets = list(dict.fromkeys(row.attacked for row in chosen))
    if len(targets) < 2:
        return ""
    cells = {(row.method, row.attack, row.attacked, row.space): row for row in chosen}
    table = []
    for method, attack in dict.fromkeys((row.method, row.attack) for row in chosen):
        line = [method, attack]
        for target in targets:
            for space in ("images", "class_essential"):
                row = cells.get((method, attack, target, space))  # type: ignore[arg-type]
                line.append(_cell(row.auroc, None) if row else "-")
        table.append(line)
    header = [f"attack on {target}: on {symbol}" for target in targets for symbol in ("x", "R(x)")]
    return "\n\n".join(
        [
            "## Attack target by detection space",
            "The paper compares the first column with the last, which differ in both. What the "
            "space brings is the difference within a target. AUROC, percent.",
            markdown_table(["detector", "attack", *header], table),
        ]
    )


def _redundant_part(rows: Sequence[DetectionRow]) -> str:
    chosen = [row for row in _of(rows, "same_attack") if row.space == "class_redundant"]
    if not chosen:
        return ""
    return "\n\n".join(
        [
            "## Looking at G(x)",
            "A classifier on G(x), whose function none of these attacks follows; disagreement is "
            "between it and the classifier on x.",
            markdown_table(
                ["detector", "attacked", "attack", "n", "TNR", "AUROC"],
                [
                    [
                        _name(row),
                        row.attacked,
                        row.attack,
                        str(row.clean_images),
                        _cell(row.tnr_at_95_tpr, None),
                        _cell(row.auroc, None),
                    ]
                    for row in chosen
                ],
            ),
        ]
    )


def _difference_part(differences: Sequence[DifferenceRow]) -> str:
    if not differences:
        return ""
    return "\n\n".join(
        [
            "## What looking at R(x) changes",
            "Paired by image, in points. Where both lines attack one function, these are the same "
            "adversarial images.",
            markdown_table(
                ["first", "attacked", "less", "attacked", "n", "TNR", "AUROC"],
                [
                    [
                        _short(row.first),
                        row.first_attacked,
                        _short(row.second),
                        row.second_attacked,
                        str(row.images),
                        _signed(row.tnr_at_95_tpr),
                        _signed(row.auroc),
                    ]
                    for row in differences
                ],
            ),
        ]
    )


def _attack_free_part(rows: Sequence[DetectionRow]) -> str:
    chosen = _of(rows, "attack_free")
    if not chosen:
        return ""
    every = {
        (row.method, row.space, row.attack, row.attacked): row
        for row in _of(rows, "attack_free", subset="all")
    }
    return "\n\n".join(
        [
            "## Without adversarial images to train on",
            "The standardised sum of layers, fitted to clean images. AUROC, percent, of successful "
            "attacks and of all attacks, failed ones included.",
            markdown_table(
                ["detector", "attacked", "attack", "n", "successful", "n", "all"],
                [
                    [
                        _name(row),
                        row.attacked,
                        row.attack,
                        str(row.clean_images),
                        _cell(row.auroc, None),
                        str(whole.clean_images),
                        _cell(whole.auroc, None),
                    ]
                    for row in chosen
                    if (whole := every[(row.method, row.space, row.attack, row.attacked)])
                ],
            ),
        ]
    )


def _unseen_part(rows: Sequence[DetectionRow]) -> str:
    every = [*_of(rows, "same_attack"), *_of(rows, "unseen")]
    chosen = [row for row in every if _on_own_target(row)]
    attacks = list(dict.fromkeys(row.attack for row in chosen))
    if len(attacks) < 2:
        return ""
    cells = {(row.method, row.space, row.trained_on, row.attack): row for row in chosen}
    table = []
    for method, space, trained_on in dict.fromkeys(
        (row.method, row.space, row.trained_on) for row in chosen
    ):
        line = [f"{method}({SPACE_SYMBOLS[space]})", trained_on]
        for attack in attacks:
            row = cells.get((method, space, trained_on, attack))
            line.append(f"{100 * row.auroc.value:.2f}" if row else "-")
        table.append(line)
    return "\n\n".join(
        [
            "## Trained on one attack, tested on another",
            "AUROC, percent, successful attacks on each detector's own function; intervals in the "
            "JSON beside this page.",
            markdown_table(["detector", "trained on", *attacks], table),
        ]
    )


def _control_part(controls: Sequence[ControlRow], rows: Sequence[DetectionRow]) -> str:
    noise = [row for row in rows if row.contrast == "noisy against clean"]
    parts = []
    if controls:
        parts += [
            "## Null controls",
            "Fresh clean images against other clean images: 50 up to chance.",
            markdown_table(
                ["detector", "setting", "n", "AUROC"],
                [
                    [
                        f"{row.method}({SPACE_SYMBOLS[row.space]})",
                        row.setting,
                        str(row.images),
                        _cell(row.auroc, None),
                    ]
                    for row in controls
                ],
            ),
        ]
    if noise:
        parts += [
            "Noisy against clean images, noise as long as each perturbation: a detector of attacks "
            "should not see it. AUROC, percent.",
            markdown_table(
                ["detector", "noise as long as", "attacked", "n", "AUROC"],
                [
                    [
                        _name(row),
                        row.attack,
                        row.attacked,
                        str(row.clean_images),
                        _cell(row.auroc, None),
                    ]
                    for row in noise
                ],
            ),
        ]
    return "\n\n".join(parts)


def _adaptive_part(rows: Sequence[AdaptiveRow]) -> str:
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Against an attacker who knows the detector",
            "Attack-free detectors. Success: the classifier is wrong and the detector lets the "
            "image pass, as a share of images that are right without an attack, with 95 % "
            "intervals.",
            markdown_table(
                [
                    *("detector", "attack", "radius", "steps", "FPR", "clean flagged", "n"),
                    *("fooled", "success", "threat"),
                ],
                [
                    [
                        f"{row.method}({SPACE_SYMBOLS[row.space]})",
                        row.attack,
                        row.radius,
                        str(row.num_steps),
                        f"{row.false_positive_rate:.0%}",
                        f"{row.clean_flagged:.1%}",
                        str(row.images),
                        f"{row.fooled:.1%}",
                        f"{row.success:.1%} [{row.success_low:.1%}, {row.success_high:.1%}]",
                        row.threat_model,
                    ]
                    for row in rows
                ],
            ),
        ]
    )


def _of(
    rows: Sequence[DetectionRow], mode: str, *, subset: str = "successful"
) -> list[DetectionRow]:
    return [row for row in rows if (row.mode, row.subset, row.contrast) == (mode, subset, _MAIN)]


def _on_own_target(row: DetectionRow) -> bool:
    """Whether the attacked function looks at what the detector looks at."""
    return (row.space, row.threat_model) in (
        ("images", "classifier"),
        ("class_essential", "class-essential"),
    )


def _name(row: DetectionRow) -> str:
    mark = "" if row.converged else " (regression stopped early)"
    return f"{row.method}({SPACE_SYMBOLS[row.space]}), {row.setting}{mark}"


def _short(text: str) -> str:
    return text.split(", protocol")[0]


def _cell(estimate: Estimate, paper: float | None) -> str:
    value, low, high = (100 * number for number in estimate)
    beside = "" if paper is None else f" ({100 * paper:.2f})"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]{beside}"


def _signed(estimate: Estimate) -> str:
    value, low, high = (100 * number for number in estimate)
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
