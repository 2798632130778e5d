"""The tables of adversarial defence: outcomes of images to numbers with intervals, by threat model.

A number of one threat model is never averaged with one of another: whoever knows the defence and
whoever does not are different adversaries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdvae_ray.config.attack import SUITES, AttackConfig
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.bootstrap import NUM_RESAMPLES, Estimate, bootstrap
from cdvae_ray.evaluation.detection_metrics import FloatArray, IntArray
from cdvae_ray.evaluation.intervals import wilson

PaperTable = Literal["grey-box", "white-box"]
"""Table 6, of transferred attacks, and Table 7; named as the suites of their attacks."""

CLEAN = "clean"
MEAN_OF_UNSEEN = "mean of unseen"
MEAN_OF_ALL = "mean of all"
WORST_OF_ALL = "worst of all"
NO_ATTACK = "no attack"
"""The threat model of clean numbers."""
ABOUT_ZERO = 0.05
"""Accuracy under attack up to which nothing of a defence is left."""

_SUMMARIES = (MEAN_OF_UNSEEN, MEAN_OF_ALL, WORST_OF_ALL)

# --- the paper's numbers ------------------------------------------------------------------------

_Table = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def _rows(
    columns: tuple[str, ...], printed: Mapping[str, tuple[float | None, ...]]
) -> dict[str, dict[str, float | None]]:
    return {defense: dict(zip(columns, values, strict=True)) for defense, values in printed.items()}


_COLUMNS_6 = (CLEAN, *SUITES["grey-box"].labels())
# In the paper's order, which is not the suite's: StAdv is its last column.
_COLUMNS_7 = (
    *(CLEAN, MEAN_OF_UNSEEN),
    *("AutoAttack-Linf", "AutoAttack-L2", "JPEG", "ReColorAdv", "StAdv"),
)

PAPER_TABLE_6: _Table = {
    # Yang et al., "Class-Disentanglement and Applications in Adversarial Detection and Defense"
    # (NeurIPS 2021): accuracy in percent. clean, PGD-Linf, PGD-L2, C&W-Linf, C&W-L2, StAdv.
    "cifar10": _rows(
        _COLUMNS_6,
        {
            "Normal": (96.01, 0.0, 0.0, 0.0, 0.0, 0.0),
            "AT PGD-Linf": (86.8, 51.7, 24.3, 52.0, 26.0, 4.8),
            "TRADES": (84.9, 55.1, 28.0, 53.8, 28.3, 9.2),
            "AT PGD-L2": (85.0, 41.9, 50.1, 43.4, 50.6, 7.8),
            "AT StAdv": (86.2, 0.1, 0.3, 0.2, 0.5, 53.9),
            "HGD": (80.75, 75.93, 75.44, 75.84, 77.15, 23.04),
            "APE-GAN": (90.93, 59.28, 65.17, 59.23, 65.30, 7.28),
            "Ours": (86.81, 77.05, 78.02, 77.04, 78.29, 19.41),
        },
    ),
    "imagenet": _rows(
        _COLUMNS_6,
        {
            "Normal": (82.53, 0.0, 0.0, 0.0, 0.0, 0.0),
            "AT PGD-L2": (69.89, 10.93, 60.95, 9.49, 60.07, 0.31),
            "Ours": (65.26, 52.48, 63.12, 52.95, 64.98, 4.75),
        },
    ),
}
PAPER_TABLE_7: _Table = {
    # clean, mean of unseen, L-inf and L2 (AutoAttack), JPEG, ReColor, StAdv.
    "cifar10": _rows(
        _COLUMNS_7,
        {
            "Normal": (96.0, 0.1, 0.0, 0.0, 0.0, 0.4, 0.0),
            "AT PGD-Linf": (86.8, 27.2, 49.0, 19.2, 30.2, 54.5, 4.8),
            "TRADES": (84.9, 31.0, 52.5, 23.3, None, 60.6, 9.2),
            "AT PGD-L2": (85.0, 40.3, 39.5, 47.8, 60.3, 53.5, 7.8),
            "AT ReColorAdv": (93.4, 7.9, 8.5, 3.9, 19.2, 65.0, 0.0),
            "AT StAdv": (86.2, 1.8, 0.1, 0.2, 1.9, 5.1, 53.9),
            "HGD": (80.8, 0.1, 0.0, 0.0, 0.0, 0.4, 0.0),
            "APE-GAN": (90.9, 0.2, 0.0, 0.0, 0.0, 1.1, 0.0),
            "SAT": (85.6, 32.4, 53.1, 23.4, 35.9, 66.5, 3.9),
            "OIA": (83.4, 33.6, 51.6, 24.2, 35.4, 67.8, 7.0),
            "PAT": (82.4, 50.3, 30.2, 34.9, 48.7, 71.0, 46.4),
            "Ours-Linf": (81.2, 51.4, 40.5, 43.1, 62.1, 73.1, 27.4),
            "Ours-L2": (81.0, 50.4, 39.4, 42.4, 61.6, 72.2, 28.4),
        },
    ),
}
PAPER_TABLES: Mapping[PaperTable, _Table] = {
    "grey-box": PAPER_TABLE_6,
    "white-box": PAPER_TABLE_7,
}
PAPER_TRAINED_AGAINST: Mapping[str, tuple[str, ...]] = {
    # The families that the paper's own means leave out, found from the cells of Table 7: PAT
    # counts as trained against L-inf, and purifiers as trained against nothing.
    "AT PGD-Linf": ("linf",),
    "TRADES": ("linf",),
    "AT PGD-L2": ("l2",),
    "AT ReColorAdv": ("recolor",),
    "AT StAdv": ("stadv",),
    "SAT": ("linf",),
    "OIA": ("linf",),
    "PAT": ("linf",),
    "Ours-Linf": ("linf",),
    "Ours-L2": ("l2",),
}
_LOOK_WHITE_BOX = ("Normal", "AT PGD-Linf", "TRADES", "AT PGD-L2", "AT StAdv")
"""Rows of Table 6 whose numbers a transfer could hardly give: AT StAdv has 0.1 % on L-inf."""


def paper_value(table: PaperTable, dataset: str, defense: str, quantity: str) -> float | None:
    """The share in Table 6 (grey-box) or 7 (white-box); None where the paper has none.

    Args:
        table: which.
        dataset: cifar10, or for Table 6 also imagenet (which is restricted ImageNet).
        defense: its name, as "AT PGD-Linf" or "Ours".
        quantity: clean, the label of an attack of the suite, or mean of unseen.
    """
    percent = PAPER_TABLES[table].get(dataset, {}).get(defense, {}).get(quantity)
    return None if percent is None else percent / 100


# --- outcomes -----------------------------------------------------------------------------------


def attack_family(config: AttackConfig) -> str:
    """What a defence trained against the attack has seen: linf or l2, else the attack's kind."""
    return config.family


