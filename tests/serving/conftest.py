"""A server on a thread, images to drop, and a plain client."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvo_jax.data.cohort import heart
from mvo_jax.data.cohort.locate import Found
from mvo_jax.serving.server import PageServer
from mvo_jax.serving.session import Session
from tests.serving.model import BrightMiddle


class Client:
    """Asks a server as a browser would."""

    def __init__(self, server: PageServer):
        self.server = server

    def ask(
        self, method: str, path: str, body: bytes = b"", *, token: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and content of a path behind the token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            where = f"/{self.server.token if token is None else token}/{path}"
            connection.request(method, where, body, given)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def put(self, path: Path, name: str = "") -> None:
        assert self.ask("PUT", f"files/{name or path.name}", path.read_bytes())[0] == 200

    def state(self) -> dict[str, Any]:
        return json.loads(self.ask("GET", "state")[1])

    def predict(self, *paths: Path) -> dict[str, Any]:
        """What the page shows of these files."""
        for path in paths:
            self.put(path)
        assert self.ask("POST", "predict")[0] == 200
        while (state := self.state())["phase"] == "working":
            time.sleep(0.02)
        return state


@pytest.fixture(autouse=True)
def unsure(monkeypatch) -> None:
    """A locator that finds nothing: the disc that these tests drop is no heart."""
    monkeypatch.setattr(heart, "locate", lambda slices: Found(np.zeros(2), 0.25))


@pytest.fixture
def client() -> Iterator[Client]:
    """Of a server of a fake model, which ends with the test and leaves nothing."""
    server = PageServer(Session(BrightMiddle()))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield Client(server)
    server.shutdown()
    server.server_close()
    server.session.close()
    thread.join()
    assert not server.session._root.exists()


@pytest.fixture(scope="session")
def cine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slices of one patient: a bright disc that beats left of the middle, and little noise."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :128]
    distance = np.hypot(rows - 48, columns - 50)
    radius = 14 + 4 * np.cos(2 * np.pi * np.arange(10) / 10)
    disc = 900.0 * (distance < radius[:, None, None])
    frames = (disc + draws.integers(50, 150, (2, 10, 96, 128))).astype(np.uint16)
    path = tmp_path_factory.mktemp("cine") / "beating.npz"
    np.savez(path, cine=frames, pixel_mm=1.5, patient_id=["A<b>", "A<b>"])
    return path
