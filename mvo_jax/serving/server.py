"""The page over HTTP, for one person on this machine.

It listens on 127.0.0.1 only. Every address begins with a token that is drawn at the start and
printed once, so that no other user and no web page open beside it can ask for anything; a Host that
is not this address is refused, which stops a foreign name that was made to point here (DNS
rebinding); what changes something must not come from another origin. Nothing is fetched from
anywhere: the content security policy has the browser hold to that too.
"""

import hmac
import json
import logging
import math
import re
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from mvo_jax.evaluation.pages import render
from mvo_jax.evaluation.pages.case_results import RESEARCH_ONLY
from mvo_jax.serving.refusal import Refusal
from mvo_jax.serving.session import Session
from mvo_jax.serving.upload import MAX_BYTES

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_MAX_MESSAGE = 4096
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """Serves one session on a port of 127.0.0.1; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.hosts = tuple(f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost"))
        page = render.render_page(
            "serve.html.j2",
            folder=_HERE,
            research_only=RESEARCH_ONLY,
            model=session.model,
            max_bytes=MAX_BYTES,
        )
        self.files = {
            "": (page.encode(), "text/html; charset=utf-8"),
            "page.css": (Path(render.__file__).with_name("page.css").read_bytes(), "text/css"),
            "icon.svg": ((_HERE / "icon.svg").read_bytes(), "image/svg+xml"),
            "serve.css": ((_HERE / "serve.css").read_bytes(), "text/css"),
            "serve.js": ((_HERE / "serve.js").read_bytes(), "text/javascript; charset=utf-8"),
        }

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news, and names of patients belong into no log."""
        log.debug("a connection ended", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mvo_jax", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain"
    timeout = 30  # seconds without a byte

    def do_GET(self) -> None:
        """The page, its state, its pictures and downloads."""
        self._answer(self._get)

    def do_PUT(self) -> None:
        """One dropped file."""
        self._answer(self._put)

    def do_POST(self) -> None:
        """Predict, move a crop, or delete everything."""
        self._answer(self._post)

    def _answer(self, act: Callable[[str], tuple[bytes, str]]) -> None:
        try:
            content, kind = act(self._checked_path())
            self._send(200, content, kind)
        except Refusal as refusal:
            self._refuse(refusal)
        except OSError:  # the browser has left, or says nothing any more
            self.close_connection = True
        except Exception:
            log.exception("a request failed")
            self._refuse(Refusal(500, "something went wrong here", "start serve again"))

    def _refuse(self, refusal: Refusal) -> None:
        # What was sent with it is not read, so the connection cannot go on.
        self.close_connection = True
        told = {"cause": refusal.cause, "remedy": refusal.remedy}
        self._send(refusal.status, _as_json(told), "application/json")

    def _checked_path(self) -> str:
        """The path behind the token, still quoted."""
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise Refusal(403, "this is no address of this page", "open the address as printed")
        token, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise Refusal(404, "not found", "open the address as printed")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refusal(403, "this comes from another page", "open the address as printed")
        return rest

    def _drop(self) -> int | None:
        """Number of the images that the asking page means; a plain client may leave it out."""
        given = parse_qs(self.path.partition("?")[2]).get("drop")
        if given is None:
            return None
        if not re.fullmatch(r"[0-9]{1,9}", given[0]):
            raise Refusal(400, "this is no number of a drop", "load the page again")
        return int(given[0])

    def _get(self, path: str) -> tuple[bytes, str]:
        session = self.server.session
        if path in self.server.files:
            return self.server.files[path]
        if path == "state":
            return _as_json(session.state()), "application/json"
        if path == "predictions.csv":
            return session.table(), "text/csv; charset=utf-8"
        if path == "maps.zip":
            return session.maps(), "application/zip"
        if found := re.fullmatch(r"(beat|source)/(\d{1,6})\.webp", path):
            return getattr(session, found[1])(int(found[2]), self._drop()), "image/webp"
        raise Refusal(404, "not found", "load the page again")

    def _put(self, path: str) -> tuple[bytes, str]:
        if not path.startswith("files/"):
            raise Refusal(404, "not found", "load the page again")
        parts = [unquote(part) for part in path.removeprefix("files/").split("/")]
        if any("/" in part for part in parts):
            raise Refusal(400, "this is no name for a file", "rename it")
        self.server.session.receive("/".join(parts), self.rfile, self._length(), self._drop())
        return b"{}", "application/json"

    def _post(self, path: str) -> tuple[bytes, str]:
        session, length = self.server.session, self._length()
        if length > _MAX_MESSAGE:
            raise Refusal(413, "this message is too long", "load the page again")
        body = self.rfile.read(length)
        if path == "predict":
            session.predict(self._drop())
        elif path == "clear":
            session.clear()
        elif path == "move":
            session.move(*_asked_move(body), self._drop())
        else:
            raise Refusal(404, "not found", "load the page again")
        return _as_json(session.state()), "application/json"

    def _length(self) -> int:
        """Bytes of the body, which must be told beforehand."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get("Transfer-Encoding") is not None or len(lengths) != 1:
            raise Refusal(411, "the length is not told", "use a usual browser")
        if not re.fullmatch(r"[0-9]{1,15}", lengths[0]):
            raise Refusal(400, "the length is no number", "use a usual browser")
        return int(lengths[0])

    def _send(self, status: int, content: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses hold the token and names of patients."""


def _as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(render.plain(content), allow_nan=False).encode()


def _asked_move(body: bytes) -> tuple[int, tuple[float, float]]:
    """The slice and the centre (row, column) of a request."""
    try:
        asked = json.loads(body)
        index, row, column = asked["slice"], float(asked["row"]), float(asked["column"])
        if type(index) is int and math.isfinite(row) and math.isfinite(column):
            return index, (row, column)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        pass
    raise Refusal(400, "this is no place of a slice", "load the page again")
