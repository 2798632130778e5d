"""The final numbers of training, as the tables that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.classifier_job import TOP_K
from cdvae_ray.config.training import DefenseEvaluationConfig, EvaluationConfig

_SYMBOLS: dict[InputKind, str] = {
    "images": "x",
    "class_redundant": "G(x)",
    "class_essential": "R(x)",
}


class TableRow(NamedTuple):
    """One number with what it is."""

    quantity: str
    value: float
    unit: str
    images: int
    threat_model: str


def training_table(
    metrics: Mapping[str, float], evaluation: EvaluationConfig, *, test_images: int, attacked: int
) -> list[TableRow]:
    """The rows that the main job prints and tracks, each with its n and threat model.

    Args:
        metrics: the final numbers by the names of the summary.
        evaluation: the attack's settings.
        test_images: images behind the clean numbers.
        attacked: images behind the attack's numbers.
    """
    attack = (
        f"white-box on D(R(x)): PGD L-inf, eps {evaluation.attack_epsilon * 255:.3g}/255, "
        f"{evaluation.attack_num_steps} steps"
    )
    rows = [
        TableRow("accuracy of D(R(x))", metrics["class_essential_accuracy"], "", test_images, ""),
        TableRow(
            "reconstruction accuracy of G(x)",
            metrics["reconstruction_accuracy"],
            "",
            test_images,
            "",
        ),
        *_latent_rows(metrics, test_images),
        TableRow("accuracy of D(R(x'))", metrics["attacked_accuracy"], "", attacked, attack),
        TableRow("|delta|", metrics["delta_l2"], "L2, pixels", attacked, attack),
        TableRow("|delta_G|", metrics["delta_redundant_l2"], "L2, pixels", attacked, attack),
        TableRow("|delta_R|", metrics["delta_essential_l2"], "L2, pixels", attacked, attack),
    ]
    return rows


def _latent_rows(metrics: Mapping[str, float], test_images: int) -> list[TableRow]:
    if "kl_nats" in metrics:
        return [TableRow("KL(q(z|x) || p(z))", metrics["kl_nats"], "nats", test_images, "")]
    return [
        TableRow(
            "perplexity of the code book", metrics["codebook_perplexity"], "", test_images, ""
        ),
        TableRow("codes used", metrics["codes_used"], "", test_images, ""),
    ]


def defense_table(
    metrics: Mapping[str, float],
    evaluation: DefenseEvaluationConfig,
    *,
    test_images: int,
    attacked: int,
) -> list[TableRow]:
    """The rows of a defence after training, each with its n and threat model.

    Args:
        metrics: the final numbers by the names of the summary.
        evaluation: the attack's settings.
        test_images: images behind the clean accuracy.
        attacked: images behind the attack's numbers.
    """
    attack = (
        f"white-box on the whole defence: PGD L-inf, eps {evaluation.attack_epsilon * 255:.3g}/255,"
        f" {evaluation.attack_num_steps} steps"
    )
    return [
        TableRow("accuracy of the defence", metrics["accuracy"], "", test_images, ""),
        TableRow("accuracy under attack", metrics["attacked_accuracy"], "", attacked, attack),
    ]


def classifier_table(
    metrics: Mapping[str, float], *, input_kind: InputKind, num_classes: int, test_images: int
) -> list[TableRow]:
    """The rows that a classifier's job prints and tracks: a row of Table 3, its own input first.

    Args:
        metrics: the final numbers by the names of the summary.
        input_kind: what the classifier was trained on.
        num_classes: with fewer than 5, the top-5 accuracy is that of so many.
        test_images: images behind each number.
    """
    measured = [kind for kind in _SYMBOLS if f"accuracy_on_{kind}" in metrics]
    k = min(TOP_K, num_classes)
    rows = []
    for kind in sorted(measured, key=lambda kind: kind != input_kind):
        of = f"on {_SYMBOLS[kind]}{', its own input' if kind == input_kind else ''}"
        rows += [
            TableRow(f"accuracy {of}", metrics[f"accuracy_on_{kind}"], "", test_images, ""),
            TableRow(
                f"top-{k} accuracy {of}", metrics[f"top5_accuracy_on_{kind}"], "", test_images, ""
            ),
        ]
    return rows


def table_columns(rows: list[TableRow]) -> dict[str, list[Any]]:
    """A table as columns, for tracking."""
    return {name: [getattr(row, name) for row in rows] for name in TableRow._fields}


def table_text(rows: list[TableRow]) -> str:
    """A table as aligned text, threat models as footnotes."""
    notes = [note for note in dict.fromkeys(row.threat_model for row in rows) if note]
    width = max(len(row.quantity) for row in rows)
    lines = []
    for row in rows:
        mark = f" [{notes.index(row.threat_model) + 1}]" if row.threat_model else ""
        unit = f" {row.unit}" if row.unit else ""
        lines.append(
            f"  {row.quantity:<{width}}  {row.value:>9.4f}{unit:<11}  n = {row.images}{mark}"
        )
    lines += [f"  [{number}] {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join(lines)
