"""The page's server: what it predicts, what it refuses, and that nothing stays."""

import csv
import io
import json
import random
import shutil
import socket
import zipfile

import numpy as np
import pytest
from PIL import Image

from mvo_jax.predict_images import predict_images
from mvo_jax.serving import upload
from tests.serving.model import BrightMiddle


def test_a_file_is_predicted_shown_corrected_and_deleted(client, cine):
    status, page = client.ask("GET", "")
    assert status == 200
    assert b"not for clinical use" in page
    assert b"trained on simulated images only" in page
    state = client.predict(cine)
    assert (state["phase"], state["error"]) == ("done", None)
    assert [one["case_id"] for one in state["slices"]] == ["beating_s00", "beating_s01"]
    assert [row["slices"] for row in state["patients"]] == [2]
    assert not state["maps"]  # .npz has no place in space
    before = state["slices"][1]
    assert before["centre_from"] == "motion"
    assert (before["width"], before["height"]) == (128, 96)
    left, top, right, bottom = before["box"]
    assert (right - left, bottom - top) == (32, 32)
    assert abs((left + right) / 2 - 50.5) < 3
    assert before["suspected"]
    for path, size in (("beat/1.webp?0", (2 * 256 + 6, 256)), ("source/1.webp", (128, 96))):
        status, content = client.ask("GET", path)
        assert status == 200
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == size
    # Away from the heart it is dark; the other slice stays as it is.
    place = json.dumps({"slice": 1, "row": 40, "column": 100})
    status, content = client.ask("POST", "move", place.encode())
    assert status == 200
    first, moved = json.loads(content)["slices"]
    assert first == state["slices"][0]
    assert moved["box"] == [85, 25, 117, 57]  # around pixel (40, 100), halves go up
    assert (moved["centre_from"], moved["version"]) == ("given", 1)
    assert not moved["suspected"]
    status, content = client.ask("GET", "predictions.csv")
    first, second = csv.DictReader(io.StringIO(content.decode()))
    assert (first["centre_row"], first["decision"]) == ("", "1")
    assert (second["centre_row"], second["centre_column"]) == ("40.0", "100.0")
    assert (second["decision"], second["source"]) == ("0", "beating.npz")
    folder = client.server.session._root
    assert any(folder.iterdir())
    assert client.ask("POST", "clear")[0] == 200
    assert list(folder.iterdir()) == []
    assert client.state()["phase"] == "empty"
    for path in ("beat/0.webp", "source/0.webp", "predictions.csv"):
        assert client.ask("GET", path)[0] == 404


def test_a_folder_and_an_archive_give_what_predict_gives(client, cine, tmp_path):
    client.put(cine, "Zo%C3%AB%20%3Cb%3E/beating.npz")
    found = client.predict()
    assert client.ask("POST", "clear")[0] == 200
    (tmp_path / "images").mkdir()
    shutil.copy(cine, tmp_path / "images")
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "images")
    again = client.predict(type(cine)(archive))
    assert client.ask("GET", "predictions.csv")[1].count(b"export.zip/beating.npz") == 2
    predicted = predict_images(BrightMiddle(), cine, tmp_path / "out").cases
    one, other, third = (
        [row["probability"] for row in rows]
        for rows in (found["slices"], again["slices"], predicted)
    )
    assert one == other == third


