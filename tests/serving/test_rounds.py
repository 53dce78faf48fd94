"""What is dropped, broken off, deleted and dropped again: no round of images touches another."""

import io
import json
import threading
import time

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


def test_two_windows_do_not_mix_their_images(client, cine):
    first = json.loads(client.ask("POST", "clear")[1])["drop"]
    assert client.ask("PUT", f"files/first.npz?drop={first}", cine.read_bytes())[0] == 200
    second = json.loads(client.ask("POST", "clear")[1])["drop"]  # another window drops
    status, told = client.ask("PUT", f"files/more.npz?drop={first}", cine.read_bytes())
    assert (status, b"in another window" in told) == (409, True)
    assert client.ask("PUT", f"files/second.npz?drop={second}", cine.read_bytes())[0] == 200
    assert client.ask("POST", f"predict?drop={first}")[0] == 409
    assert client.ask("POST", f"predict?drop={second}")[0] == 200
    while (state := client.state())["phase"] == "working":
        time.sleep(0.02)
    assert [one["case_id"] for one in state["slices"]] == ["second_s00", "second_s01"]
    place = json.dumps({"slice": 0, "row": 40, "column": 100}).encode()
    assert client.ask("POST", f"move?drop={first}", place)[0] == 409
    for path in ("beat/0.webp", "source/0.webp"):
        assert client.ask("GET", f"{path}?0&drop={first}")[0] == 409
        assert client.ask("GET", f"{path}?0&drop={second}")[0] == 200
    assert client.ask("POST", f"move?drop={second}", place)[0] == 200
    assert client.ask("POST", "move?drop=x", place)[0] == 400


def test_a_remedy_is_said_once(client, tmp_path):
    np.savez(tmp_path / "still.npz", cine=np.arange(4096.0).reshape(1, 64, 64), pixel_mm=1.5)
    state = client.predict(tmp_path / "still.npz")
    assert state["failed"][0]["remedy"].count("python -m mvo_jax predict") == 1
    assert state["error"][1] == state["failed"][0]["remedy"]
