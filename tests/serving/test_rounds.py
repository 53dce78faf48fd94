"""What is dropped, broken off, deleted and dropped again: no round of images touches another."""

import io
import threading

import numpy as np
import pytest

from mvo_jax.serving.refusal import Refusal
from mvo_jax.serving.session import Session
from tests.serving.model import BrightMiddle


class Slow(BrightMiddle):
    """Says when it predicts, and waits until it may go on."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    def predictor(self, batch_size, *, with_mask):
        compute = super().predictor(batch_size, with_mask=with_mask)

        def predict(video):
            self.begun.set()
            assert self.go_on.wait(20)
            return compute(video)

        return predict


def test_no_new_images_while_those_before_are_read(cine, caplog):
    model = Slow()
    session = Session(model)
    content = cine.read_bytes()
    session.receive("before.npz", io.BytesIO(content), len(content))
    session.predict()
    assert model.begun.wait(20)
    deleting = threading.Thread(target=session.clear)
    deleting.start()
    while session.state()["phase"] != "empty":
        pass
    with pytest.raises(Refusal, match="are being deleted"):
        session.receive("after.npz", io.BytesIO(content), len(content))
    model.go_on.set()
    deleting.join()
    session.receive("after.npz", io.BytesIO(content), len(content))
    session.close()
    assert not caplog.records  # the end of the prediction that nobody waits for is no failure


def test_an_upload_that_broke_off_does_not_count(cine):
    session = Session(BrightMiddle())
    content = cine.read_bytes()
    with pytest.raises(Refusal, match="ended early"):
        session.receive("half.npz", io.BytesIO(content[:100]), len(content))
    assert session.state()["files"] == 0
    with pytest.raises(Refusal, match="no images are waiting"):
        session.predict()
    session.receive("half.npz", io.BytesIO(content), len(content))
    assert session.state()["files"] == 1
    session.close()


def test_a_remedy_is_said_once(serving, tmp_path):
    np.savez(tmp_path / "still.npz", cine=np.arange(4096.0).reshape(1, 64, 64), pixel_mm=1.5)
    state = serving().predict(tmp_path / "still.npz")
    assert state["failed"][0]["remedy"].count("python -m mvo_jax predict") == 1
    assert state["error"][1] == state["failed"][0]["remedy"]