@dataclass(frozen=True, kw_only=True)
class AttackedDefense:
    """What a defence made of one adversarial set."""

    attack: AttackConfig
    """Its label names the number."""
    threat_model: str
    """For people, as "transfer: made against D(x), which knows nothing of the defence"."""
    is_white_box: bool
    """Whether the attack was made against the defence itself."""
    correct: Tensor
    """Bool (n,): right before and after the attack."""
    set_digest: str
    """Of the adversarial set."""
    eot_samples: int
    """Draws a gradient that the attack took, >= 1."""

    @property
    def num_robust(self) -> int:
        """Images that are right before and after the attack."""
        return int(self.correct.sum())


@dataclass(frozen=True, kw_only=True)
class DefenseOutcomes:
    """All that was seen of one defence, image by image; every tensor is of the same images.

    Raises:
        DataError: outcomes that contradict each other.
    """

    name: str
    """What tables call it, as the paper does."""
    digest: str
    """Of its weights and settings."""
    trained_against: tuple[str, ...]
    """Families of attacks that it has seen in training; none for a defence of clean images."""
    clean_correct: Tensor
    """Bool (n,): right without an attack."""
    attacks: tuple[AttackedDefense, ...]
    is_stochastic: bool
    """Whether it answers at random."""
    seed: int
    """Of the evaluation."""

    def __post_init__(self) -> None:
        self._require_outcomes(CLEAN, self.clean_correct)
        for each in self.attacks:
            self._require_outcomes(each.attack.label, each.correct)
            if wrong := int((each.correct & ~self.clean_correct).sum()):
                raise DataError(
                    f"outcomes of {self.name}, {each.attack.label}",
                    got=f"{wrong} right under attack but wrong without one",
                    expected="no such image",
                    remedy="count an image as robust if it is right before and after the attack",
                )
        for threat_model, group in self.by_threat_model().items():
            labels = [each.attack.label for each in group]
            if len(set(labels)) < len(labels):
                raise DataError(
                    f"attacks on {self.name}, {threat_model}",
                    got=f"labels {', '.join(labels)}",
                    expected="each once",
                    remedy="give every attack of a threat model a label of its own",
                )
            if len({each.is_white_box for each in group}) > 1:
                raise DataError(
                    f"attacks on {self.name}, {threat_model}",
                    got="transferred and white-box attacks",
                    expected="one kind",
                    remedy="name the threat models of the two apart",
                )

    def by_threat_model(self) -> dict[str, list[AttackedDefense]]:
        """The attacks of each threat model, both in their order."""
        groups: dict[str, list[AttackedDefense]] = {}
        for each in self.attacks:
            groups.setdefault(each.threat_model, []).append(each)
        return groups

    def _require_outcomes(self, what: str, correct: Tensor) -> None:
        if correct.dtype != torch.bool or correct.ndim != 1 or not len(correct):
            raise DataError(
                f"outcomes of {self.name}, {what}",
                got=f"{correct.dtype} of shape {tuple(correct.shape)}",
                expected="bool of shape (n,) with n >= 1",
                remedy="pass one outcome an image",
            )
        if len(correct) != len(self.clean_correct):
            raise DataError(
                f"outcomes of {self.name}, {what}",
                got=f"{len(correct)} images",
                expected=f"{len(self.clean_correct)}, as without an attack",
                remedy="evaluate every attack on the same images",
            )


