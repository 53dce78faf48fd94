"""``mvo-jax serve --bundle BUNDLE``: a page on one's own machine, for who uses no terminal."""

import signal
from pathlib import Path

from mvo_jax.cli.flags import Flags, parse
from mvo_jax.errors import UserError


def _define(values: Flags) -> None:
    values.string("bundle", None, "Folder of a bundle.", required=True)
    threshold = "Decision threshold, in place of the bundle's."
    values.float("threshold", None, threshold, lower_bound=0.0, upper_bound=1.0)
    port = "Port of 127.0.0.1; 0 takes a free one."
    values.integer("port", 0, port, lower_bound=0, upper_bound=65535)


def main(arguments: list[str]) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then delete all that was dropped.

    Raises:
        UserError: no bundle, or a port that is taken.
    """
    values = parse(arguments, _define)
    from mvo_jax.bundles.bundle import load_bundle
    from mvo_jax.evaluation.pages.case_results import RESEARCH_ONLY
    from mvo_jax.serving.server import PageServer
    from mvo_jax.serving.session import Session

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    session, bundle = None, load_bundle(Path(values.bundle))
    ends = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)]))
    before = {end: signal.signal(end, stop) for end in ends}
    try:
        session = Session(bundle, values.threshold)
        with PageServer(session, values.port) as server:
            print(f"open {server.address} in a browser on this machine")
            print("Ctrl-C ends it and deletes what was dropped")
            print(RESEARCH_ONLY, flush=True)
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise UserError(
            f"cannot listen on port {values.port} of this machine ({error.strerror or error})",
            "choose another --port, or leave it out",
        ) from error
    finally:
        for end in ends:
            signal.signal(end, signal.SIG_IGN)  # a second Ctrl-C must not leave images behind
        if session is not None:
            session.close()
        for end, handler in before.items():
            signal.signal(end, handler)
