"""A headless Chromium, driven over its DevTools protocol: no driver, no download."""

import contextlib
import http.client
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Browser:
    """One page.

    Attributes:
        asked: addresses that the page has asked for.
        wrong: errors of its script and of its security policy.
    """

    def __init__(self, connection: Any):
        self._connection, self._numbers = connection, itertools.count(1)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command; its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while (answer := json.loads(self._connection.recv())).get("id") != number:
            self._note(answer["method"], answer["params"])
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.wrong.append(str(about["exceptionDetails"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.wrong.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def evaluate(self, script: str) -> Any:
        """The value of a script."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Returns when the script is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, (script, self.evaluate("document.body.innerText"))
            time.sleep(0.02)

    def drop(self, path: Path, selector: str) -> None:
        """Drags a file or folder from outside onto an element."""
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        x, y = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})"
        )
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def click(self, x: float, y: float) -> None:
        """Moves the pointer there and clicks."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A page of a fresh browser; the test is skipped where none is installed."""
    websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is installed ({', '.join(NAMES)})")
    flags = ["--headless=new", "--disable-gpu", "--no-first-run", "--window-size=1200,1000"]
    if os.getuid() == 0:
        flags.append("--no-sandbox")  # Chromium's sandbox does not work as root
    process = subprocess.Popen(
        [program, *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        told, end = profile / "DevToolsActivePort", time.monotonic() + 30
        while not told.is_file() or not told.read_text():
            assert process.poll() is None, f"{program} ended with {process.returncode}"
            assert time.monotonic() < end, f"{program} does not start"
            time.sleep(0.05)
        asking = http.client.HTTPConnection("127.0.0.1", int(told.read_text().split()[0]))
        asking.request("GET", "/json/list")
        pages = json.loads(asking.getresponse().read())
        asking.close()
        address = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
        connection = websocket.create_connection(address, suppress_origin=True, timeout=30)
        with contextlib.closing(connection):
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait()