# --- numbers ------------------------------------------------------------------------------------


class DefenseNumber(NamedTuple):
    """A number of the table; it cannot be made without threat model, n and interval."""

    defense: str
    threat_model: str
    """NO_ATTACK for the clean number."""
    quantity: str
    """clean, an attack's label, mean of unseen, mean of all, worst of all."""
    images: int
    accuracy: float
    """Share of the images, in [0, 1]."""
    low: float
    """Lower end of the 95 % interval: Wilson's of a proportion, bootstrap by image of a mean."""
    high: float
    paper: float | None
    """The paper's, where it means the same."""
    settings: str
    """Of the attack; empty for numbers of several or of none."""
    set_digest: str
    """Of the adversarial set; empty likewise."""


def defense_numbers(
    outcomes: DefenseOutcomes,
    *,
    table: PaperTable,
    dataset: str | None,
    num_resamples: int = NUM_RESAMPLES,
) -> list[DefenseNumber]:
    """All numbers of a defence: clean, and for each threat model its attacks, means and union.

    Args:
        outcomes: of the defence.
        table: whose numbers of the paper to put beside ours: transferred attacks have theirs in
            grey-box, white-box ones in white-box, and only at the suite's kind and radius.
        dataset: cifar10 or imagenet; None: no numbers of the paper's.
        num_resamples: resamples behind the intervals of means.
    """

    def paper(quantity: str, attacks: Sequence[AttackedDefense]) -> float | None:
        if dataset is None or not all(_is_papers(each, table) for each in attacks):
            return None
        return paper_value(table, dataset, outcomes.name, quantity)

    def proportion(
        quantity: str, correct: Tensor, threat_model: str, attack: AttackedDefense | None = None
    ) -> DefenseNumber:
        count, robust = len(correct), int(correct.sum())
        return DefenseNumber(
            outcomes.name,
            threat_model,
            quantity,
            count,
            robust / count,
            *wilson(robust, count),
            paper=None if quantity == WORST_OF_ALL else paper(quantity, [attack] if attack else []),
            settings=attack.attack.describe() if attack else "",
            set_digest=attack.set_digest if attack else "",
        )

    numbers = [proportion(CLEAN, outcomes.clean_correct, NO_ATTACK)]
    for threat_model, group in outcomes.by_threat_model().items():
        numbers += [
            proportion(each.attack.label, each.correct, threat_model, each) for each in group
        ]
        unseen = _unseen(group, outcomes.trained_against)
        means = {MEAN_OF_UNSEEN: unseen, MEAN_OF_ALL: group} if unseen else {MEAN_OF_ALL: group}
        estimates = _means(
            [torch.stack([each.correct for each in some]) for some in means.values()],
            seed=outcomes.seed,
            num_resamples=num_resamples,
        )
        for (quantity, some), estimate in zip(means.items(), estimates, strict=True):
            is_papers = dataset is not None and {each.attack.label for each in some} == set(
                _unseen_by_paper(table, dataset, outcomes.name)
            )
            numbers.append(
                DefenseNumber(
                    outcomes.name,
                    threat_model,
                    quantity,
                    len(outcomes.clean_correct),
                    *estimate,
                    paper=paper(quantity, some) if is_papers else None,
                    settings="",
                    set_digest="",
                )
            )
        union = torch.stack([each.correct for each in group]).all(dim=0)
        numbers.append(proportion(WORST_OF_ALL, union, threat_model))
    return numbers


