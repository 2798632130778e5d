"""Reading messages while a training runs: which error tells why it ended."""

from types import SimpleNamespace

import pytest
from ray.exceptions import RayError

from cdvae_ray.runtime import mailbox as module
from cdvae_ray.runtime.mailbox import Resumed, reading


@pytest.fixture
def mailbox(monkeypatch):
    """One that holds two messages, without a cluster."""
    waiting = [Resumed(1), Resumed(2)]

    def drain():
        taken, waiting[:] = list(waiting), []
        return taken

    monkeypatch.setattr(module.ray, "get", lambda reference: reference)
    return SimpleNamespace(drain=SimpleNamespace(remote=drain))


def test_every_message_is_handled_once_and_in_order(mailbox):
    handled = []
    with reading(mailbox, handled.append, every_seconds=0.01):
        pass
    assert handled == [Resumed(1), Resumed(2)]


@pytest.mark.parametrize("raised", [SystemExit(0), ValueError("of the handler")])
def test_a_handler_that_stops_is_the_reason_and_not_what_the_training_meets_after_it(
    mailbox, raised
):
    handled = []

    def handle(message):
        handled.append(message)
        raise raised

    with pytest.raises(type(raised)) as caught, reading(mailbox, handle, every_seconds=0.01):
        raise RayError("the controller is gone")
    assert caught.value is raised
    assert handled == [Resumed(1)]


def test_an_error_of_the_training_alone_is_its_own(mailbox):
    with pytest.raises(RayError, match="gone"), reading(mailbox, lambda message: None):
        raise RayError("the controller is gone")
