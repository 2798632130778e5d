"""What a reproduction makes: no step without need or before its ground, each as its own job's."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.config.baseline import BASELINE_NAMES, BASELINES
from cdvae_ray.config.baseline_job import baseline_identity
from cdvae_ray.config.baseline_presets import baseline_preset
from cdvae_ray.config.classifier_job import classifier_identity
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.defense_job import defense_preset, defense_report_identity
from cdvae_ray.config.detection_job import (
    DETECTION_PRESETS,
    DetectionJobConfig,
    detection_identity,
    detection_preset,
)
from cdvae_ray.config.finetune_job import InnerAttackConfig, finetune_identity
from cdvae_ray.config.finetune_presets import FINETUNE_PRESETS, finetune_preset
from cdvae_ray.config.presets import Preset, preset
from cdvae_ray.config.reproduce_job import (
    REPRODUCE_PRESETS,
    RecipeConfig,
    ReproduceConfig,
    Step,
    reproduce_preset,
)
from cdvae_ray.config.search_job import gamma_preset
from cdvae_ray.config.study_job import study_identity, study_preset
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.config.train_job import training_identity
from cdvae_ray.config.training import ResourcesConfig
from cdvae_ray.errors import ConfigError

TABLES, FIGURES = (1, 2, 3, 4, 6, 7), (2, 3, 4, 5)
PARTS = ["study", "detection", "grey-box", "white-box", "search"]
NAMES = list(REPRODUCE_PRESETS)


def detection_tables(name):
    """The detection table of a preset's images, and that of the others."""
    return (5, 4) if name.startswith("restricted") else (4, 5)


def tables_of(name):
    """All tables that a preset's images have."""
    return tuple(sorted({*TABLES, detection_tables(name)[0]} - {detection_tables(name)[1]}))


def asking(name="quickstart", table=(), figure=(), **recipe):
    """A preset's config with other results asked for, and another recipe."""
    base = reproduce_preset(name)
    return replace(base, table=table, figure=figure, recipe=replace(base.recipe, **recipe))


def names_of(config):
    return [" ".join(filter(None, step)) for step in config.steps]


def grounds(config, step):
    """The steps that a step rests on, said once more and otherwise than the code says it."""
    recipe = config.recipe
    plain, cdvae = Step("classifier"), Step("cdvae")
    parts = [Step("redundant-classifier"), Step("essential-classifier")]
    return {
        "redundant-classifier": [cdvae],
        "essential-classifier": [cdvae],
        "defense-classifier": [Step("defense-cdvae")],
        "baseline": [plain],
        "finetuned": [plain, Step("defense-cdvae")],
        "study": [plain, cdvae, *(parts if 3 in config.tables else [])],
        "detection": [plain, cdvae],
        "grey-box": [
            *(plain, Step("defense-classifier"), Step("defense-cdvae")),
            *(Step("baseline", name) for name in recipe.grey_box_baselines),
        ],
        "white-box": [
            plain,
            *(Step("baseline", name) for name in recipe.white_box_baselines),
            *(Step("finetuned", norm) for norm in recipe.white_box_norms),
        ],
        "search": [plain],
    }.get(step.kind, [])


def with_grounds(config, step):
    return {step}.union(*(with_grounds(config, each) for each in grounds(config, step)))


def every_asking(name):
    """Every choice of tables and figures, neither included."""
    tables = tables_of(name)
    for table in itertools.chain(*(itertools.combinations(tables, n) for n in range(7))):
        for figure in itertools.chain(*(itertools.combinations(FIGURES, n) for n in range(5))):
            yield table, figure


# Results, parts, steps.


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_names_presets_that_there_are(name):
    config = reproduce_preset(name)
    recipe = config.recipe
    for choose, key in (
        (preset, recipe.cdvae),
        (classifier_preset, recipe.classifier),
        (study_preset, recipe.study),
        (detection_preset, recipe.detection),
        (finetune_preset, recipe.finetune),
        (baseline_preset, recipe.baseline),
        (gamma_preset, recipe.search),
    ):
        assert choose(key)
    assert defense_preset(recipe.grey_box).table == "grey-box"
    assert defense_preset(recipe.white_box).table == "white-box"
    assert config.steps