def _unseen(
    attacks: Sequence[AttackedDefense], trained_against: tuple[str, ...]
) -> list[AttackedDefense]:
    return [each for each in attacks if attack_family(each.attack) not in trained_against]


def _is_papers(attacked: AttackedDefense, table: PaperTable) -> bool:
    """Whether an attack is the paper's of that label: who made it, its kind and its radius."""
    if attacked.is_white_box != (table == "white-box"):
        return False
    return any(
        attacked.attack.label == each.label and _are_alike(attacked.attack, each)
        for each in SUITES[table].attacks
    )


def _are_alike(first: AttackConfig, second: AttackConfig) -> bool:
    if (first.attack, first.ball) != (second.attack, second.ball):
        return False
    # Radii that a file has held differ in their last digits.
    return math.isclose(first.epsilon or 0.0, second.epsilon or 0.0, rel_tol=1e-6)


def _unseen_by_paper(table: PaperTable, dataset: str, defense: str) -> list[str]:
    """The attacks behind the paper's own mean, as far as it prints them."""
    printed = PAPER_TABLES[table].get(dataset, {}).get(defense, {})
    seen = PAPER_TRAINED_AGAINST.get(defense, ())
    return [
        each.label
        for each in SUITES[table].attacks
        if printed.get(each.label) is not None and attack_family(each) not in seen
    ]


def _means(groups: Sequence[Tensor], *, seed: int, num_resamples: int) -> list[Estimate]:
    """Means over the attacks of each group, bool (A, n), with intervals by bootstrap of images."""
    columns = [group.sum(dim=0).numpy() for group in groups]
    sizes = np.array([len(group) for group in groups])
    estimates = _mean_of_images(np.stack(columns, axis=1), seed=seed, num_resamples=num_resamples)
    return [
        _widened(Estimate(*(number / int(size) for number in estimate)), len(columns[0]))
        for estimate, size in zip(estimates, sizes, strict=True)
    ]


def _widened(estimate: Estimate, count: int) -> Estimate:
    """Wilson's end where every image was fooled by all attacks, or none by any.

    Then all resamples are equal, and their interval would have no width.
    """
    if estimate.value not in (0.0, 1.0):
        return estimate
    return Estimate(estimate.value, *wilson(round(estimate.value * count), count))


