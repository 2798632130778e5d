"""jobs/reproduce.py: presets wherever they stand, and bad input in one line without a cluster."""

import pytest

from cdvae_ray.cli import parse
from cdvae_ray.config.reproduce_job import REPRODUCE_PRESETS, ReproduceConfig, reproduce_preset

from .conftest import ROOT


def parsed(*arguments):
    """The preset and the config of a command line, as jobs/reproduce.py reads it."""
    return parse(
        ReproduceConfig,
        arguments,
        job="jobs/reproduce.py",
        presets={key: (each.summary, each.config) for key, each in REPRODUCE_PRESETS.items()},
        default_preset="quickstart",
        choose=reproduce_preset,
    )


def test_the_help_names_presets_and_flags(run_script):
    done = run_script("reproduce", ROOT, "--help")
    assert done.returncode == 0
    for word in (*REPRODUCE_PRESETS, "--table", "--figure", "--storage", "--recipe.defense-gamma"):
        assert word in done.stdout
    assert "Defaults below are those of quickstart" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["smoke", "--help"], ["--preset", "smoke", "--help"], ["--help", "--preset=smoke"]],
)
def test_the_help_of_a_preset_has_its_defaults(run_script, arguments):
    done = run_script("reproduce", ROOT, *arguments)
    assert done.returncode == 0
    assert "Defaults below are those of smoke" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["smoke", "--table", "4", "--figure", "2", "3", "--seed", "5"],
        ["--preset", "smoke", "--table", "4", "--figure", "2", "3", "--seed", "5"],
        ["--table", "4", "--preset", "smoke", "--figure", "2", "3", "--seed", "5"],
        ["--table", "4", "--figure", "2", "3", "--preset", "smoke", "--seed", "5"],
        ["--table", "4", "--figure", "2", "3", "--seed", "5", "--preset", "smoke"],
        ["--preset=smoke", "--table", "4", "--figure", "2", "3", "--seed", "5"],
        ["--table", "4", "--preset=smoke", "--figure", "2", "3", "--seed", "5"],
        ["--table", "4", "--figure", "2", "3", "--seed", "5", "--preset=smoke"],
    ],
    ids=" ".join,
)
def test_a_preset_is_the_same_wherever_it_stands(arguments):
    name, config = parsed(*arguments)
    smoke = REPRODUCE_PRESETS["smoke"].config
    assert name == "smoke"
    assert (config.table, config.figure, config.seed) == ((4,), (2, 3), 5)
    assert config.recipe == smoke.recipe
    assert config.recipe != ReproduceConfig().recipe


def test_no_preset_is_the_quickstart():
    assert parsed() == ("quickstart", REPRODUCE_PRESETS["quickstart"].config)
    name, config = parsed("--table", "1", "2")
    assert (name, config.table) == ("quickstart", (1, 2))


@pytest.mark.parametrize("name", REPRODUCE_PRESETS)
def test_a_preset_alone_is_its_config(name):
    expected = (name, REPRODUCE_PRESETS[name].config)
    assert parsed(name) == parsed("--preset", name) == parsed(f"--preset={name}") == expected


def test_arguments_are_left_as_they_are():
    arguments = ["--table", "4", "--preset", "smoke"]
    parsed(*arguments)
    assert arguments == ["--table", "4", "--preset", "smoke"]


def test_a_preset_that_is_given_twice_is_refused(run_script, tmp_path):
    for arguments in (["smoke", "--preset", "quickstart"], ["--preset=smoke", "--preset=smoke"]):
        done = run_script("reproduce", tmp_path, *arguments)
        assert done.returncode not in (0, None)
        assert "preset" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["huge"], "preset: got 'huge', expected one of quickstart, smoke"),
        (["--preset", "huge"], "run jobs/reproduce.py --help"),
        (["--table", "4", "--preset=huge"], "preset: got 'huge'"),
        (["--preset"], "preset: got '', expected one of quickstart"),
        (["--preset="], "preset: got '', expected one of quickstart"),
        (["--table", "4", "--preset"], "preset: got '', expected one of quickstart"),
        (["--preset", "--table", "4"], "preset: got '--table', expected one of quickstart"),
        (["--preset", "smoke", "--table", "9"], "table: got 9, expected some of 1 2 3 4 5 6 7"),
        (["smoke", "--table", "4", "4"], "table: got 4 4, expected"),
        (["--table", "5"], "table: got 5 with recipe.detection quickstart, expected 4"),
        (["cifar10", "--table", "5"], "ask for --table 4, or choose another preset"),
        (["--figure", "1"], "figure: got 1, expected some of 2 3 4 5, each once"),
        (["smoke", "--seed", "-1"], "seed: got -1, expected"),
        (["smoke", "--max-concurrent", "0"], "max_concurrent: got 0"),
        (["smoke", "--recipe.defense-gamma", "0"], "recipe.defense_gamma: got 0.0"),
        (["smoke", "--data.test-limit", "0"], "data.test_limit: got 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(refused, arguments, complaint):
    refused("reproduce", arguments, complaint)


def test_an_unknown_flag_is_refused(run_script, tmp_path):
    done = run_script("reproduce", tmp_path, "--preset", "smoke", "--tabel", "4")
    assert done.returncode == 2
    assert "--tabel" in done.stdout + done.stderr