@pytest.mark.parametrize(
    ("name", "gamma"), [("cifar10", 2e-3), ("restricted-tiny", 2e-1), ("restricted-imagenet", 2e-1)]
)
def test_the_defences_gamma_is_the_papers_for_these_images(name, gamma):
    assert reproduce_preset(name).recipe.defense_gamma == gamma


def test_a_preset_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="got 'huge', expected one of quickstart, smoke") as found:
        reproduce_preset("huge")
    assert "run jobs/reproduce.py --help" in str(found.value)


@pytest.mark.parametrize("name", NAMES)
def test_neither_tables_nor_figures_is_everything_but_the_table_of_other_images(name):
    config = reproduce_preset(name)
    assert (config.tables, config.figures) == (tables_of(name), FIGURES)
    parts = [part for part in config.parts if part != "detection-reference"]
    assert parts == PARTS
    has_reference = "detection-reference" in config.parts
    assert has_reference == config.recipe.reference_protocol == (name == "cifar10-tiny")
    assert config.results_of("study") == ["Table 1", "Table 2", "Table 3", "Figure 2", "Figure 3"]
    assert [config.results_of(part) for part in PARTS[1:]] == [
        [f"Table {detection_tables(name)[0]}"],
        ["Table 6"],
        ["Table 7"],
        ["Figure 4", "Figure 5"],
    ]


@pytest.mark.parametrize(
    ("table", "figure", "parts", "steps"),
    [
        ((4,), (), ["detection"], ["classifier", "cdvae", "detection"]),
        ((1,), (), ["study"], ["classifier", "cdvae", "study"]),
        ((), (2, 3), ["study"], ["classifier", "cdvae", "study"]),
        (
            (3,),
            (),
            ["study"],
            ["classifier", "cdvae", "redundant-classifier", "essential-classifier", "study"],
        ),
        (
            (6,),
            (),
            ["grey-box"],
            [
                *("classifier", "defense-cdvae", "defense-classifier"),
                *("baseline at-pgd-linf", "baseline hgd", "baseline ape-gan", "grey-box"),
            ],
        ),
        (
            (7,),
            (),
            ["white-box"],
            [
                *("classifier", "defense-cdvae", "baseline at-pgd-linf", "baseline trades"),
                *("finetuned linf", "white-box"),
            ],
        ),
        ((), (4,), ["search"], ["classifier", "search"]),
        ((), (5,), ["search"], ["classifier", "search"]),
        (
            (4,),
            (3, 5),
            ["study", "detection", "search"],
            ["classifier", "cdvae", "study", "detection", "search"],
        ),
    ],
)
def test_what_is_asked_for_needs_just_these_steps(table, figure, parts, steps):
    config = asking(table=table, figure=figure)
    assert config.parts == parts
    assert names_of(config) == steps


def test_figures_alone_make_no_table_and_tables_alone_no_figure():
    assert (asking(figure=(3, 2)).tables, asking(figure=(3, 2)).figures) == ((), (2, 3))
    assert (asking(table=(7, 1)).tables, asking(table=(7, 1)).figures) == ((1, 7), ())
    assert asking(table=(1,), figure=(2,)).results_of("study") == ["Table 1", "Figure 2"]
    assert asking(table=(1,)).results_of("search") == []


@pytest.mark.parametrize("name", NAMES)
def test_each_step_comes_once_after_what_it_rests_on_and_none_without_need(name):
    for table, figure in every_asking(name):
        config = asking(name, table, figure)
        done = []
        for step in config.steps:
            assert set(grounds(config, step)) <= set(done), (table, figure, step)
            done.append(step)
        reports = {Step(part) for part in config.parts}
        assert len(done) == len(set(done))
        assert set(done) == set().union(*(with_grounds(config, each) for each in reports))