def _mean_of_images(
    values: IntArray, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> list[Estimate]:
    """Means over images of whole numbers (n, M), each with its interval."""
    # Each column sorted by itself: then neither the order of the images nor another column
    # changes an interval. Whole numbers, so that sums are exact in any order.
    ordered = np.sort(values, axis=0).astype(np.float64)
    count = len(ordered)

    def means(weights: IntArray) -> FloatArray:
        found: FloatArray = weights.astype(np.float64) @ ordered / count
        return found

    return bootstrap(means, count, seed=seed, num_resamples=num_resamples)


def defense_columns(numbers: Sequence[DefenseNumber]) -> dict[str, list[Any]]:
    """The numbers as columns, for tracking."""
    return {name: [getattr(each, name) for each in numbers] for name in DefenseNumber._fields}


# --- text ---------------------------------------------------------------------------------------


class DefenseLine(NamedTuple):
    """All numbers of one defence under one threat model, by quantity."""

    defense: str
    images: int
    numbers: Mapping[str, DefenseNumber]


class DefenseBlock(NamedTuple):
    """The lines of one threat model, and the quantities that any of them has."""

    threat_model: str
    attacks: tuple[str, ...]
    quantities: tuple[str, ...]
    """clean, the attacks, mean of unseen, mean of all, worst of all, as far as there are any."""
    lines: tuple[DefenseLine, ...]


def defense_blocks(numbers: Sequence[DefenseNumber]) -> list[DefenseBlock]:
    """Sorts numbers of several defences by threat model; a line has the clean number of its images.

    Args:
        numbers: of any number of defences.

    Raises:
        DataError: two numbers of one meaning.
    """
    found: dict[tuple[str, str, int, str], DefenseNumber] = {}
    for each in numbers:
        key = (each.threat_model, each.defense, each.images, each.quantity)
        if found.setdefault(key, each) != each:
            raise DataError(
                f"numbers of {each.defense}, {each.quantity}, {each.threat_model}",
                got="two that differ",
                expected="one",
                remedy="give each defence a name of its own",
            )
    attacked = {key[1:3] for key in found if key[0] != NO_ATTACK}
    lines: dict[str, dict[tuple[str, int], dict[str, DefenseNumber]]] = {}
    for (threat_model, defense, images, quantity), number in found.items():
        if threat_model == NO_ATTACK and (defense, images) in attacked:
            continue
        line = lines.setdefault(threat_model, {}).setdefault((defense, images), {})
        if clean := found.get((NO_ATTACK, defense, images, CLEAN)):
            line[CLEAN] = clean
        line[quantity] = number
    # Clean numbers alone come last.
    lines |= {NO_ATTACK: lines.pop(NO_ATTACK)} if NO_ATTACK in lines else {}
    return [_block(threat_model, group) for threat_model, group in lines.items()]


def _block(
    threat_model: str, group: Mapping[tuple[str, int], Mapping[str, DefenseNumber]]
) -> DefenseBlock:
    met = dict.fromkeys(quantity for line in group.values() for quantity in line)
    attacks = tuple(each for each in met if each not in (CLEAN, *_SUMMARIES))
    return DefenseBlock(
        threat_model,
        attacks,
        tuple(each for each in (CLEAN, *attacks, *_SUMMARIES) if each in met),
        tuple(DefenseLine(*key, numbers) for key, numbers in group.items()),
    )


def defense_text(numbers: Sequence[DefenseNumber]) -> str:
    """The table as aligned text: a block a threat model, a line a defence, the paper's below it."""
    text = []
    for block in defense_blocks(numbers):
        quantities = [each for each in block.quantities if each != MEAN_OF_ALL]
        wide = max(len("defence"), len("  paper"), *(len(line.defense) for line in block.lines))
        widths = [max(6, len(each)) for each in quantities]
        text.append(f"  {block.threat_model}")
        text.append(_aligned("defence", wide, "n", widths, quantities))
        for line in block.lines:
            cells = [line.numbers.get(each) for each in quantities]
            ours = [_percent(each.accuracy if each else None) for each in cells]
            text.append(_aligned(line.defense, wide, str(line.images), widths, ours))
            papers = [_percent(each.paper if each else None) for each in cells]
            if any(each != "-" for each in papers):
                text.append(_aligned("  paper", wide, "", widths, papers))
        text += [f"  {each}" for each in _settings(block)] + [""]
    return "\n".join([*text, *(f"  {note}" for note in _notes(numbers, paper="paper"))])


def defense_markdown(numbers: Sequence[DefenseNumber], *, remarks: Sequence[str] = ()) -> str:
    """The table as Markdown, with intervals, and the adversarial sets behind it.

    Args:
        numbers: of any number of defences.
        remarks: sentences to put below, such as those of `transfer_only`.
    """
    parts = []
    for block in defense_blocks(numbers):
        header = ["defence", "n", *block.quantities]
        lines = [
            [
                line.defense,
                str(line.images),
                *(_cell(line.numbers.get(each)) for each in block.quantities),
            ]
            for line in block.lines
        ]
        parts.append(f"### {block.threat_model[:1].upper()}{block.threat_model[1:]}")
        parts.append(
            "\n".join(
                f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)
            )
        )
        if block.attacks:
            parts.append("\n".join(f"- {each}" for each in _settings(block, with_sets=True)))
    notes = [*_notes(numbers, paper="in parentheses"), _INTERVALS]
    parts += ["\n".join(f"- {note}" for note in notes), *remarks]
    return "\n\n".join(parts) + "\n"


_INTERVALS = (
    "95 % intervals in brackets: Wilson's of a proportion, of a mean by a bootstrap over images"
)