def test_maps_are_those_of_predict_and_a_moved_one_stays_in_its_stack(client, cine, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    frames = np.load(cine)["cine"].transpose(3, 2, 0, 1).astype(np.float32)  # x, y, slice, time
    path = tmp_path / "stack.nii.gz"
    nibabel.save(nibabel.Nifti1Image(frames, np.diag([1.5, 1.5, 8, 1])), path)

    def maps(client) -> np.ndarray:
        status, content = client.ask("GET", "maps.zip")
        assert status == 200
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name,) = archive.namelist()
            (tmp_path / name).write_bytes(archive.read(name))
        return nibabel.load(tmp_path / name).get_fdata()

    assert client.predict(path)["maps"]
    before = maps(client)
    predict_images(BrightMiddle(), path, tmp_path / "out", nifti=True)
    (written,) = (tmp_path / "out" / "maps").iterdir()
    np.testing.assert_array_equal(before, nibabel.load(written).get_fdata())
    place = {"slice": 0, "row": 40, "column": 20}
    assert client.ask("POST", "move", json.dumps(place).encode())[0] == 200
    after = maps(client)
    moved = [not np.array_equal(before[..., k], after[..., k]) for k in range(2)]
    assert sorted(moved) == [False, True]
    assert client.ask("POST", "clear")[0] == 200
    assert client.ask("GET", "maps.zip")[0] == 404


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"not an archive", "a.zip", "no sound .zip"),
        (b"text", "notes.txt", "in no format that is recognised"),
        (b"not an archive", "a.npz", "nothing could be predicted"),
        (None, "bomb.zip", "bomb.zip would unpack to"),
        (None, "many.zip", "many.zip holds 5 files, more than 3"),
        (None, "out.zip", "leads out of it"),
    ],
)
def test_bad_images_are_told_and_others_can_follow(
    client, cine, tmp_path, monkeypatch, content, name, words
):
    monkeypatch.setattr(upload, "MAX_FILES", 3 if name == "many.zip" else upload.MAX_FILES)
    monkeypatch.setattr(upload, "MAX_BYTES", 1 << 22 if name == "bomb.zip" else upload.MAX_BYTES)
    if content is None:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../out.npz" if name == "out.zip" else "a.npz", bytes(1 << 23))
            for i in range(4 if name == "many.zip" else 0):
                archive.writestr(str(i), b"")
    else:
        (tmp_path / name).write_bytes(content)
    state = client.predict(tmp_path / name)
    assert state["phase"] == "failed"
    assert words in state["error"][0]
    assert str(client.server.session._root) not in json.dumps(state)
    assert not (client.server.session._root / "1" / "unpacked").exists()
    assert client.ask("POST", "clear")[0] == 200
    assert client.predict(cine)["phase"] == "done"


