"""What importing costs, and that the core runs where only torch is."""

import subprocess
import sys

BLOCK = """
import importlib.abc, sys
BLOCKED = {blocked!r}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
"""
# NumPy is left out: PyTorch imports it by itself.
BEYOND_TORCH = (
    "ray mlflow sklearn torchvision pyarrow pandas safetensors matplotlib PIL tyro".split()  # noqa: SIM905
)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_the_package_pulls_in_neither_ray_nor_mlflow_nor_torch():
    done = run(
        "import sys, cdvae_ray\n"
        "print([name for name in ('ray', 'mlflow', 'torch') if name in sys.modules])\n"
        "cdvae_ray.CDVAE, cdvae_ray.load, cdvae_ray.load_released_checkpoint\n"
        "cdvae_ray.attacks.pgd, cdvae_ray.detectors.fit_lid, cdvae_ray.load_adversarial_set\n"
        "print([name for name in ('ray', 'mlflow') if name in sys.modules])"
    )
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


def test_the_core_runs_where_only_torch_is(tmp_path):
    code = BLOCK.format(blocked=BEYOND_TORCH) + (
        "import torch, warnings\n"
        "from cdvae_ray import CDVAE\n"
        "from cdvae_ray.config.model import ModelConfig\n"
        "from cdvae_ray.config.objective import ObjectiveConfig\n"
        "from cdvae_ray.core.objective import cdvae_loss\n"
        "import cdvae_ray.core.augment, cdvae_ray.core.mixup, cdvae_ray.core.released\n"
        "import cdvae_ray.attacks, cdvae_ray.detectors, cdvae_ray.core.sync_batch_norm\n"
        "config = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10,\n"
        "                     classifier_widen_factor=1)\n"
        "model = CDVAE(config, image_size=16, class_names=('a', 'b'))\n"
        "output = model(torch.rand(4, 3, 16, 16))\n"
        "loss = cdvae_loss(output, torch.tensor([0, 1, 0, 1]), objective=ObjectiveConfig(),\n"
        "                  epoch=0)\n"
        "loss.total.backward()\n"
        "print('done', bool(torch.isfinite(loss.total)))"
    )
    done = run(code)
    assert done.stdout.strip() == "done True", done.stderr


def test_an_unknown_public_name_is_an_attribute_error():
    done = run("import cdvae_ray\ncdvae_ray.nothing")
    assert "has no attribute 'nothing'" in done.stderr
