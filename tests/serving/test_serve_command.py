"""`serve` as a process: what it prints, and that its end deletes everything."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A bundle is exported and read in tests/bundles; here its place is taken by a model that is there.
PROGRAM = """
import sys
import mvo_jax.bundles.bundle as bundle
from tests.serving.model import BrightMiddle
bundle.load_bundle = lambda folder: BrightMiddle()
from mvo_jax.cli.main import run
code = run("serve", sys.argv[1:])
print(sorted({"jax", "flax", "matplotlib", "sklearn", "tensorflow_datasets"} & set(sys.modules)))
sys.exit(code)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--bundle=none", *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_its_end_deletes_everything(tmp_path, end):
    process = start(tmp_path)
    assert process.stdout is not None
    opened = process.stdout.readline()
    assert opened.startswith("open http://127.0.0.1:")
    _, _, host, token, _ = opened.split()[1].split("/")
    assert "Ctrl-C" in process.stdout.readline()
    assert "not for clinical use" in process.stdout.readline()
    with contextlib.closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        connection.request("PUT", f"/{token}/files/a/scan.dcm", b"image")
        assert connection.getresponse().read() == b"{}"
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o77 == 0  # for this user only
    assert [path.name for path in folder.rglob("*.dcm")] == ["scan.dcm"]
    # A file that is just being sent.
    port = int(host.split(":")[1])
    with socket.create_connection(("127.0.0.1", port)) as sending:
        lines = f"PUT /{token}/files/a/late.dcm HTTP/1.1", f"Host: {host}", "Content-Length: 9"
        sending.sendall("\r\n".join((*lines, "", "abc")).encode())
        process.send_signal(end)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(tmp_path, f"--port={taken.getsockname()[1]}")
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "[]\n")
    assert "cannot listen on port" in err
    assert "--port" in err
    assert list(tmp_path.iterdir()) == []