def test_only_who_has_the_token_is_answered(client):
    token = client.server.token
    wrong = ("", "x", token[:-1], token + "x", token.swapcase(), "%2e%2e", "..", "%C3%A9")
    for other in wrong:
        status, content = client.ask("GET", "state", token=other)
        assert status == 404
        assert token.encode() not in content
    port = client.server.server_port
    for host in ("example.org", f"example.org:{port}", f"127.0.0.1:{port + 1}", "127.0.0.1", ""):
        assert client.ask("GET", "state", Host=host)[0] == 403
    assert client.ask("GET", "state", Host=f"localhost:{port}")[0] == 200
    for origin in ("null", "http://example.org", f"https://127.0.0.1:{port}"):
        assert client.ask("POST", "clear", Origin=origin)[0] == 403
    assert client.ask("POST", "clear", Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert client.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "%2e%2e/x", "..%2fx", "a%2F..%2Fx", "/etc/x", "a//x", "", ".", "a/.",
     "a%00b", "a%5C..%5Cb", "C:x", "a/" * 20 + "x", "x" * 300, "a%0Ab"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(client, name):
    assert client.ask("PUT", f"files/{name}", b"x")[0] == 400
    assert list(client.server.session._root.iterdir()) == []


def test_too_much_is_refused_before_it_is_read(client, monkeypatch, tmp_path):
    root = client.server.session._root
    port, token = client.server.server_port, client.server.token

    def told(*headers: str, body: bytes = b"") -> bytes:
        """Status of a request whose headers are not those of its body."""
        lines = [f"PUT /{token}/files/a HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers, "", ""]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall("\r\n".join(lines).encode() + body)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").readline().split()[1]

    for size, status in (("3000000000", b"413"), ("99999999999999999999", b"400"), ("-1", b"400")):
        assert told(f"Content-Length: {size}") == status
    assert told("Content-Length: 1", "Content-Length: 1", body=b"x") == b"411"
    assert told("Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\n\r\n") == b"411"
    assert told() == b"411"
    assert told("Content-Length: 10", body=b"abc") == b"400"  # ends early
    assert [path for path in root.rglob("*") if path.is_file()] == []
    # All files together, and their number.
    assert client.ask("POST", "clear")[0] == 200
    monkeypatch.setattr(upload, "MAX_BYTES", 100)
    assert client.ask("PUT", "files/a", bytes(60))[0] == 200
    assert client.ask("PUT", "files/b", bytes(60))[0] == 413
    assert client.ask("PUT", "files/a", b"x")[0] == 409  # there already
    assert client.ask("PUT", "files/a/b", b"x")[0] == 409
    monkeypatch.setattr(upload, "MAX_FILES", 3)
    assert [client.ask("PUT", f"files/{i}", b"x")[0] for i in range(4)] == [200, 200, 413, 413]
    assert client.ask("POST", "move", bytes(5000))[0] == 413


def test_moves_that_mean_nothing(client, cine):
    state = client.predict(cine)
    places = [b"", b"[]", b"{}", b"\xff", b"[" * 4000, b'{"slice": true, "row": 1, "column": 1}',
              b'{"slice": 0, "row": NaN, "column": 1}', b'{"slice": 0, "row": 1e999, "column": 1}',
              b'{"slice": 0, "row": null, "column": 1}']  # fmt: skip
    for place in places:
        assert client.ask("POST", "move", place)[0] == 400
    assert client.ask("POST", "move", b'{"slice": 9, "row": 1, "column": 1}')[0] == 409
    outside = client.ask("POST", "move", b'{"slice": 0, "row": 500, "column": 1}')
    assert outside[0] == 422
    assert b"lies outside the image" in outside[1]
    assert client.state() == state


def test_a_thousand_random_requests_leave_it_as_it_was(client, cine):
    state = client.predict(cine)
    draws = random.Random(0)
    token, port = client.server.token, client.server.server_port
    words = ["GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS", "/", token, "..", "%2e", "state",
             "files", "predict", "move", "beat", "0.webp", "source", "HTTP/1.1", "HTTP/0.9", "\r\n",
             f"Host: 127.0.0.1:{port}", "Content-Length: 5", "Expect: 100-continue", " ", "\0",
             "//", "?", "[", "é", "x" * 70_000]  # fmt: skip
    for _ in range(1000):
        pieces = (draws.choice(words) for _ in range(draws.randrange(1, 12)))
        if draws.random() < 0.5:
            path = f"GET /{token}/{draws.choice(words)}/{draws.choice(words)} HTTP/1.1\r\n"
            request = path + f"Host: 127.0.0.1:{port}\r\n{draws.choice(words)}: 1\r\n\r\n"
        else:
            request = "".join(pieces) + "\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            try:
                connection.sendall(request.encode())
                connection.shutdown(socket.SHUT_WR)
                answer = connection.makefile("rb").read()
            except OSError:
                continue  # it left before it had read all
        assert b"Traceback" not in answer
        assert str(client.server.session._root).encode() not in answer
    assert client.state() == state


def test_what_comes_while_images_are_deleted_stays_nowhere(client, cine):
    port, token = client.server.server_port, client.server.token
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"PUT /{token}/files/late HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        connection.sendall(f"{head}Content-Length: 6\r\n\r\nabc".encode())
        while client.state()["files"] == 0:
            pass
        assert client.ask("POST", "predict")[0] == 409  # it is not whole
        assert client.ask("POST", "clear")[0] == 200
        connection.sendall(b"def")
        assert connection.makefile("rb").readline().split()[1] == b"409"
    assert list(client.server.session._root.iterdir()) == []
    assert client.predict(cine)["phase"] == "done"
    client.server.session.close()
    assert client.ask("PUT", "files/a", b"x")[0] == 409
    assert not client.server.session._root.exists()


def test_a_model_that_gives_no_number(client, cine, monkeypatch):
    nothing = {"probability": np.full(2, np.nan)}
    monkeypatch.setattr(client.server.session, "_predictor", lambda video: nothing)
    state = client.predict(cine)
    assert state["phase"] == "failed"
    assert "the model gives nan" in state["error"][0]
