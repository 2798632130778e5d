"""Settings of baselines and of fine-tuning: what they refuse, and what names a run."""

import dataclasses
from dataclasses import fields, replace

import pytest

from cdvae_ray.config.adversarial_objective import AdversarialObjectiveConfig
from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.config.baseline import (
    BASELINE_NAMES,
    BASELINES,
    RecipeConfig,
    baseline,
)
from cdvae_ray.config.baseline_job import (
    BaselineJobConfig,
    baseline_identity,
    baseline_run_name,
)
from cdvae_ray.config.baseline_presets import BASELINE_PRESETS, baseline_preset
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.finetune_job import (
    FinetuneJobConfig,
    InnerAttackConfig,
    defense_evaluation_identity,
    finetune_identity,
    finetune_run_name,
)
from cdvae_ray.config.finetune_presets import FINETUNE_PRESETS, finetune_preset
from cdvae_ray.config.presets import preset
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.config.training import DefenseEvaluationConfig, ResourcesConfig
from cdvae_ray.errors import ConfigError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"
# What each baseline takes beside its attack's radius, steps and step size.
EXTRA = {
    "trades": {"weight": 6.0},
    "sat": {"weight": 6.0, "target_momentum": 0.9, "target_start": 0.7},
    "oia": {"validation_images": 1000},
    "hgd": {"width": 16},
    "ape-gan": {"width": 64, "pixel_weight": 0.7, "adversarial_weight": 0.3},
}
ANOTHER = {
    "epsilon": 0.123,
    "num_steps": 3,
    "step_size": 0.0456,
    "weight": 1.5,
    "target_momentum": 0.25,
    "target_start": 0.5,
    "validation_images": 10,
    "width": 6,
    "pixel_weight": 0.1,
    "adversarial_weight": 0.9,
}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((RecipeConfig, {name: -1}) for name in ANOTHER),
        *((RecipeConfig, {name: float("nan")}) for name in ("epsilon", "step_size", "weight")),
        (RecipeConfig, {"epsilon": 0.0}),
        (RecipeConfig, {"step_size": 0.0}),
        (RecipeConfig, {"num_steps": 0}),
        (RecipeConfig, {"target_momentum": 1.01}),
        (RecipeConfig, {"target_start": 1.01}),
        (RecipeConfig, {"validation_images": 0}),
        (RecipeConfig, {"width": 0}),
        (RecipeConfig, {"width": 5}),
        (BaselineJobConfig, {"baseline": "normal"}),
        (BaselineJobConfig, {"baseline": ""}),
        (BaselineJobConfig, {"recipe": RecipeConfig(weight=1.0)}),
        (BaselineJobConfig, {"augmentation": AugmentationConfig(mixup_alpha=1.0)}),
        (BaselineJobConfig, {"resume": True, "overwrite": True}),
        (BaselineJobConfig, {"storage": ""}),
        (InnerAttackConfig, {"epsilon": 0.0}),
        (InnerAttackConfig, {"num_steps": 0}),
        (InnerAttackConfig, {"step_size": -0.1}),
        (InnerAttackConfig, {"confidence": -1.0}),
        (FinetuneJobConfig, {"clean_weight": -0.1}),
        (FinetuneJobConfig, {"augmentation": AugmentationConfig(mixup_alpha=1.0)}),
        (FinetuneJobConfig, {"resume": True, "overwrite": True}),
        (DefenseEvaluationConfig, {"batch_size": 0}),
        (DefenseEvaluationConfig, {"attack_images": 0}),
        (DefenseEvaluationConfig, {"attack_epsilon": 0.0}),
        (DefenseEvaluationConfig, {"attack_num_steps": 0}),
    ],
)
def test_wrong_settings_are_one_line_errors(kind, wrong):
    with pytest.raises(ConfigError, match=ONE_LINE):
        kind(**wrong)


def test_the_ends_of_the_ranges_are_taken():
    RecipeConfig(weight=0.0, target_momentum=0.0, target_start=0.0, validation_images=1)
    RecipeConfig(target_momentum=1.0, num_steps=1, width=2, pixel_weight=0.0)
    FinetuneJobConfig(clean_weight=0.0, attack=InnerAttackConfig(confidence=0.0))


# Recipes.