def test_baselines_of_both_tables_are_trained_once_in_the_order_of_their_list():
    both = asking(
        table=(6, 7),
        grey_box_baselines=("ape-gan", "at-pgd-linf"),
        white_box_baselines=("trades", "at-pgd-linf"),
    )
    assert both.baselines == ["at-pgd-linf", "trades", "ape-gan"]
    assert replace(both, table=(6,)).baselines == ["at-pgd-linf", "ape-gan"]
    assert replace(both, table=(7,)).baselines == ["at-pgd-linf", "trades"]
    assert replace(both, table=(4,)).baselines == []


def test_table_7_without_ours_needs_no_cdvae():
    config = asking(table=(7,), white_box_norms=(), white_box_baselines=("trades",))
    assert names_of(config) == ["classifier", "baseline trades", "white-box"]


def test_the_paper_has_every_row_of_tables_6_and_7():
    config = reproduce_preset("cifar10")
    steps = config.steps
    assert {step.option for step in steps if step.kind == "baseline"} == set(BASELINE_NAMES)
    assert [step.option for step in steps if step.kind == "finetuned"] == ["linf", "l2"]
    assert not config.recipe.baselines_start_trained


def test_every_step_has_a_name_of_its_own():
    names = [str(step) for step in reproduce_preset("cifar10").steps]
    assert len(names) == len(set(names))
    assert "baseline hgd" in names
    assert not any("{" in name for name in names)


def test_images_of_table_5_make_it_in_place_of_table_4(monkeypatch):
    other = Preset("ImageNet", DetectionJobConfig(paper_table="table-5"))
    monkeypatch.setitem(DETECTION_PRESETS, "imagenet", other)
    config = asking(detection="imagenet")
    assert config.tables == (1, 2, 3, 5, 6, 7)
    assert config.results_of("detection") == ["Table 5"]
    assert names_of(asking(table=(5,), detection="imagenet")) == [
        *("classifier", "cdvae", "detection"),
    ]
    with pytest.raises(ConfigError, match=r"table: got 4 with .* imagenet, expected 5"):
        asking(table=(4,), detection="imagenet")


# What is refused.


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"table": (0,)}, "table: got 0, expected some of 1 2 3 4 5 6 7, each once; set --table"),
        ({"table": (8,)}, "table: got 8, expected"),
        ({"table": (4, 8)}, "table: got 4 8, expected"),
        ({"table": (-1,)}, "table: got -1, expected"),
        ({"table": (4, 4)}, "table: got 4 4, expected some of 1 2 3 4 5 6 7, each once"),
        ({"figure": (1,)}, "figure: got 1, expected some of 2 3 4 5, each once; set --figure"),
        ({"figure": (6,)}, "figure: got 6, expected"),
        ({"figure": (3, 2, 3)}, "figure: got 3 2 3, expected some of 2 3 4 5, each once"),
        ({"table": (4,), "figure": (1,)}, "figure: got 1"),
        ({"seed": -1}, "seed: got -1, expected"),
        ({"max_concurrent": 0}, "max_concurrent: got 0, expected"),
        ({"storage": ""}, "storage: got nothing, expected"),
    ],
)
def test_wrong_settings_are_one_line_with_the_remedy(changes, complaint):
    with pytest.raises(ConfigError) as found:
        ReproduceConfig(**changes)
    message = str(found.value)
    assert message.startswith(complaint)
    assert "\n" not in message
    assert found.value.got is not None and found.value.expected and found.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_other_images_is_refused_with_the_one_that_these_have(name):
    own, other = detection_tables(name)
    for table in ((other,), (4, 5), (1, other)):
        with pytest.raises(ConfigError) as found:
            asking(name, table)
        message = str(found.value)
        expected = f"table: got {other} with recipe.detection {name}, expected {own}"
        assert message.startswith(expected)
        assert f"ask for --table {own}" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"defense_gamma": 0.0}, r"recipe\.defense_gamma: got 0\.0, expected"),
        ({"defense_gamma": float("nan")}, r"recipe\.defense_gamma"),
        ({"defense_train_limit": 0}, r"recipe\.defense_train_limit: got 0, expected"),
    ],
)
def test_a_wrong_recipe_is_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        RecipeConfig(**changes)


