"""The whole experiment in pieces: where only torch is, interrupted, gone on with, refused."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.paper_scale_page import all_tables
from benchmarks.paper_scale_parts.clock import Clock, OutOfBudgetError
from benchmarks.paper_scale_parts.combine import combine
from benchmarks.paper_scale_parts.device_batches import DeviceBatches
from benchmarks.paper_scale_parts.picture import png
from benchmarks.paper_scale_parts.plan import make_plan, scheduled
from benchmarks.paper_scale_parts.prepared import prepare, read_prepared
from benchmarks.paper_scale_parts.scale_preset import NEEDED, SCALE_PRESETS, SHARES, TRAINED
from benchmarks.paper_scale_parts.speed import OURS, OURS_EAGER
from benchmarks.paper_scale_parts.stage import Stage
from benchmarks.paper_scale_parts.synthetic import synthetic_splits
from benchmarks.paper_scale_parts.tensor_file import read_tensors, write_tensors
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.errors import CheckpointError, ConfigError, DataError
from cdvae_ray.training.schedule import learning_rate

from ..test_imports import BEYOND_TORCH

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABSENT_NAMES = [*BEYOND_TORCH, "scipy", "jinja2", "optuna", "psutil"]
SMOKE = ["--preset", "smoke", "--data", "synthetic", "--device", "cpu"]
# As if they were not installed: PyTorch asks for some of them, and does without.
ABSENT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {absent!r}:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
ATTACKS_4 = ("FGSM", "BIM", "C&W", "PGD-Linf", "PGD-L2")
ATTACKS_6 = ("PGD-Linf", "PGD-L2", "C&W-Linf", "C&W-L2", "StAdv")


def calls(*each):
    """Calls of the script, one after another in a process without anything but torch."""
    code = ABSENT.format(absent=ABSENT_NAMES) + (
        "sys.path.insert(0, sys.argv[1])\n"
        "import json, torch\n"
        "torch.set_num_threads(1)\n"
        "from paper_scale import main\n"
        "for arguments in json.loads(sys.argv[2]):\n"
        "    print('exit', main(arguments), flush=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(BENCHMARKS), json.dumps(each)],
        capture_output=True,
        text=True,
        cwd=BENCHMARKS.parent,
    )


def smoke(out, budget, *more):
    return [*SMOKE, "--out", str(out), "--budget-seconds", str(budget), *more]


def summary(out):
    return json.loads((out / "summary.json").read_text())


def rows(out):
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in summary(out)["rows"]
    ]


def stages(out):
    return {stage["stage"]: stage for stage in summary(out)["stages"]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done = calls(smoke(out, 600))
    assert done.stdout.endswith("finished\nexit 0\n"), done.stdout + done.stderr
    return out


def test_all_rows_are_there_where_only_torch_is(undisturbed):
    found = rows(undisturbed)
    by_table = {
        table: [row for row in found if row["table"] == table]
        for table in ("1", "2", "3", "4", "6")
    }
    assert {table: len(each) for table, each in by_table.items()} == {
        "1": 2,
        "2": 9,
        "3": 4 * 3,
        # Five attacks on two functions, KD, LID and MD in two spaces, two subsets.
        "4": 5 * 2 * 3 * 2 * 2,
        "6": 2 * (1 + 5 + 1),
    }
    for row in found:
        assert row["n"] >= 0 and row["threat_model"]
        assert {"epsilon", "num_steps"} <= set(row)
        if row["n"] == 0:  # an attack that fooled nothing says so
            assert "fooled" in row["no row"]
    cells = {(row["threat_model"], row["space"]) for row in by_table["4"] if row["n"]}
    assert len(cells) == 4  # the 2x2
    assert {row["attack"] for row in by_table["4"]} == set(ATTACKS_4)
    assert {row["attack"] for row in by_table["6"]} == {"none", *ATTACKS_6}
    for row in by_table["4"]:
        if row["n"]:
            value, low, high = row["auroc"]
            assert 0 <= low <= value <= high <= 1
    everything = summary(undisturbed)
    assert everything["finished"] and all(row["seconds"] >= 0 for row in everything["rows"])
    for name in TRAINED:
        assert stages(undisturbed)[name]["reached"] == "2 of 2 epochs"
    forms = stages(undisturbed)["speed"]["results"]["forms"]
    assert all(form["images_per_second"] > 0 for form in forms.values())
    assert (undisturbed / "pictures.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_runs_end_as_the_undisturbed_one(undisturbed, tmp_path):
    first = calls(smoke(tmp_path, 0.01, "--stages", "cdvae"))
    assert "the budget is used up" in first.stdout and first.stdout.endswith("exit 0\n")
    assert stages(tmp_path)["cdvae"]["reached"] == "1 of 2 epochs"
    assert not summary(tmp_path)["finished"]
    # What a killed call leaves: a file that was being written.
    (tmp_path / "state/cdvae/checkpoint.partial").write_bytes(b"half")
    then = calls(
        smoke(tmp_path, 0.01, "--stages", "cdvae"),
        smoke(tmp_path, 600, "--stages", "classifier-x", "classifier-g"),
        smoke(tmp_path, 0.01, "--stages", "tables"),
        smoke(tmp_path, 600, "--stages", "tables", "--tables", "6"),
        smoke(tmp_path, 600),
    )
    assert "cdvae: goes on after 1 of 2 epochs" in then.stdout
    assert then.stdout.count("exit 0") == 5 and then.stdout.endswith("finished\nexit 0\n")
    assert then.stdout.count("tables: 3 D of the CD-VAE") == 1
    for name in TRAINED:
        weights = (each / f"state/{name}/model.safetensors" for each in (undisturbed, tmp_path))
        first_bytes, then_bytes = (path.read_bytes() for path in weights)
        assert first_bytes == then_bytes, name
    assert rows(tmp_path) == rows(undisturbed)


def test_changed_settings_are_refused_and_finished_stages_are_not_done_again(undisturbed):
    before = (undisturbed / "state/cdvae/model.safetensors").stat().st_mtime_ns
    done = calls(smoke(undisturbed, 600, "--gamma", "0.5"), smoke(undisturbed, 600))
    assert done.stdout.count("exit 1") == 1 and done.stdout.endswith("finished\nexit 0\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: settings of the stage cdvae: objective.gamma: got 0.5, expected")
    assert (undisturbed / "state/cdvae/model.safetensors").stat().st_mtime_ns == before


def test_regressions_are_fitted_at_home(undisturbed, tmp_path):
    scores = read_tensors(undisturbed / "scores.safetensors")
    assert len(scores.facts) == len(ATTACKS_4) * 2
    (unit,) = [name for name in scores.facts if name == "class-essential-pgd-l2"]
    tensors = {name: each for name, each in scores.tensors.items() if name.startswith(unit)}
    write_tensors(tmp_path / "scores.safetensors", tensors, {unit: scores.facts[unit]})
    assert combine(tmp_path, resamples=10) == 3 * 2 * 2
    found = json.loads((tmp_path / "combined.json").read_text())
    for row in found:
        assert row["threat_model"] == "class-essential" and row["attack"] == "PGD-L2"
        assert row["n"] > 0 and row["mode"] == "same_attack" and row["trained_on"] == "PGD-L2"
    assert {row["subset"] for row in found} == {"successful", "all"}


def test_the_page_has_every_table_with_its_n(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out", ignore=shutil.ignore_patterns("state"))
    combine(tmp_path / "out", resamples=10)
    found = json.loads((tmp_path / "out/combined.json").read_text())
    text = all_tables(summary(undisturbed), found)
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(titles) == 9 and len(set(titles)) == 9
    for row in rows(undisturbed):
        if row["table"] == "3":
            assert f"| {row['row']} | {100 * row['top1'][0]:.1f} [" in text
    (white_box,) = [line for line in text.splitlines() if line.startswith("| PGD-Linf | D_G")][1:]
    assert "| white-box |" in white_box and white_box.endswith("| 32 |")


def test_the_gpu_preset_says_what_it_lacks(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    paper = ["--data", "synthetic", "--device", "cuda", "--out", str(tmp_path)]
    done = calls([*paper, "--budget-seconds", "1"])
    assert done.stdout == "exit 1\n"
    assert done.stderr.startswith("error: --device: got cuda")


# --- the plan -------------------------------------------------------------------------------------


def speed(compiled, eager, warm_up):
    forms = {
        OURS: {"images_per_second": compiled, "warm_up_seconds": warm_up},
        OURS_EAGER: {"images_per_second": eager, "warm_up_seconds": 1.0},
    }
    return {"forms": {name: each for name, each in forms.items() if each["images_per_second"]}}


def plan(seconds, **speeds):
    return make_plan(
        SCALE_PRESETS["paper"],
        seconds=seconds,
        num_images=50_000,
        speed=speed(**speeds),
    )


@pytest.mark.parametrize("seconds", [600.0, 7200.0])
def test_planned_epochs_fit_their_shares(seconds):
    found = plan(seconds, compiled=8000.0, eager=4000.0, warm_up=20.0)
    assert found["compile"]
    for stage, epochs in found["epochs"].items():
        took = 20 + epochs * 50_000 / 8000
        assert epochs >= 1 and took <= SHARES[stage] * seconds
    assert sum(SHARES.values()) < 0.9  # what is left is for speed and tables


def test_the_plan_compiles_only_where_that_pays():
    assert not plan(600.0, compiled=8000.0, eager=6000.0, warm_up=40.0)["compile"]
    assert plan(6000.0, compiled=8000.0, eager=6000.0, warm_up=40.0)["compile"]
    assert not plan(600.0, compiled=None, eager=6000.0, warm_up=0.0)["compile"]


def test_the_stage_that_no_table_needs_is_left_out_first():
    epochs = plan(120.0, compiled=None, eager=5000.0, warm_up=0.0)["epochs"]
    assert epochs["classifier-r"] == 0 and min(epochs[name] for name in NEEDED) == 1


def test_too_little_time_is_one_line():
    with pytest.raises(ConfigError, match=r"--plan-seconds: got 10, .* expected about \d+ or more"):
        plan(10.0, compiled=8000.0, eager=4000.0, warm_up=20.0)


def test_the_rate_falls_to_zero_over_exactly_the_epochs():
    found = plan(600.0, compiled=8000.0, eager=4000.0, warm_up=20.0)
    training = scheduled(SCALE_PRESETS["paper"].training, found, "cdvae")
    rates = [learning_rate(training, epoch) for epoch in range(training.epochs + 1)]
    assert training.epochs == found["epochs"]["cdvae"]
    assert rates[0] == 1e-3 and rates == sorted(rates, reverse=True)
    assert rates[-2] > rates[-1] == pytest.approx(0, abs=1e-12)


def test_a_call_always_does_something_and_begins_nothing_that_does_not_fit():
    clock = Clock(0.0)
    clock.begin(100.0)
    with pytest.raises(OutOfBudgetError):
        clock.begin(0.0)
    clock = Clock(50.0)
    clock.begin(1.0)
    clock.begin(1.0)
    with pytest.raises(OutOfBudgetError):
        clock.begin(60.0)


# --- files ----------------------------------------------------------------------------------------


def test_tensor_files_are_safetensors(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "scalar": torch.tensor(3.5),
        "double": torch.randn(2, 3, dtype=torch.float64),
        "half": torch.randn(5).bfloat16(),
        "strided": torch.arange(6).view(2, 3).T,
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    path = tmp_path / "some.safetensors"
    sha256 = write_tensors(path, tensors, {"epochs_done": 3})
    found = read_tensors(path, sha256=sha256)
    assert found.facts == {"epochs_done": 3}
    for read in (found.tensors, load_file(path)):
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


@pytest.mark.parametrize("damage", [b"", b"\x08", b"\xff" * 100, None])
def test_damaged_tensor_files_are_refused(tmp_path, damage):
    path = tmp_path / "some.safetensors"
    sha256 = write_tensors(path, {"a": torch.ones(4)}, {})
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"some\.safetensors: got"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_tensors(path, sha256=sha256)


def test_a_stage_names_the_setting_that_changed(tmp_path):
    Stage(tmp_path, "one", {"a": {"b": 1, "c": [1, 2]}}).note(reached="half", loss=1.0)
    again = Stage(tmp_path, "one", {"a": {"b": 1, "c": (1, 2)}})
    again.note(seconds=2.0, accuracy=float("nan"), finished=True)
    assert Stage(tmp_path, "one", {"a": {"b": 1, "c": [1, 2]}}).results == {
        "loss": 1.0,
        "accuracy": None,
    }
    with pytest.raises(ConfigError, match=r"stage one: a\.b: got 2, expected 1, with which"):
        Stage(tmp_path, "one", {"a": {"b": 2, "c": [1, 2]}})


@pytest.fixture
def parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder = tmp_path / "little"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 9), ("test", 5)):
        files = []
        for _ in range(count):
            pixels = torch.randint(0, 256, (32, 32, 3), generator=generator).to(torch.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(file, "PNG")
            files.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": files, "label": [number % 3 for number in range(count)]})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("encoded", [False, True])
def test_prepared_images_are_the_source_s(parquet, tmp_path, encoded, monkeypatch):
    from cdvae_ray.config.data import DataConfig
    from cdvae_ray.data import load_splits

    monkeypatch.setattr("benchmarks.paper_scale_parts.prepared.PART_BYTES", 4 * 3072)
    index = prepare(parquet, tmp_path / "prepared", encoded=encoded)
    assert len(index["splits"]["train"]["parts"]) > 1
    found, facts = read_prepared(tmp_path / "prepared")
    expected = load_splits(DataConfig(source="parquet", path=str(parquet), image_size=32))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.digest == theirs.digest and mine.class_names == theirs.class_names
    assert facts["splits"]["train"]["as_decoded_at_home"]
    part = tmp_path / "prepared" / index["splits"]["test"]["parts"][0]["file"]
    part.write_bytes(part.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_prepared(tmp_path / "prepared")


def test_raw_images_that_are_others_than_prepared_are_refused(parquet, tmp_path):
    prepare(parquet, tmp_path / "prepared", encoded=False)
    path = tmp_path / "prepared/dataset.json"
    path.write_text(path.read_text().replace('"digest": "', '"digest": "0'))
    with pytest.raises(DataError, match="digest"):
        read_prepared(tmp_path / "prepared")


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--data: got"):
        prepare(tmp_path, tmp_path / "out", encoded=False)


def test_pictures_are_read_by_others():
    from PIL import Image

    pixels = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(0))
    image = Image.open(io.BytesIO(png(pixels.to(torch.uint8)))).convert("RGB")
    assert image.size == (7, 5)
    assert list(image.tobytes()) == pixels.flatten().tolist()


def test_batches_on_the_device_are_those_from_memory():
    images = synthetic_splits(train_images=50).train
    mine = DeviceBatches(images, global_batch_size=16, seed=3, device=torch.device("cpu"))
    theirs = InMemoryBatches(images, global_batch_size=16, seed=3, rank=0, world_size=1)
    assert mine.batches_per_epoch == theirs.batches_per_epoch == 3
    for epoch in (0, 5):
        pairs = zip(mine.epoch_batches(epoch), theirs.epoch_batches(epoch), strict=True)
        for one, other in pairs:
            for first, second in zip(one, other, strict=True):
                assert torch.equal(first, second)