def test_there_are_ten_baselines_by_name():
    assert tuple(BASELINES) == BASELINE_NAMES
    assert len({each.label for each in BASELINES.values()}) == len(BASELINE_NAMES) == 10
    assert {name for name, each in BASELINES.items() if each.is_purifier} == {"hgd", "ape-gan"}
    for name in BASELINE_NAMES:
        assert baseline(name) is BASELINES[name]
        assert BaselineJobConfig(baseline=name).name == name
    with pytest.raises(ConfigError, match=r"'madry', expected one of at-pgd-linf.*ape-gan; set"):
        baseline("madry")


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_recipe_without_choices_is_the_baselines_defaults(name):
    recipe = BASELINES[name].recipe(RecipeConfig())
    assert recipe == BASELINES[name].defaults
    taken = {key: value for key, value in to_dict(recipe).items() if value is not None}
    attack = {"epsilon", "num_steps", *(["step_size"] if name != "pat" else [])}
    assert {key: taken[key] for key in taken.keys() - attack} == EXTRA.get(name, {})
    assert attack <= taken.keys()
    assert from_dict(RecipeConfig, to_dict(recipe)) == recipe


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_recipe_takes_its_own_settings_and_refuses_the_others(name):
    chosen = BASELINES[name]
    for setting, value in ANOTHER.items():
        choice = RecipeConfig(**{setting: value})
        if getattr(chosen.defaults, setting) is None:
            with pytest.raises(ConfigError, match=rf"recipe.{setting}: got .* for {chosen.label}"):
                chosen.recipe(choice)
            with pytest.raises(ConfigError, match=ONE_LINE):
                BaselineJobConfig(baseline=name, recipe=choice)
        else:
            recipe = chosen.recipe(choice)
            assert recipe == replace(chosen.defaults, **{setting: value})
            assert BaselineJobConfig(baseline=name, recipe=choice).recipe == choice


@pytest.mark.parametrize("name", [name for name in BASELINE_NAMES if name != "pat"])
def test_the_inner_attack_has_the_recipes_settings(name):
    chosen = BASELINES[name]
    recipe = chosen.recipe(RecipeConfig(epsilon=0.3, num_steps=7, step_size=0.11))
    attack = chosen.inner_attack(recipe)
    assert isinstance(attack, AttackConfig)
    assert (attack.epsilon, attack.num_steps, attack.step_size) == (0.3, 7, 0.11)
    assert attack.keep == "last"
    assert attack.family == chosen.trained_against


def test_the_attack_of_eq_7_keeps_its_last_iterate():
    attack = InnerAttackConfig(norm="l2", epsilon=1.0, num_steps=5, confidence=3.0).attack()
    assert (attack.attack, attack.norm, attack.epsilon) == ("margin_pgd", "l2", 1.0)
    assert (attack.num_steps, attack.step_size, attack.confidence) == (5, None, 3.0)
    assert (attack.keep, attack.family) == ("last", "l2")
    assert InnerAttackConfig().attack().family == "linf"


# Presets.


@pytest.mark.parametrize("name", BASELINE_PRESETS)
def test_a_preset_has_the_network_of_the_plain_classifier_it_is_compared_with(name):
    mine, plain = baseline_preset(name), classifier_preset(name)
    assert (mine.model, mine.augmentation) == (plain.model, plain.augmentation)
    assert replace(mine.data, train_limit=plain.data.train_limit) == plain.data
    assert 0 < mine.training.epochs <= 110


@pytest.mark.parametrize("name", BASELINE_PRESETS)
@pytest.mark.parametrize("other", BASELINE_NAMES)
def test_every_preset_takes_every_baseline(name, other):
    config = replace(baseline_preset(name), baseline=other)
    assert config.chosen.recipe(config.recipe).num_steps is not None


@pytest.mark.parametrize("name", BASELINE_PRESETS)
def test_self_adaptive_training_adapts_in_every_preset(name):
    config = replace(baseline_preset(name), baseline="sat")
    start = config.chosen.recipe(config.recipe).target_start
    assert 0 < round(start * config.training.epochs) < config.training.epochs


@pytest.mark.parametrize("name", FINETUNE_PRESETS)
def test_a_finetuning_preset_has_the_data_and_clean_objective_of_its_cdvae(name):
    mine = finetune_preset(name)
    main = preset(name.removesuffix("-released"))
    assert replace(mine.data, train_limit=main.data.train_limit) == main.data
    assert (mine.augmentation, mine.objective) == (main.augmentation, main.objective)
    assert (mine.cdvae, mine.classifier) == ("", "")
    for section in ("attack", "adversarial", "objective", "training", "evaluation"):
        value = getattr(mine, section)
        assert from_dict(type(value), to_dict(value)) == value


