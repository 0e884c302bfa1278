"""The page of `pyunetsep demo`: drop a song, hear its stems. Needs Gradio (`pyunetsep[demo]`).

server      FastAPI and uvicorn: the page, and the files that it plays and offers
page        Gradio: what is seen, and what happens on a drop, a cancel and a closed page
studio      separates one song at a time; its files, their limits, and that they go again; knows no page
player.js   plays mixture and stems in step, to the sample, in constant memory; page.css dresses both
"""

from .server import DemoServer
from .studio import Limits, Studio

__all__ = ["DemoServer", "Limits", "Studio"]
