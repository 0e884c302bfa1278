"""The page and the files that it plays, over HTTP."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audio.files import file_error
from ..separator import Separator
from .studio import Limits, Studio

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST, PORT = "127.0.0.1", 7860
STOP_S = 1  # for connections to end by themselves: an open page keeps one
ANY_HOST = ("0.0.0.0", "::")
LOOPBACK = [
    "localhost",
    "127.0.0.1",
    "::1",
    "[::1]",
    "[",
]  # the last is what Starlette takes for the host of [::1]:7860


class DemoServer:
    """Serves the page from `with` to its end, from threads of its own; then nothing of it is left on the disk.

    Args:
        separator: that the page uses.
        host, port: where to listen; port 0 takes a free one.
        limits: of songs, and of how long files are kept.
    Attributes:
        url: of the page.
        studio: that separates.
    Raises:
        ImportError: Gradio or matplotlib are missing. OSError: nothing can listen there.
    """

    def __init__(
        self, separator: Separator, *, host: str = HOST, port: int = PORT, limits: Limits | None = None
    ) -> None:
        check_installed()
        self._separator, self._host, self._port = separator, host, port
        self._limits = limits or Limits()
        self._stack = ExitStack()
        self.url = ""
        self.studio: Studio

    def __enter__(self) -> DemoServer:
        with ExitStack() as stack:
            listening = stack.enter_context(_listening(self._host, self._port))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyunetsep-demo-")))
            self.studio = Studio(self._separator, folder, self._limits)
            stack.callback(self.studio.close)
            stack.enter_context(_environment(GRADIO_TEMP_DIR=os.fspath(self.studio.uploads)))
            app = application(self.studio, self._host)
            stack.enter_context(_running(app, listening))
            host = "localhost" if self._host in ANY_HOST else f"[{self._host}]" if ":" in self._host else self._host
            self.url = f"http://{host}:{listening.getsockname()[1]}/"
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def check_installed() -> None:
    """Raises an ImportError that says what to install, if need be."""
    import importlib.util

    for name in ("gradio", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"the demo page needs {name}: pip install 'pyunetsep[demo]'")


def application(studio: Studio, host: str = HOST) -> FastAPI:
    """The page, and /songs/<token>/<file>."""
    # before Gradio is imported: nobody is told that it is used
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    import gradio
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .page import THEME_FONT, build_page, head

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/songs/{token}/{name}")
    def song_file(token: str, name: str) -> Any:
        found = studio.file(token, name)
        if found is None:
            raise HTTPException(404, "This file is no longer kept.")
        path, song = found
        return FileResponse(
            path,
            filename=f"{song.name} - {name}",
            content_disposition_type="inline" if name.endswith(".png") else "attachment",
            headers={"Cache-Control": "no-store"},  # a browser's cache would outlive the file
        )

    if host in LOOPBACK:  # a foreign page must not reach this one by a name of its own that points here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    return gradio.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=studio.limits.max_bytes,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=gradio.themes.Default(font=THEME_FONT, font_mono=THEME_FONT),
        head=head(),
    )


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = OSError(error.errno, os.strerror(error.errno)) if error.errno and error.errno > 0 else error
        raise file_error(f"{host}:{port}: nothing can listen there (see --host and --port)", reason) from None
    with listening:
        yield listening


@contextmanager
def _running(app: Any, listening: socket.socket) -> Iterator[None]:
    """A server in a thread: in the main one it would take the signals."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=STOP_S))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server", daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
        if not thread.is_alive():
            raise OSError("the page's server did not start")
    try:
        yield
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # that a page is still open is no error
        server.should_exit = True
        thread.join()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