@pytest.mark.parametrize("name", [name for name in FINETUNE_PRESETS if name in BASELINE_PRESETS])
def test_small_finetuning_sees_what_the_baselines_see(name):
    if name != "cifar10":
        mine, other = finetune_preset(name), baseline_preset(name)
        assert (mine.data, mine.training) == (other.data, other.training)
        steps = other.chosen.recipe(other.recipe).num_steps
        assert mine.attack.num_steps == steps


def test_the_released_finetuning_is_the_released_one():
    config = finetune_preset("cifar10-released")
    assert config.clean_weight == 0
    assert config.adversarial == AdversarialObjectiveConfig(
        margin=20.0,
        margin_on="logits",
        reconstruction_target="clean",
        essential_class="most_probable",
        essential_examples="all",
        gamma=0.1,
        beta=0.01,
    )


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'cifar10-released', expected one of quickstart.*base"):
        baseline_preset("cifar10-released")
    with pytest.raises(ConfigError, match=r"'paper', expected one of quickstart.*finetune_adv"):
        finetune_preset("paper")


# Identities.


def changed(config, section, **settings):
    return replace(config, **{section: replace(getattr(config, section), **settings)})


def elsewhere(config):
    """The same training: in another place, on other machines, by other logs."""
    return [
        replace(config, storage="elsewhere", resume=True),
        replace(config, overwrite=True),
        replace(config, resources=ResourcesConfig(num_workers=2, checkpoint_every=7)),
        replace(config, tracking=TrackingConfig(experiment="other")),
        replace(config, evaluation=DefenseEvaluationConfig(attack_images=3)),
        replace(config, classifier="there"),
        replace(config, data=DataConfig(source="folder", path="there")),
    ]


def every_training(config):
    """Each of the training's settings changed in turn."""
    others = {
        "seed": 9,
        "epochs": 77,
        "global_batch_size": 14,
        "optimizer": "sgd",
        "learning_rate": 0.0123,
        "weight_decay": 0.0123,
        "schedule": "constant",
        "warmup_epochs": 3,
        "cosine_period_epochs": 77,
        "minimum_learning_rate": 0.00012,
        "max_gradient_norm": 1.5,
        "max_gradient_value": 1.5,
        "precision": None,
        "channels_last": False,
        "compile": True,
        "sync_batch_norm": False,
        "recalibration_steps": 4,
    }
    assert {each.name for each in fields(config.training)} == {*others, "step_epochs"}
    del others["precision"]  # what "auto" came to is an argument of its own
    steps = {"schedule": "steps", "step_epochs": (2, 3)}
    return [
        *(changed(config, "training", **{name: value}) for name, value in others.items()),
        changed(config, "training", **steps),
        changed(config, "training", **(steps | {"step_epochs": (2, 4)})),
    ]


def baseline_digest(config, *, precision="float32", images="i", classifier=None, validation=None):
    return digest_of(
        baseline_identity(
            config,
            precision=precision,
            train_digest=images,
            classifier_digest=classifier,
            validation_digest=validation,
        )
    )


def test_the_images_that_choose_an_epoch_are_part_of_the_identity():
    base = replace(baseline_preset("quickstart"), baseline="oia")
    digests = {baseline_digest(base, validation=each) for each in (None, "v", "w")}
    assert len(digests) == 3


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_baselines_identity_has_its_recipe(name):
    base = replace(baseline_preset("quickstart"), baseline=name)
    defaults = base.chosen.defaults
    others = [
        replace(base, recipe=RecipeConfig(**{setting: value}))
        for setting, value in ANOTHER.items()
        if getattr(defaults, setting) is not None
    ]
    digests = {baseline_digest(base), *(baseline_digest(each) for each in others)}
    assert len(digests) == 1 + len(others)
    # Saying a default aloud changes nothing.
    spoken = {key: value for key, value in dataclasses.asdict(defaults).items() if value}
    assert baseline_digest(replace(base, recipe=RecipeConfig(**spoken))) == baseline_digest(base)


