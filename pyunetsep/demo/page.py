"""What is seen, and what happens when a song is dropped, cancelled, or the page closed."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from concurrent.futures import wait
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import Cancelled
from .studio import MIB, MIXTURE, PICTURE, Job, SeparatedSong, Studio

THEME_FONT = ["system-ui", "sans-serif"]  # no font is fetched
POLL_S = 0.2
STAGES = {"reading": "Reading the song", "separating": "Separating", "drawing": "Drawing the spectrograms"}
TITLES = {MIXTURE: "Song"}  # stems are called by their names


def head() -> str:
    """The player and the styles, inside the page: nothing is fetched from elsewhere."""

    def text(name: str) -> str:
        return (resources.files(__package__) / name).read_text(encoding="utf-8")

    return (
        f"<style>{text('page.css')}</style>"
        f"<style id='player-style' media='not all'>{text('player.css')}</style>"  # the player takes it into itself
        f"<script>{text('player.js')}</script>"
    )


def build_page(studio: Studio) -> gr.Blocks:
    with gr.Blocks(title="pyunetsep", analytics_enabled=False) as page:
        _html(_introduction(studio))
        song = gr.File(label="Song", show_label=False, height=140, elem_id="song")
        status = _html(elem_id="status", visible=False)
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel", size="sm")
        result = _html(elem_id="result", visible=False)

        def separate(upload: str | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
            if upload is None:
                return
            try:
                job = studio.submit(str(request.session_hash), Path(upload))
            except OSError:
                yield {song: None, status: _shown(_message("The upload did not arrive; drop the song again."))}
                return
            except Cancelled:
                yield {song: None, status: _shown(_message("This page lost its connection; reload it."))}
                return
            yield {song: gr.update(value=None, visible=False), cancel: gr.update(visible=True), result: _shown("")}
            shown = ""
            while not job.result.done():
                if (progress := _progress(job, studio.songs_before(job))) != shown:
                    shown = progress
                    yield {status: _shown(progress)}
                wait([job.result], POLL_S)
            done = {song: gr.update(value=None, visible=True), cancel: gr.update(visible=False)}
            error = studio.explain(job)
            if error or job.cancelled.is_set():
                yield {**done, status: _shown(_message(error) if error else "")}
            else:
                yield {**done, status: _shown(""), result: _shown(_player(job.token, job.result.result()))}

        outputs = [song, status, cancel, result]
        song.upload(
            separate,
            song,
            outputs,
            show_progress="hidden",
            concurrency_limit=None,  # the studio does one at a time, and says who waits
            api_visibility="private",
        )

        def stop(request: gr.Request) -> None:
            studio.cancel(str(request.session_hash))

        cancel.click(stop, queue=False, show_progress="hidden", api_visibility="private")

        def leave(request: gr.Request) -> None:
            studio.leave(str(request.session_hash))

        page.unload(leave)
    return page


def _html(value: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_classes="plain", **options)


def _shown(value: str) -> Any:
    """What an `_html` becomes; nothing takes no room."""
    return gr.update(value=value, visible=bool(value))


def _introduction(studio: Studio) -> str:
    limits = studio.limits
    return (
        "<h1>pyunetsep</h1>"
        "<p class='lead'>Drop a song, and hear its singing voice and its accompaniment apart.</p>"
        f"<p class='fine'>The model is {html.escape(studio.separator.info.name)}. Songs of up to "
        f"{limits.max_bytes / MIB:g} MB and {limits.max_s / 60:g} minutes are separated one at a time, on the machine "
        "that serves this page, and go nowhere else. Their files are removed when this page is closed, or "
        f"{limits.keep_s / 60:g} minutes after they were last used.</p>"
    )


def _progress(job: Job, before: int) -> str:
    if job.cancelled.is_set():
        text, share = "Stopping", None
    elif before:
        songs = "1 song comes" if before == 1 else f"{before} songs come"
        text, share = f"Waiting: {songs} before yours", None
    else:
        text, share = STAGES.get(job.stage, "Waiting"), job.share
    value = "" if share is None else f" value='{share:.3f}'"
    percent = "" if share is None else f" {share:.0%}"
    return f"<div class='progress' role='status'><span>{text}{percent}</span><progress{value}></progress></div>"


def _message(text: str) -> str:
    return f"<p class='message' role='alert'>{html.escape(text)}</p>"


def _player(token: str, song: SeparatedSong) -> str:
    folder = f"songs/{token}"
    description = {
        "name": song.name,
        "sampleRate": song.sample_rate_hz,
        "channels": song.channels,
        "samples": song.samples,
        "notes": song.notes,
        "picture": f"{folder}/{PICTURE}",
        "tracks": [
            {"name": name, "title": TITLES.get(name, name.capitalize()), "url": f"{folder}/{name}"}
            for name in (MIXTURE, *song.stems)
        ],
    }
    return f"<stem-player song='{html.escape(json.dumps(description))}'></stem-player>"
