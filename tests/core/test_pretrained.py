"""Where a classifier may start: a file of other people's weights."""

import pytest
import torch
from torchvision.models import resnet18

from cdvae_ray.core.build_network import build_network
from cdvae_ray.core.pretrained import read_pretrained, start_from
from cdvae_ray.errors import CheckpointError

ONE_LINE = r"^[^\n]+: got [^\n]+, expected [^\n]+; [^\n]+$"


def network(num_classes=5, depth=18):
    return build_network(
        "resnet", depth=depth, widen_factor=1, dropout=0.0, num_classes=num_classes
    )


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


def saved(path, tensors):
    torch.save(tensors, path)
    return str(path)


def test_as_many_classes_take_all_weights(theirs, tmp_path):
    for content in (theirs.state_dict(), {"state_dict": theirs.state_dict(), "epoch": 3}):
        ours = network().eval()
        start_from(ours, read_pretrained(saved(tmp_path / "r.pth", content)))
        images = torch.rand(2, 3, 40, 40)
        assert torch.equal(ours(images), theirs(images))


def test_other_classes_keep_their_own_last_layer_and_take_the_rest(theirs, tmp_path):
    ours = network(num_classes=3)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    start_from(ours, read_pretrained(saved(tmp_path / "r.pth", theirs.state_dict())))
    for name, value in ours.state_dict().items():
        source = before if name.startswith("fc.") else theirs.state_dict()
        assert torch.equal(value, source[name]), name


def test_the_digest_is_of_the_weights_and_not_of_the_file(theirs, tmp_path):
    state = theirs.state_dict()
    first = read_pretrained(saved(tmp_path / "a.pth", state)).digest
    backwards = dict(reversed(list(state.items())))
    assert read_pretrained(saved(tmp_path / "b.pth", {"state_dict": backwards})).digest == first
    changed = {**state, "fc.bias": state["fc.bias"] + 1}
    assert read_pretrained(saved(tmp_path / "c.pth", changed)).digest != first


def test_another_network_is_refused(theirs, tmp_path):
    pretrained = read_pretrained(saved(tmp_path / "r.pth", theirs.state_dict()))
    with pytest.raises(CheckpointError, match=ONE_LINE) as refused:
        start_from(network(depth=34), pretrained)
    assert "layer1.2" in str(refused.value)
    narrow = {**theirs.state_dict(), "conv1.weight": torch.zeros(8, 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        start_from(network(), read_pretrained(saved(tmp_path / "n.pth", narrow)))


def test_what_is_no_state_dict_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="got no such file"):
        read_pretrained(str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(CheckpointError, match=ONE_LINE):
        read_pretrained(str(tmp_path / "text.pth"))
    with pytest.raises(CheckpointError, match="no state dict"):
        read_pretrained(saved(tmp_path / "list.pth", [torch.zeros(1)]))


class Trap:
    """Unpickled, it would leave a trace."""

    def __reduce__(self):
        return (open, ("trace", "w"))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=ONE_LINE):
        read_pretrained(saved(tmp_path / "trap.pth", {"fc.bias": Trap()}))
    assert not (tmp_path / "trace").exists()