def test_a_baselines_identity_changes_with_all_that_matters_and_with_nothing_else():
    base = baseline_preset("quickstart")
    for same in elsewhere(base):
        assert baseline_digest(same) == baseline_digest(base)
    others = [
        *(replace(base, baseline=name) for name in BASELINE_NAMES if name != base.baseline),
        *every_training(base),
        changed(base, "augmentation", crop_padding=3),
        changed(base, "model", dropout=0.5),
        changed(base, "model", widen_factor=2),
    ]
    digests = [baseline_digest(each) for each in (base, *others)]
    digests += [
        baseline_digest(base, images="j"),
        baseline_digest(base, precision="bfloat16"),
        baseline_digest(base, classifier="c"),
        baseline_digest(base, classifier="d"),
    ]
    assert len(set(digests)) == len(digests)
    # A classifier that training starts from brings its network along.
    started = changed(base, "model", dropout=0.5)
    assert baseline_digest(started, classifier="c") == baseline_digest(base, classifier="c")
    assert baseline_run_name(base, "0123456789abcdef") == "at-pgd-linf-0123456789ab"


def finetune_digest(config, **other):
    arguments = {
        "precision": "float32",
        "train_digest": "i",
        "cdvae_digest": "c",
        "classifier_digest": "d",
    }
    return digest_of(finetune_identity(config, **(arguments | other)))


def test_a_finetunings_identity_changes_with_all_that_matters_and_with_nothing_else():
    base = finetune_preset("quickstart")
    for same in (*elsewhere(base), replace(base, cdvae="there")):
        assert finetune_digest(same) == finetune_digest(base)
    attack = {
        "norm": "l2",
        "epsilon": 0.123,
        "num_steps": 3,
        "step_size": 0.0456,
        "confidence": 3.0,
    }
    adversarial = {
        "margin": 0.5,
        "margin_on": "logits",
        "gamma": 0.7,
        "beta": 0.7,
        "reconstruction_target": "clean",
        "essential_class": "most_probable",
        "essential_examples": "all",
    }
    clean = {
        "gamma": 0.7,
        "beta": 0.7,
        "reconstruction_reduction": "image_sum",
        "kl_reduction": "image_sum",
        "reconstruction_weights": ((0, 2.0),),
    }
    others = [replace(base, clean_weight=0.5), changed(base, "augmentation", crop_padding=3)]
    for section, settings in (
        ("attack", attack),
        ("adversarial", adversarial),
        ("objective", clean),
    ):
        assert {each.name for each in fields(getattr(base, section))} == set(settings)
        others += [changed(base, section, **{name: value}) for name, value in settings.items()]
    others += every_training(base)
    digests = [finetune_digest(each) for each in (base, *others)]
    digests += [
        finetune_digest(base, precision="bfloat16"),
        finetune_digest(base, train_digest="j"),
        finetune_digest(base, cdvae_digest="x"),
        finetune_digest(base, classifier_digest="x"),
        # Not either of them in the other's place.
        finetune_digest(base, cdvae_digest="d", classifier_digest="c"),
    ]
    assert len(set(digests)) == len(digests)
    assert finetune_run_name("0123456789abcdef") == "finetune-0123456789ab"


def test_the_evaluation_has_an_identity_of_its_own():
    base = DefenseEvaluationConfig()
    others = {"batch_size": 3, "attack_images": 3, "attack_epsilon": 0.1, "attack_num_steps": 3}
    assert {each.name for each in fields(base)} == set(others)

    def digest(config, training="t", test="u"):
        return digest_of(
            defense_evaluation_identity(config, training_digest=training, test_digest=test)
        )

    digests = [digest(base), digest(base, training="x"), digest(base, test="x")]
    digests += [digest(replace(base, **{name: value})) for name, value in others.items()]
    assert len(set(digests)) == len(digests)


def test_both_models_are_asked_for_by_name():
    FinetuneJobConfig()  # a preset names neither
    with pytest.raises(
        ConfigError, match=r"cdvae: got none.*set --cdvae to a run of jobs/train.py"
    ):
        FinetuneJobConfig(classifier="here").require_parts()
    with pytest.raises(ConfigError, match=r"classifier: got none.*jobs/train_classifier.py$"):
        FinetuneJobConfig(cdvae="here").require_parts()
    FinetuneJobConfig(cdvae="here", classifier="there").require_parts()