def _settings(block: DefenseBlock, *, with_sets: bool = False) -> list[str]:
    """A line for each setting of an attack, with the defences where settings or sets differ."""
    notes = []
    for attack in block.attacks:
        numbers = [line.numbers[attack] for line in block.lines if attack in line.numbers]
        for settings in dict.fromkeys(each.settings for each in numbers):
            users = [each for each in numbers if each.settings == settings]
            note = settings
            if len(users) < len(numbers):
                note += f" ({', '.join(dict.fromkeys(each.defense for each in users))})"
            sets = {f"{each.defense} {each.set_digest}": each.set_digest for each in users}
            if with_sets and len(set(sets.values())) == 1:
                note += f"; set {users[0].set_digest}"
            elif with_sets:
                note += f"; sets: {', '.join(sets)}"
            notes.append(note)
    return notes


def _notes(numbers: Sequence[DefenseNumber], *, paper: str) -> list[str]:
    """What the numbers mean; `paper` says where the paper's stand."""
    notes = ["accuracy in percent of n images; wrong without an attack counts as not robust"]
    if any(each.quantity == MEAN_OF_UNSEEN for each in numbers):
        notes.append("unseen: attacks of other families than the defence was trained against")
    if any(each.quantity == WORST_OF_ALL for each in numbers):
        notes.append("worst of all: images that withstand every attack of the threat model")
    papers = [each for each in numbers if each.paper is not None]
    if papers:
        notes.append(f"{paper}: the paper's Tables 6 and 7, of its own networks")
    # Only Table 6 has these columns; a defence of Table 7 alone is no row of it.
    if any(
        each.defense in _LOOK_WHITE_BOX and each.quantity in _COLUMNS_6[1:-1] for each in papers
    ):
        notes.append(
            "Table 6 does not say how its rows were attacked: those of the plain and the "
            "adversarially trained networks look white-box, those of purifiers are transferred"
        )
    return notes


def _aligned(name: str, wide: int, images: str, widths: Sequence[int], cells: Sequence[str]) -> str:
    columns = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"  {name:<{wide}}  {images:>5}{columns}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _cell(number: DefenseNumber | None) -> str:
    if number is None:
        return "-"
    beside = "" if number.paper is None else f" ({_percent(number.paper)})"
    return f"{_percent(number.accuracy)} [{_percent(number.low)}, {_percent(number.high)}]{beside}"


# --- transfer against white-box -----------------------------------------------------------------


def transfer_only(outcomes: DefenseOutcomes) -> str | None:
    """Says what a defence keeps of an attack's transfer once the same attack is made against it.

    Compared are attacks of one label, kind and radius, paired by image: a sentence for each two
    threat models.

    Args:
        outcomes: of the defence.

    Returns:
        The sentences; None if no attack was made both ways.
    """
    pairs = [
        (transfer, known)
        for transfer in outcomes.attacks
        if not transfer.is_white_box
        for known in outcomes.attacks
        if known.is_white_box
        and known.attack.label == transfer.attack.label
        and _are_alike(known.attack, transfer.attack)
    ]
    if not pairs:
        return None
    differences = torch.stack(
        [known.correct.long() - transfer.correct.long() for transfer, known in pairs], dim=1
    )
    estimates = _mean_of_images(differences.numpy(), seed=outcomes.seed)
    clauses: dict[tuple[str, str], list[str]] = {}
    for (transfer, known), estimate in zip(pairs, estimates, strict=True):
        of_both = clauses.setdefault((transfer.threat_model, known.threat_model), [])
        of_both.append(_compared(transfer, known, estimate))
    return " ".join(
        f"{outcomes.name}, n = {len(outcomes.clean_correct)}, from ({before}) to ({after}): "
        f"{'; '.join(of_both)}."
        for (before, after), of_both in clauses.items()
    )


def _compared(transfer: AttackedDefense, known: AttackedDefense, difference: Estimate) -> str:
    count = len(transfer.correct)
    before, after = transfer.num_robust / count, known.num_robust / count
    if difference.low > 0:
        verdict = "the white-box attack is the weaker one, so that its number says nothing"
    elif difference.high >= 0:
        verdict = "no difference that so many images show"
    elif before <= ABOUT_ZERO:
        verdict = "it withstands neither"
    elif after <= ABOUT_ZERO:
        verdict = "it defends only because the attack is transferred"
    else:
        verdict = f"{after / before:.0%} of the accuracy is left"
    points, low, high = (100 * number for number in difference)
    return (
        f"{transfer.attack.label} from {before:.2%} to {after:.2%} "
        f"({points:+.2f} points [{low:+.2f}, {high:+.2f}]), {verdict}"
    )
