"""No file is unpickled: by the code, read as a tree, and by what planted pickles leave behind.

The published files of CIFAR-10 are pickles that torchvision compares with their checksums first:
tests/data/test_cifar10_files.py. Weights from elsewhere: tests/core/test_pretrained.py and
tests/evaluation/test_image_features.py.
"""

import ast
import json
import pickle
from pathlib import Path

import pytest

import cdvae_ray
from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import load_splits
from cdvae_ray.data.streamed import open_streamed
from cdvae_ray.errors import CdvaeError
from cdvae_ray.evaluation.detector_files import DETECTOR_KIND
from cdvae_ray.storage.artifact import read_artifact, write_artifact
from cdvae_ray.storage.row_set import read_row_set
from cdvae_ray.storage.store import Store
from cdvae_ray.training.fit import resume
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

from .storage import test_adversarial_set, test_row_set
from .training.conftest import CPU, tiny_task

ROOT = Path(__file__).parents[1]
CODE = [
    path
    for folder in ("cdvae_ray", "jobs", "benchmarks", "infra")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
LOADS = ("load", "loads", "Unpickler", "_Unpickler", "open")
SAFE_YAML = ("SafeLoader", "CSafeLoader", "BaseLoader")


def unpicklings(tree):
    """Lines that may unpickle, and what they say."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                names[each.asname or each.name.partition(".")[0]] = (
                    each.name if each.asname else each.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                names[each.asname or each.name] = f"{node.module}.{each.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            module, _, function = f"{names.get(first, first)}{dot}{rest}".rpartition(".")
            if set(module.split(".")) & set(PICKLERS) and function in LOADS:
                yield node.lineno, ast.unparse(node)
            if function in ("read_pickle", "unsafe_load", "full_load", "unsafe_load_all"):
                yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and _call_unpickles(node, names):
            yield node.lineno, ast.unparse(node)


def _call_unpickles(node, names):
    first, dot, rest = ast.unparse(node.func).partition(".")
    called = f"{names.get(first, first)}{dot}{rest}"
    options = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if options.get("allow_pickle", "False") != "False":
        return True
    if called == "torch.load":
        return options.get("weights_only") != "True"
    if called == "torch.hub.load_state_dict_from_url":
        return options.get("weights_only") != "True"
    if called in ("yaml.load", "yaml.load_all"):
        loader = options.get("Loader") or (ast.unparse(node.args[1]) if node.args[1:] else "")
        return loader.rpartition(".")[2] not in SAFE_YAML
    return called in ("numpy.load", "np.load") and len(node.args) > 2


def test_no_code_unpickles():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in CODE
        for line, what in unpicklings(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(file)",
        "import pickle as p\np.loads(data)",
        "from pickle import loads\nloads(data)",
        "from pickle import loads as parse\nparse(data)",
        "import pickle\nread = pickle.loads",
        "import pickle\npickle.Unpickler(file).load()",
        "import cloudpickle\ncloudpickle.loads(data)",
        "from ray import cloudpickle\ncloudpickle.loads(data)",
        "import joblib\njoblib.load(path)",
        "import dill\ndill.loads(data)",
        "import shelve\nshelve.open(path)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, None, True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.unsafe_load(text)",
        "import pandas as pd\npd.read_pickle(path)",
    ],
)
def test_code_that_unpickles_is_seen(code):
    assert list(unpicklings(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass",
        "import pickle\npickle.dumps(value)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)\nyaml.load(text, Loader=yaml.CSafeLoader)",
        "import json\njson.loads(text)",
        "from safetensors.torch import load\nload(data)",
    ],
)
def test_other_code_is_taken(code):
    assert not list(unpicklings(ast.parse(code)))


# --- planted pickles ----------------------------------------------------------------------------


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture(params=[0, 2, pickle.HIGHEST_PROTOCOL])
def planted(request, marker):
    """A pickle that would leave the marker."""
    content = pickle.dumps(Touch(marker), protocol=request.param)
    pickle.loads(content)  # noqa: S301 - to see that it does
    assert marker.exists()
    marker.unlink()
    return content


def refused(read, marker):
    with pytest.raises(CdvaeError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def replace_sealed(folder, kind, file, content):
    """Puts content in a file's place, with a manifest that promises exactly that content."""
    store, name = Store.at(folder).parent()
    artifact = read_artifact(store, name, kind=kind)
    files = {**artifact.files, file: content}
    write_artifact(store, name, kind=kind, files=files, facts=artifact.facts)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_checkpoint_that_is_a_pickle_runs_no_code(tmp_path, marker, planted, file, sealed):
    run, state = Store.at(tmp_path / "run"), TrainState(tiny_task(), CPU)
    name = save_checkpoint(
        run, state, epochs_done=1, config_digest="d", identity={}, metrics={"loss": 1.0}
    )
    if sealed and file != "manifest.json":
        replace_sealed(tmp_path / "run" / name, state.task.checkpoint_kind, file, planted)
    else:
        run.child(name).write(file, planted)
    refused(lambda: resume(run, state, config_digest="d"), marker)
    if file != "optimizer.safetensors":
        refused(lambda: cdvae_ray.load(tmp_path / "run" / name), marker)


@pytest.mark.parametrize("file", ["images/shard-00001.parquet", "manifest.json"])
def test_an_adversarial_set_that_is_a_pickle_runs_no_code(tmp_path, marker, planted, file):
    test_adversarial_set.store_set(tmp_path / "set", 6)
    (tmp_path / "set" / file).write_bytes(planted)
    refused(lambda: cdvae_ray.load_adversarial_set(tmp_path / "set"), marker)


@pytest.mark.parametrize("file", ["rows/shard-00001.parquet", "manifest.json"])
def test_a_row_set_that_is_a_pickle_runs_no_code(tmp_path, marker, planted, file):
    store, _ = test_row_set.store_set(tmp_path / "set", 6)
    (tmp_path / "set" / file).write_bytes(planted)
    refused(lambda: read_row_set(store, test_row_set.KIND), marker)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_detector_that_is_a_pickle_runs_no_code(tmp_path, marker, planted, sealed):
    files = {"detector.safetensors": b"" if not sealed else planted}
    write_artifact(Store.at(tmp_path), "d", kind=DETECTOR_KIND, files=files, facts={"parts": {}})
    (tmp_path / "d" / "detector.safetensors").write_bytes(planted)
    refused(lambda: cdvae_ray.load_detector(tmp_path / "d"), marker)


def test_a_dataset_that_is_a_pickle_runs_no_code(tmp_path, marker, planted):
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(planted)
        (tmp_path / "folder" / split / "cat").mkdir(parents=True)
        (tmp_path / "folder" / split / "cat" / "0.png").write_bytes(planted)
    (tmp_path / "manifest.json").write_bytes(planted)
    path = str(tmp_path)
    refused(lambda: load_splits(DataConfig(source="parquet", path=path, image_size=16)), marker)
    folder = DataConfig(source="folder", path=f"{path}/folder", image_size=16)
    refused(lambda: load_splits(folder), marker)
    streamed = {"max_corrupt_fraction": 0.0, "say": lambda _: None}
    refused(lambda: open_streamed(path, 16, **streamed), marker)


def test_json_is_what_a_run_folder_reads(tmp_path, marker, planted):
    store = Store.at(tmp_path)
    store.write("run.json", planted)
    refused(lambda: store.read_json("run.json"), marker)
    store.write("run.json", json.dumps({"a": 1}).encode())
    assert store.read_json("run.json") == {"a": 1}