@pytest.mark.parametrize(
    "recipe",
    [
        *(
            {job: "nowhere"}
            for job in (
                *("cdvae", "classifier", "study", "detection", "finetune", "baseline"),
                *("grey_box", "white_box", "search"),
            )
        ),
        {"grey_box": "quickstart"},
        {"white_box": "grey-box-quickstart"},
        {"grey_box_baselines": ("hgd", "hgd")},
        {"white_box_baselines": ("trades", "trades")},
        {"white_box_norms": ("linf", "linf")},
    ],
    ids=lambda recipe: " ".join(f"{key}={value}" for key, value in recipe.items()),
)
def test_a_recipe_that_its_last_step_would_refuse_is_refused_before_the_first(recipe):
    with pytest.raises(ConfigError):
        ReproduceConfig(recipe=RecipeConfig(**recipe))


# Each step is what its own job would do.


def trainings_of(config):
    """Every training config, by step."""
    recipe = config.recipe
    return {
        "cdvae": config.cdvae_job(),
        "defense-cdvae": config.defense_cdvae_job(),
        "classifier": config.classifier_job(),
        "redundant-classifier": config.classifier_job("class_redundant", "v"),
        "essential-classifier": config.classifier_job("class_essential", "v"),
        "defense-classifier": config.defense_classifier_job("w"),
        **{
            f"baseline {name}": config.baseline_job(name, "c")
            for name in {*recipe.grey_box_baselines, *recipe.white_box_baselines}
        },
        **{norm: config.finetune_job(norm, "w", "c") for norm in recipe.white_box_norms},
    }


