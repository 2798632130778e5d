"""Tables of defences: counted by hand, the paper's own arithmetic, and what may not be mixed."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdvae_ray.config.attack import SUITES, AttackConfig
from cdvae_ray.config.baseline import BASELINES
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.defense_table import (
    NO_ATTACK,
    PAPER_TABLE_6,
    PAPER_TABLE_7,
    PAPER_TRAINED_AGAINST,
    AttackedDefense,
    DefenseNumber,
    DefenseOutcomes,
    PaperTable,
    attack_family,
    defense_columns,
    defense_markdown,
    defense_numbers,
    defense_text,
    paper_value,
    transfer_only,
)
from cdvae_ray.evaluation.intervals import wilson

TRANSFER = "transfer: made against D(x), which knows nothing of the defence"
WHITE_BOX = "white-box: against the whole defence"
GREY = {each.label: each for each in SUITES["grey-box"].attacks}
WHITE = {each.label: each for each in SUITES["white-box"].attacks}
LINF, L2, STADV = GREY["PGD-Linf"], GREY["PGD-L2"], GREY["StAdv"]


def bits(text: str) -> Tensor:
    """Outcomes of images, as in "1101"."""
    return torch.tensor([each == "1" for each in text])


def attacked(
    attack: AttackConfig, correct: Tensor | str, *, threat_model: str = TRANSFER
) -> AttackedDefense:
    return AttackedDefense(
        attack=attack,
        threat_model=threat_model,
        is_white_box=threat_model != TRANSFER,
        correct=bits(correct) if isinstance(correct, str) else correct,
        set_digest=f"{attack.label}-{threat_model[:8]}",
        eot_samples=1,
    )


def outcomes(
    clean: Tensor | str,
    *attacks: AttackedDefense,
    name: str = "Ours",
    trained_against: tuple[str, ...] = (),
) -> DefenseOutcomes:
    return DefenseOutcomes(
        name=name,
        digest="d1",
        trained_against=trained_against,
        clean_correct=bits(clean) if isinstance(clean, str) else clean,
        attacks=attacks,
        is_stochastic=False,
        seed=0,
    )


def numbers_of(
    found: DefenseOutcomes, *, table: PaperTable = "grey-box", dataset: str | None = "cifar10"
) -> dict[tuple[str, str], DefenseNumber]:
    numbers = defense_numbers(found, table=table, dataset=dataset, num_resamples=200)
    by_meaning = {(each.threat_model, each.quantity): each for each in numbers}
    assert len(by_meaning) == len(numbers)
    return by_meaning


def random_outcomes(seed: int, count: int, num_attacks: int = 4) -> DefenseOutcomes:
    """Two threat models, attacks of several families on some images."""
    rng = np.random.default_rng(seed)
    clean = torch.from_numpy(rng.random(count) < 0.9)
    found = [
        attacked(attack, clean & torch.from_numpy(rng.random(count) < rng.random()), threat_model=t)
        for t in (TRANSFER, WHITE_BOX)
        for attack in list(GREY.values())[:num_attacks]
    ]
    return outcomes(clean, *found, trained_against=("linf",))


# --- the paper's numbers ------------------------------------------------------------------------


def test_columns_of_the_paper_are_the_suites_labels() -> None:
    for row in itertools.chain(*(rows.values() for rows in PAPER_TABLE_6.values())):
        assert set(row) == {"clean", *GREY}
    for row in PAPER_TABLE_7["cifar10"].values():
        assert set(row) == {"clean", "mean of unseen", *WHITE}
    sizes = [len(PAPER_TABLE_6["cifar10"]), len(PAPER_TABLE_6["imagenet"])]
    assert [*sizes, len(PAPER_TABLE_7["cifar10"])] == [8, 3, 13]
    labels = {each.label for each in BASELINES.values()}
    assert labels <= set(PAPER_TABLE_7["cifar10"])
    ours = {"Normal", "Ours", "Ours-Linf", "Ours-L2"}
    assert set(PAPER_TABLE_6["cifar10"]) | set(PAPER_TABLE_7["cifar10"]) == labels | ours


@pytest.mark.parametrize(
    ("table", "dataset", "defense", "quantity", "percent"),
    [
        ("grey-box", "cifar10", "Normal", "clean", 96.01),
        ("grey-box", "cifar10", "Ours", "StAdv", 19.41),
        ("grey-box", "cifar10", "HGD", "C&W-L2", 77.15),
        ("grey-box", "cifar10", "AT StAdv", "PGD-Linf", 0.1),
        ("grey-box", "imagenet", "AT PGD-L2", "C&W-Linf", 9.49),
        ("grey-box", "imagenet", "Ours", "PGD-L2", 63.12),
        ("white-box", "cifar10", "Ours-Linf", "mean of unseen", 51.4),
        ("white-box", "cifar10", "Ours-L2", "StAdv", 28.4),
        ("white-box", "cifar10", "PAT", "ReColorAdv", 71.0),
        ("white-box", "cifar10", "AT PGD-L2", "AutoAttack-L2", 47.8),
        ("white-box", "cifar10", "SAT", "AutoAttack-Linf", 53.1),
        ("white-box", "cifar10", "TRADES", "JPEG", None),
        ("grey-box", "cifar10", "Ours", "mean of unseen", None),
        ("grey-box", "cifar10", "Ours", "worst of all", None),
        ("grey-box", "cifar10", "PAT", "clean", None),
        ("white-box", "cifar10", "Ours", "clean", None),
        ("white-box", "imagenet", "Normal", "clean", None),
        ("grey-box", "digits", "Normal", "clean", None),
    ],
)
def test_spot_checks_of_the_printed_tables(
    table: PaperTable, dataset: str, defense: str, quantity: str, percent: float | None
) -> None:
    found = paper_value(table, dataset, defense, quantity)
    assert found == (None if percent is None else pytest.approx(percent / 100))


def unseen_of_paper(defense: str, seen: tuple[str, ...]) -> list[float | None]:
    row = PAPER_TABLE_7["cifar10"][defense]
    return [row[label] for label, each in WHITE.items() if attack_family(each) not in seen]


@pytest.mark.parametrize("defense", [d for d in PAPER_TABLE_7["cifar10"] if d != "TRADES"])
def test_the_papers_mean_of_unseen_is_that_of_its_cells(defense: str) -> None:
    cells = unseen_of_paper(defense, PAPER_TRAINED_AGAINST.get(defense, ()))
    printed = PAPER_TABLE_7["cifar10"][defense]["mean of unseen"]
    assert np.mean(cells) == pytest.approx(printed, abs=0.051)


def test_the_papers_purifiers_and_pat_count_as_trained_against_other_families() -> None:
    """Why the families are found from the cells: those of training give another mean."""
    apart = {}
    for each in BASELINES.values():
        cells = unseen_of_paper(each.label, (each.trained_against,))
        printed = PAPER_TABLE_7["cifar10"][each.label]["mean of unseen"]
        assert printed is not None
        if None not in cells:
            apart[each.label] = abs(float(np.mean(cells)) - printed)  # type: ignore[arg-type]
    assert {name for name, gap in apart.items() if gap > 0.051} == {"APE-GAN", "PAT"}
    # The cell of TRADES that is missing: 31.0 is the mean of the others, and JPEG not in it.
    known = [cell for cell in unseen_of_paper("TRADES", ("linf",)) if cell is not None]
    assert len(known) == 3 and np.mean(known) == pytest.approx(31.0, abs=0.051)


# --- numbers by hand ----------------------------------------------------------------------------


def test_numbers_are_those_made_by_hand() -> None:
    found = numbers_of(
        outcomes(
            "1111111100",
            attacked(LINF, "1111000000"),
            attacked(L2, "1100110000"),
            attacked(STADV, "1000001000"),
            trained_against=("linf",),
        )
    )
    expected = {
        (NO_ATTACK, "clean"): 8,
        (TRANSFER, "PGD-Linf"): 4,
        (TRANSFER, "PGD-L2"): 4,
        (TRANSFER, "StAdv"): 2,
        (TRANSFER, "worst of all"): 1,
    }
    for key, count in expected.items():
        each = found[key]
        assert (each.images, each.accuracy) == (10, count / 10)
        assert (each.low, each.high) == wilson(count, 10)
    assert found[TRANSFER, "mean of unseen"].accuracy == pytest.approx((0.4 + 0.2) / 2)
    assert found[TRANSFER, "mean of all"].accuracy == pytest.approx((0.4 + 0.4 + 0.2) / 3)
    assert len(found) == 7
    assert found[TRANSFER, "PGD-L2"].settings == L2.describe()
    assert found[TRANSFER, "PGD-L2"].set_digest == "PGD-L2-transfer"
    for key in ((NO_ATTACK, "clean"), (TRANSFER, "worst of all"), (TRANSFER, "mean of all")):
        assert (found[key].settings, found[key].set_digest) == ("", "")


def test_threat_models_are_never_mixed() -> None:
    found = numbers_of(
        outcomes(
            "1111",
            attacked(LINF, "1111"),
            attacked(LINF, "0000", threat_model=WHITE_BOX),
            attacked(L2, "1000", threat_model=WHITE_BOX),
            attacked(L2, "1100"),
        )
    )
    for quantity, transfer, white_box in (
        ("mean of unseen", 0.75, 0.125),
        ("mean of all", 0.75, 0.125),
        ("worst of all", 0.5, 0.0),
    ):
        assert found[TRANSFER, quantity].accuracy == transfer
        assert found[WHITE_BOX, quantity].accuracy == white_box


@pytest.mark.parametrize(("answers", "robust"), [("0000", 0), ("1111", 4)])
def test_a_mean_of_equal_images_has_an_interval_all_the_same(answers: str, robust: int) -> None:
    found = numbers_of(outcomes("1111", attacked(LINF, answers), attacked(L2, answers)))
    mean = found[TRANSFER, "mean of all"]
    assert (mean.low, mean.high) == wilson(robust, 4)


def test_no_mean_of_unseen_where_all_was_seen() -> None:
    found = numbers_of(
        outcomes("11", attacked(LINF, "11"), attacked(GREY["C&W-Linf"], "11"), name="AT",
                 trained_against=("linf", "l2"))
    )  # fmt: skip
    assert (TRANSFER, "mean of unseen") not in found and (TRANSFER, "mean of all") in found


def test_clean_numbers_alone() -> None:
    assert list(numbers_of(outcomes("10"))) == [(NO_ATTACK, "clean")]


@pytest.mark.parametrize(
    ("attack", "family"),
    [
        (AttackConfig(attack="fgsm", label="a", epsilon=0.1), "linf"),
        (WHITE["AutoAttack-L2"], "l2"),
        (GREY["C&W-Linf"], "linf"),
        (AttackConfig(attack="carlini_wagner_l2", label="a", num_steps=1), "l2"),
        (WHITE["StAdv"], "stadv"),
        (WHITE["ReColorAdv"], "recolor"),
        (WHITE["JPEG"], "jpeg"),
    ],
)
def test_families(attack: AttackConfig, family: str) -> None:
    assert attack_family(attack) == family


def test_the_mean_interval_is_paired_by_image() -> None:
    """Attacks that fool the same images say no more than one of them."""
    rng = np.random.default_rng(0)
    clean = torch.ones(400, dtype=torch.bool)
    half = torch.from_numpy(rng.random(400) < 0.5)
    same = numbers_of(outcomes(clean, attacked(LINF, half), attacked(L2, half)))
    other = numbers_of(outcomes(clean, attacked(LINF, half), attacked(L2, ~half)))
    theory = 2 * 1.96 * half.float().std().item() / 20
    mean = same[TRANSFER, "mean of all"]
    assert mean.high - mean.low == pytest.approx(theory, rel=0.15)
    # Each image withstands one of the two: the mean is 1/2 whatever images are drawn.
    assert other[TRANSFER, "mean of all"][4:7] == (0.5, 0.5, 0.5)


# --- properties ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))
def test_intervals_hold_their_numbers_and_the_worst_is_the_worst(
    seed: int, count: int, num_attacks: int
) -> None:
    found = numbers_of(random_outcomes(seed, count, num_attacks))
    for each in found.values():
        assert 0 <= each.low <= each.accuracy <= each.high <= 1
        assert each.accuracy <= found[NO_ATTACK, "clean"].accuracy + 1e-12
    for threat_model in (TRANSFER, WHITE_BOX):
        alone = [found[threat_model, label].accuracy for label in list(GREY)[:num_attacks]]
        worst = found[threat_model, "worst of all"].accuracy
        assert max(0.0, sum(alone) - (num_attacks - 1)) - 1e-12 <= worst <= min(alone)
        mean = found[threat_model, "mean of all"].accuracy
        assert mean == pytest.approx(np.mean(alone)) and min(alone) - 1e-12 <= mean


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.randoms(use_true_random=False))
def test_neither_the_order_of_images_nor_of_attacks_matters(
    seed: int, count: int, random: st.DataObject
) -> None:
    found = random_outcomes(seed, count)
    order = torch.tensor(random.sample(range(count), count))  # type: ignore[attr-defined]
    moved = [dataclasses.replace(each, correct=each.correct[order]) for each in found.attacks]
    random.shuffle(moved)  # type: ignore[attr-defined]
    shuffled = dataclasses.replace(
        found, clean_correct=found.clean_correct[order], attacks=tuple(moved)
    )
    # To the bit, intervals included.
    assert numbers_of(shuffled) == numbers_of(found)


# --- the paper's beside ours --------------------------------------------------------------------


def all_of(table: PaperTable, threat_model: str, name: str, **changes: float) -> DefenseOutcomes:
    """One image and each attack of a suite, with other settings where asked for."""
    attacks = [
        attacked(dataclasses.replace(each, **changes), "1", threat_model=threat_model)
        for each in SUITES[table].attacks
    ]
    seen = PAPER_TRAINED_AGAINST.get(name, ())
    return outcomes("1", *attacks, name=name, trained_against=seen)


def papers(found: DefenseOutcomes, table: PaperTable, dataset: str | None) -> dict[str, float]:
    numbers = numbers_of(found, table=table, dataset=dataset).values()
    return {each.quantity: 100 * each.paper for each in numbers if each.paper is not None}


def test_the_papers_rows_stand_beside_the_same_protocol() -> None:
    for table, printed, threat_model in (
        ("grey-box", PAPER_TABLE_6, TRANSFER),
        ("white-box", PAPER_TABLE_7, WHITE_BOX),
    ):
        for dataset, rows in printed.items():
            for name, row in rows.items():
                expected = {key: value for key, value in row.items() if value is not None}
                if name == "TRADES":  # its mean leaves JPEG out, which is in ours
                    expected.pop("mean of unseen", None)
                beside = papers(all_of(table, threat_model, name), table, dataset)  # type: ignore[arg-type]
                assert beside == pytest.approx(expected)


def test_the_papers_numbers_stand_beside_nothing_else() -> None:
    # Another dataset, none, a defence that the paper has not.
    grey = all_of("grey-box", TRANSFER, "Ours")
    for dataset in (None, "digits"):
        assert papers(grey, "grey-box", dataset) == {}
    assert papers(dataclasses.replace(grey, name="Mine"), "grey-box", "cifar10") == {}
    # White-box numbers in the table of transfers, and the reverse: clean numbers alone.
    for table, threat_model, name in (
        ("grey-box", WHITE_BOX, "Ours"),
        ("white-box", TRANSFER, "Ours-L2"),
    ):
        assert set(papers(all_of(table, threat_model, name), table, "cifar10")) == {"clean"}  # type: ignore[arg-type]
    # Another radius; fewer steps are the same threat.
    weaker = all_of("grey-box", TRANSFER, "Ours", epsilon=0.01)
    assert set(papers(weaker, "grey-box", "cifar10")) == {"clean"}
    shorter = all_of("grey-box", TRANSFER, "Ours", num_steps=20)
    assert set(papers(shorter, "grey-box", "cifar10")) == {"clean", *GREY}


def test_the_papers_mean_stands_beside_a_mean_over_the_same_attacks() -> None:
    whole = all_of("white-box", WHITE_BOX, "Ours-L2")
    assert "mean of unseen" in papers(whole, "white-box", "cifar10")
    for other in (
        dataclasses.replace(whole, attacks=whole.attacks[:-1]),
        dataclasses.replace(whole, trained_against=()),
        dataclasses.replace(whole, trained_against=("linf",)),
    ):
        beside = papers(other, "white-box", "cifar10")
        assert "mean of unseen" not in beside and "StAdv" in beside


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "attacks", "words"),
    [
        (torch.zeros(0, dtype=torch.bool), (), "n >= 1"),
        (torch.ones(3), (), "torch.float32"),
        (torch.ones(3, 1, dtype=torch.bool), (), "shape"),
        (bits("111"), (attacked(LINF, "11"),), "2 images"),
        (bits("111"), (attacked(LINF, torch.ones(3)),), "PGD-Linf"),
        (bits("110"), (attacked(LINF, "101"),), "1 right under attack but wrong"),
        (bits("111"), (attacked(LINF, "111"), attacked(LINF, "110")), "label"),
        (
            bits("111"),
            (
                attacked(LINF, "111"),
                dataclasses.replace(attacked(L2, "111"), is_white_box=True),
            ),
            "apart",
        ),
    ],
)
def test_outcomes_that_contradict_each_other(
    clean: Tensor, attacks: tuple[AttackedDefense, ...], words: str
) -> None:
    with pytest.raises(DataError, match=words) as refused:
        outcomes(clean, *attacks)
    assert "Ours" in str(refused.value)


def test_two_numbers_of_one_meaning_are_refused() -> None:
    first = defense_numbers(outcomes("11", attacked(LINF, "11")), table="grey-box", dataset=None)
    second = defense_numbers(outcomes("11", attacked(LINF, "10")), table="grey-box", dataset=None)
    assert defense_text([*first, *first]) == defense_text(first)
    with pytest.raises(DataError, match="two that differ"):
        defense_text([*first, *second])


# --- text ---------------------------------------------------------------------------------------


def some_numbers() -> list[DefenseNumber]:
    first = outcomes(
        "1111111110",
        attacked(LINF, "1111111100"),
        attacked(STADV, "1100000000"),
        attacked(LINF, "1000000000", threat_model=WHITE_BOX),
    )
    second = outcomes("1111100000", attacked(LINF, "1111000000"), name="HGD")
    alone = outcomes("1100000000", name="Normal")
    return [
        number
        for found in (first, second, alone)
        for number in defense_numbers(found, table="grey-box", dataset="cifar10", num_resamples=50)
    ]


def test_text_has_a_line_a_defence_and_threat_model_and_the_papers_below() -> None:
    text = defense_text(some_numbers())
    lines = [line.split() for line in text.splitlines()]
    ours = [line for line in lines if line[:1] == ["Ours"]]
    # clean, attacks, mean of unseen, worst of all.
    assert ours == [
        ["Ours", "10", "90.00", "80.00", "20.00", "50.00", "20.00"],
        ["Ours", "10", "90.00", "10.00", "10.00", "10.00"],
    ]
    below = lines[lines.index(ours[0]) + 1]
    assert below == ["paper", "86.81", "77.05", "19.41", "-", "-"]
    assert ["HGD", "10", "50.00", "40.00", "-", "40.00", "40.00"] in lines
    assert ["Normal", "10", "20.00"] in lines
    for line, following in itertools.pairwise(text.splitlines()):
        if line.startswith("  defence"):
            assert len(line) == len(following), "columns are aligned"
    assert "look white-box" not in text


def test_each_number_stands_under_its_threat_model() -> None:
    numbers = some_numbers()
    for text, heading in (
        (defense_text(numbers), lambda name: f"\n  {name}\n"),
        (defense_markdown(numbers), lambda name: f"### {name[0].upper()}{name[1:]}\n"),
    ):
        places = {name: f"\n{text}".index(heading(name)) for name in (TRANSFER, WHITE_BOX)}
        places[NO_ATTACK] = f"\n{text}".index(heading(NO_ATTACK))
        ends = [*sorted(places.values())[1:], len(text)]
        sections = dict(
            zip(
                sorted(places, key=places.__getitem__),
                (
                    f"\n{text}"[start:end]
                    for start, end in zip(sorted(places.values()), ends, strict=True)
                ),
                strict=True,
            )
        )
        for each in numbers:
            if each.quantity not in ("clean", "mean of all"):
                section = sections[each.threat_model]
                assert each.quantity in section and each.defense in section
                assert f"{100 * each.accuracy:.2f}" in section
                assert each.settings in section


def test_markdown_has_intervals_counts_sets_and_remarks() -> None:
    numbers = some_numbers()
    text = defense_markdown(numbers, remarks=["It defends only because."])
    rows = [line for line in text.splitlines() if line.startswith("| Ours")]
    low, high = (100 * end for end in wilson(8, 10))
    assert f"| 80.00 [{low:.2f}, {high:.2f}] (77.05) |" in rows[0]
    assert rows[0].startswith("| Ours | 10 |")
    for each in numbers:
        assert each.settings in text and each.set_digest in text
    assert text.endswith("It defends only because.\n")
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert tables == [9] * 4 + [8] * 3 + [4] * 3


def test_sets_and_settings_that_differ_name_their_defences() -> None:
    shorter = dataclasses.replace(LINF, num_steps=3)
    first = outcomes("11", attacked(LINF, "11", threat_model=WHITE_BOX))
    second = outcomes("11", attacked(shorter, "11", threat_model=WHITE_BOX), name="B")
    other_set = dataclasses.replace(first.attacks[0], set_digest="other")
    third = dataclasses.replace(first, name="C", attacks=(other_set,))
    numbers = [
        number
        for found in (first, second, third)
        for number in defense_numbers(found, table="white-box", dataset=None, num_resamples=5)
    ]
    assert f"{LINF.describe()} (Ours, C)\n" in defense_text(numbers)
    text = defense_markdown(numbers)
    assert f"- {LINF.describe()} (Ours, C); sets: Ours PGD-Linf-white-bo, C other\n" in text
    assert f"- {shorter.describe()} (B); set PGD-Linf-white-bo\n" in text


def test_rows_of_table_6_that_look_white_box_are_pointed_at() -> None:
    found = all_of("grey-box", TRANSFER, "AT StAdv")
    text = defense_text(defense_numbers(found, table="grey-box", dataset="cifar10"))
    assert "look white-box" in text
    found = all_of("white-box", WHITE_BOX, "AT StAdv")
    text = defense_text(defense_numbers(found, table="white-box", dataset="cifar10"))
    assert "look white-box" not in text and "paper" in text


def test_columns_hold_every_number() -> None:
    numbers = some_numbers()
    columns = defense_columns(numbers)
    assert tuple(columns) == DefenseNumber._fields
    assert [DefenseNumber(*row) for row in zip(*columns.values(), strict=True)] == numbers


# --- transfer against white-box -----------------------------------------------------------------


def both_ways(transfer: int, white_box: int, *, n: int = 200) -> DefenseOutcomes:
    """Of n images, the first so many are right."""
    places = torch.arange(n)
    return outcomes(
        torch.ones(n, dtype=torch.bool),
        attacked(LINF, places < transfer),
        attacked(L2, places < transfer),
        attacked(LINF, places < white_box, threat_model=WHITE_BOX),
    )


@pytest.mark.parametrize(
    ("transfer", "white_box", "words"),
    [
        (160, 0, "it defends only because the attack is transferred"),
        (160, 10, "it defends only because the attack is transferred"),
        (160, 40, "25% of the accuracy is left"),
        (160, 158, "no difference"),
        (160, 160, "no difference"),
        (8, 0, "it withstands neither"),
        (40, 160, "the white-box attack is the weaker one"),
    ],
)
def test_what_is_left_of_a_transfer(transfer: int, white_box: int, words: str) -> None:
    found = transfer_only(both_ways(transfer, white_box))
    assert found is not None and words in found
    assert f"PGD-Linf from {transfer / 200:.2%} to {white_box / 200:.2%}" in found
    assert TRANSFER in found and WHITE_BOX in found and "n = 200" in found
    assert "PGD-L2" not in found
    assert found.count(".") > 1 and found.endswith(".") and "\n" not in found


def test_differences_are_paired() -> None:
    # 2 points less, on the same images: beyond what an unpaired comparison could tell.
    found = transfer_only(both_ways(1000, 960, n=2000))
    assert found is not None and "96% of the accuracy is left" in found


def test_nothing_to_compare() -> None:
    assert transfer_only(outcomes("11", attacked(LINF, "11"))) is None
    apart = outcomes("11", attacked(LINF, "11"), attacked(L2, "11", threat_model=WHITE_BOX))
    assert transfer_only(apart) is None
    wider = dataclasses.replace(LINF, epsilon=16 / 255)
    other = outcomes("11", attacked(LINF, "11"), attacked(wider, "00", threat_model=WHITE_BOX))
    assert transfer_only(other) is None