def reports_of(config):
    """Every report's config, by part."""
    return {
        "study": config.study_job("v", "c", redundant="g", essential="r"),
        "detection": config.detection_job("v", "c"),
        "grey-box": config.grey_box_job("c", ("Normal=c", "Ours=d"), "w"),
        "white-box": config.white_box_job(("Normal=c", "Ours-Linf=f")),
        "search": config.search_job("c"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_trainings_are_those_of_the_presets(name):
    config = reproduce_preset(name)
    recipe = config.recipe
    cdvae, plain = preset(recipe.cdvae), classifier_preset(recipe.classifier)
    assert config.cdvae_job() == replace(cdvae, resume=True)
    assert config.classifier_job() == replace(plain, resume=True)
    assert config.classifier_job("class_redundant", "v") == replace(
        plain, input="class_redundant", cdvae="v", resume=True
    )
    assert config.classifier_job("class_essential", "v") == replace(
        plain, input="class_essential", cdvae="v", resume=True
    )
    limit = recipe.defense_train_limit
    with_limit = {} if limit is None else {"train_limit": limit}
    assert config.defense_cdvae_job() == replace(
        cdvae,
        objective=replace(cdvae.objective, gamma=recipe.defense_gamma),
        data=replace(cdvae.data, **with_limit),
        resume=True,
    )
    assert config.defense_classifier_job("w") == replace(
        plain,
        input="class_redundant",
        cdvae="w",
        data=replace(plain.data, **with_limit),
        resume=True,
    )
    for baseline in BASELINE_NAMES:
        found = config.baseline_job(baseline, "c")
        assert found == replace(
            baseline_preset(recipe.baseline),
            baseline=baseline,
            classifier=found.classifier,
            resume=True,
        )
    tuned = finetune_preset(recipe.finetune)
    assert config.finetune_job("linf", "w", "c") == replace(
        tuned,
        cdvae="w",
        classifier="c",
        objective=replace(tuned.objective, gamma=recipe.defense_gamma),
        resume=True,
    )


@pytest.mark.parametrize("name", NAMES)
def test_reports_are_those_of_the_presets(name):
    config = reproduce_preset(name)
    recipe = config.recipe
    assert reports_of(config) == {
        "study": replace(
            study_preset(recipe.study),
            checkpoint="v",
            classifier="c",
            redundant_classifier="g",
            essential_classifier="r",
        ),
        "detection": replace(detection_preset(recipe.detection), checkpoint="v", classifier="c"),
        "grey-box": replace(
            defense_preset(recipe.grey_box),
            source="c",
            defenses=("Normal=c", "Ours=d"),
            cdvae=("w",),
        ),
        "white-box": replace(
            defense_preset(recipe.white_box), defenses=("Normal=c", "Ours-Linf=f")
        ),
        "search": replace(gamma_preset(recipe.search), classifier="c"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_trained_weights_are_found_that_the_jobs_own_commands_have_made(name):
    # As with other workers, another storage and images elsewhere: none of it determines weights.
    config = replace(
        reproduce_preset(name),
        resources=ResourcesConfig(num_workers=2, checkpoint_every=4),
        storage="/elsewhere",
        tracking=TrackingConfig(enabled=False),
    )
    recipe = config.recipe
    images = {"precision": "float32", "train_digest": "images"}
    cdvae, plain = preset(recipe.cdvae), classifier_preset(recipe.classifier)

    assert training_identity(config.cdvae_job(), **images) == training_identity(cdvae, **images)
    assert classifier_identity(
        config.classifier_job(), **images, cdvae_digest=None
    ) == classifier_identity(plain, **images, cdvae_digest=None)
    for kind in ("class_redundant", "class_essential"):
        assert classifier_identity(
            config.classifier_job(kind, "v"), **images, cdvae_digest="v"
        ) == classifier_identity(
            replace(plain, input=kind, cdvae="there"), **images, cdvae_digest="v"
        )
    for baseline in BASELINE_NAMES:
        assert baseline_identity(
            config.baseline_job(baseline, "c"), **images, classifier_digest="c"
        ) == baseline_identity(
            replace(baseline_preset(recipe.baseline), baseline=baseline),
            **images,
            classifier_digest="c",
        )
    # What `--objective.gamma` of the two jobs would give.
    gamma = recipe.defense_gamma
    assert training_identity(config.defense_cdvae_job(), **images) == training_identity(
        replace(cdvae, objective=replace(cdvae.objective, gamma=gamma)), **images
    )
    tuned = finetune_preset(recipe.finetune)
    models = {"cdvae_digest": "w", "classifier_digest": "c"}
    assert finetune_identity(
        config.finetune_job("linf", "w", "c"), **images, **models
    ) == finetune_identity(
        replace(tuned, objective=replace(tuned.objective, gamma=gamma)), **images, **models
    )


@pytest.mark.parametrize("name", NAMES)
def test_reports_are_found_that_the_jobs_own_commands_have_made(name):
    config = replace(reproduce_preset(name), pool=PoolConfig(batch_size=7), storage="/elsewhere")
    recipe, found = config.recipe, reports_of(config)
    sets = {"sets": {"PGD-Linf": "s"}, "cross": "t"}
    assert study_identity(found["study"], **sets) == study_identity(
        study_preset(recipe.study), **sets
    )
    digests = {"digests": {"checkpoint": "v"}, "train_digest": "a", "test_digest": "b"}
    assert detection_identity(found["detection"], **digests) == detection_identity(
        detection_preset(recipe.detection), **digests
    )
    digests = {"defenses": {"Ours": "d"}, "source_digest": "c", "test_digest": "b"}
    for part, key in (("grey-box", recipe.grey_box), ("white-box", recipe.white_box)):
        assert defense_report_identity(found[part], **digests) == defense_report_identity(
            defense_preset(key), **digests
        )


# What the recipe and the flags change.


def test_gamma_of_the_defence_is_that_of_its_cdvae_and_of_its_fine_tuning_alone():
    config = asking(defense_gamma=0.7)
    assert config.defense_cdvae_job().objective.gamma == 0.7
    for norm in ("linf", "l2"):
        assert config.finetune_job(norm, "w", "c").objective.gamma == 0.7
    own = preset("quickstart").objective.gamma
    assert own != 0.7
    assert config.cdvae_job().objective.gamma == own
    # The weight of classification in Eq. (8) is another gamma.
    assert (
        config.finetune_job("linf", "w", "c").adversarial
        == finetune_preset("quickstart").adversarial
    )


@pytest.mark.parametrize("start_trained", [True, False])
def test_baselines_start_from_a_classifier_as_asked_and_purifiers_always(start_trained):
    config = asking(baselines_start_trained=start_trained)
    found = {name: config.baseline_job(name, "c").classifier for name in BASELINE_NAMES}
    purifiers = {name for name in BASELINE_NAMES if BASELINES[name].is_purifier}
    assert purifiers == {"hgd", "ape-gan"}
    for name, classifier in found.items():
        assert classifier == ("c" if start_trained or name in purifiers else ""), name


def test_fine_tuning_in_l2_has_the_papers_radius_and_else_the_presets_attack():
    config = reproduce_preset("cifar10-small")
    own = finetune_preset("cifar10-small").attack
    assert own != InnerAttackConfig()
    assert config.finetune_job("linf", "w", "c").attack == own
    assert config.finetune_job("l2", "w", "c").attack == replace(own, norm="l2", epsilon=1.0)


def test_a_preset_that_fine_tunes_in_l2_keeps_its_radius_there(monkeypatch):
    base = finetune_preset("smoke")
    attack = InnerAttackConfig(norm="l2", epsilon=0.5)
    monkeypatch.setitem(FINETUNE_PRESETS, "l2", Preset("L2", replace(base, attack=attack)))
    config = asking(finetune="l2")
    assert config.finetune_job("l2", "w", "c").attack == attack
    # The radius of L2 would be no radius in L-infinity, whose images end at 1.
    linf = config.finetune_job("linf", "w", "c").attack
    assert (linf.norm, linf.epsilon) == ("linf", 8 / 255)


def test_of_several_limits_the_smallest_holds():
    # The presets': 10,000 images of the baselines and of the search, 20,000 of the defence, 2,000
    # test images of the study, 200 of Table 7.
    base = reproduce_preset("cifar10-small")

    def limits(train, test):
        config = replace(base, data=replace(base.data, train_limit=train, test_limit=test))
        jobs = trainings_of(config) | reports_of(config)
        shown = ("cdvae", "defense-cdvae", "defense-classifier", "baseline trades")
        return {
            key: (jobs[key].data.train_limit, jobs[key].data.test_limit)
            for key in (*shown, "study", "white-box", "search")
        }

    assert limits(None, None) == {
        "cdvae": (None, None),
        "defense-cdvae": (20_000, None),
        "defense-classifier": (20_000, None),
        "baseline trades": (10_000, None),
        "study": (None, 2000),
        "white-box": (None, 200),
        "search": (10_000, 1000),
    }
    assert limits(15_000, 500) == {
        "cdvae": (15_000, 500),
        "defense-cdvae": (15_000, 500),
        "defense-classifier": (15_000, 500),
        "baseline trades": (10_000, 500),
        "study": (15_000, 500),
        "white-box": (15_000, 200),
        "search": (10_000, 500),
    }
    assert set(limits(300, 100).values()) == {(300, 100)}


def test_images_are_those_of_the_job_and_not_of_the_presets():
    data = DataConfig(source="folder", path="/there", image_size=24)
    config = replace(asking("smoke"), data=data)
    jobs = trainings_of(config) | reports_of(config)
    for key, job in jobs.items():
        assert replace(job.data, train_limit=None, test_limit=None) == data, key
    assert jobs["cdvae"].data.train_limit == 256


@pytest.mark.parametrize("name", NAMES)
def test_without_a_seed_every_step_has_its_presets(name):
    config = reproduce_preset(name)
    recipe = config.recipe
    assert config.seed is None
    assert config.cdvae_job().training.seed == preset(recipe.cdvae).training.seed
    assert config.detection_job("v", "c").seed == detection_preset(recipe.detection).seed
    # Also one that is not 0.
    other = asking(cdvae="cifar10-released")
    assert other.cdvae_job().training.seed == 666


@pytest.mark.parametrize("seed", [0, 5])
def test_a_seed_is_that_of_every_training_and_report(seed):
    config = replace(asking("cifar10-small", cdvae="cifar10-released"), seed=seed)
    assert {key: job.training.seed for key, job in trainings_of(config).items()} == dict.fromkeys(
        trainings_of(config), seed
    )
    assert {key: job.seed for key, job in reports_of(config).items()} == dict.fromkeys(PARTS, seed)
    # Nothing else of a training changes.
    before = preset("cifar10-released").training
    assert config.cdvae_job().training == replace(before, seed=seed)


def test_a_seed_of_0_is_one_and_none_is_none(monkeypatch):
    other = Preset("another seed", replace(detection_preset("smoke"), seed=7))
    monkeypatch.setitem(DETECTION_PRESETS, "seven", other)
    config = asking(detection="seven")
    assert config.detection_job("v", "c").seed == 7
    assert replace(config, seed=0).detection_job("v", "c").seed == 0


def test_a_seed_is_also_that_of_the_trainings_of_a_trial():
    search = replace(asking(), seed=5).search_job("c")
    assert search.cdvae_job("gamma", 1.0).training.seed == 5
    assert search.redundant_job("v").training.seed == 5


def test_storage_tracking_and_workers_are_those_of_the_job():
    config = replace(
        asking(),
        storage="/s",
        tracking=TrackingConfig(experiment="mine"),
        resources=ResourcesConfig(num_workers=2, device="cpu"),
        pool=PoolConfig(batch_size=7),
        max_concurrent=3,
        space=Path("space.toml"),
    )
    for key, job in (trainings_of(config) | reports_of(config)).items():
        assert (job.storage, job.tracking.experiment) == ("/s", "mine"), key
        if key in PARTS:
            assert job.pool.batch_size == 7, key
        if key not in PARTS or key == "search":
            assert (job.resources.num_workers, job.resources.device) == (2, "cpu"), key
    search = config.search_job("c")
    assert (search.max_concurrent, search.space) == (3, Path("space.toml"))


def test_trainings_go_on_and_checkpoint_no_oftener_than_their_presets():
    config = asking()
    for key, job in trainings_of(config).items():
        assert job.resume and not job.overwrite, key
    assert config.cdvae_job().resources.checkpoint_every == 5
    rare = replace(config, resources=ResourcesConfig(checkpoint_every=8))
    assert rare.cdvae_job().resources.checkpoint_every == 8


def test_the_reference_protocol_is_the_same_detection_beside_the_strict_one():
    config = replace(ReproduceConfig(), table=(4,))
    assert Step("detection-reference") not in config.steps
    both = replace(config, recipe=replace(config.recipe, reference_protocol=True))
    assert both.parts == ["detection", "detection-reference"]
    assert both.results_of("detection-reference") == ["Table 4, reference protocol"]
    assert both.steps[-2:] == [Step("detection"), Step("detection-reference")]
    strict = both.detection_job("v", "c")
    assert both.detection_job("v", "c", protocol="reference") == replace(
        strict, protocol="reference"
    )
    study = replace(both, table=(1,))
    assert "detection-reference" not in study.parts


def test_what_the_images_are_does_not_depend_on_where_they_lie():
    here, there = (
        replace(
            reproduce_preset("smoke"),
            data=DataConfig(source="parquet", path=path, image_size=32, train_limit=100),
        )
        for path in ("./data", "s3://bucket/data")
    )
    assert here.images == there.images
    assert here.images["source"] == "parquet" and here.images["train_limit"] == 100
