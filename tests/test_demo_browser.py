"""The demo page in a browser: a song is dropped, separated, heard, moved about in and downloaded.

Needs Chromium, Gradio and Playwright (which drives the Chromium that is installed; it downloads none).
"""

import shutil
import threading
import time

import numpy as np
import pytest
import soundfile

from pyunetsep import Separator
from pyunetsep.demo import DemoServer, Limits
from tests.synthesis import RATE_HZ, band, voice

SECONDS = 60
SONG_S = 8.0
HEARD = 16_384  # samples that are listened to: two seconds, so that there is a seam of two pieces among them
LSB = 2**-15

pytest.importorskip("gradio", reason="needs Gradio: pip install 'pyunetsep[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as chromium or google-chrome in PATH"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("songs") / "a song.wav"
    wave = np.stack([voice(SONG_S, 1) + band(SONG_S, 1), 0.7 * voice(SONG_S, 1) + band(SONG_S, 2)], axis=1)
    soundfile.write(path, wave, RATE_HZ, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(temporary):
    """The page with the model that is in the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        separator = Separator.from_pretrained("jansson2017", device="cpu", offline=True)
        with DemoServer(separator, port=0, limits=Limits(max_bytes=1 << 20, max_s=60.0)) as server:
            yield server
        assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page in a browser, and what a visitor does there."""

    def __init__(self, browser, url, **options):
        self.url, self.requests, self.complaints = url, [], []
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#song input[type=file]", state="attached")

    def drop(self, path):
        self.page.wait_for_selector("#song input[type=file]", state="attached")
        self.page.set_input_files("#song input[type=file]", path)

    def separate(self, path):
        self.drop(path)
        self.page.wait_for_selector("stem-player .play")
        return self

    def player(self, expression, argument=None):
        """The value of an expression of `player`, and perhaps `argument`."""
        script = f"async (argument) => {{ const player = document.querySelector('stem-player'); return {expression} }}"
        return self.page.evaluate(script, argument)

    def track(self, name):
        return self.page.locator(f"stem-player [data-track={name}]")

    def close(self):
        self.page.close()
        assert self.complaints == []
        foreign = [url for url in self.requests if not url.startswith((self.url, "data:", "blob:"))]
        assert foreign == []

    def wait_until(self, expression):
        self.page.wait_for_function(f"() => {{ const player = document.querySelector('stem-player'); {expression} }}")


@pytest.fixture
def visit(chromium, server):
    """Opens pages; whatever happens on them, nothing is left when they are closed."""
    visits, before = [], songs(server)

    def begin(**options):
        visits.append(Visit(chromium, server.url, **options))
        return visits[-1]

    yield begin
    for made in visits:
        made.close()
    eventually(lambda: songs(server) == before)


@pytest.fixture(scope="module")
def first_visit(chromium, server, song):
    """A page with a separated song, for all who only listen."""
    yield (visit := Visit(chromium, server.url).separate(song))
    visit.close()


@pytest.fixture
def separated(first_visit):
    """The same page, as it was when the song had just been separated."""
    first_visit.player("player.tracks.pause()")
    first_visit.player("player.moveTo(0)")
    first_visit.player("player.setBalance(0)")
    yield first_visit
    first_visit.player("player.tracks.pause()")


@pytest.fixture
def slow(monkeypatch):
    """Separation waits until the event is set, or the song is cancelled."""
    go = threading.Event()
    separate_file = Separator.separate_file

    def wait_first(self, path, output, *, progress, cancel, **options):
        while not (go.is_set() or cancel.is_set()):
            progress(1.0, 4.0)
            time.sleep(0.01)
        return separate_file(self, path, output, progress=progress, cancel=cancel, **options)

    monkeypatch.setattr(Separator, "separate_file", wait_first)
    yield go
    go.set()


def songs(server):
    return sorted(path for path in server.studio.folder.iterdir() if path != server.studio.uploads)


def eventually(condition):
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


# hearing

# Connects an analyser before and one behind the gain of each track, and returns what passed all of them at one time.
LISTEN = """
    async (samples) => {
      const tracks = document.querySelector("stem-player").tracks;
      const left = { channelCount: 1, channelCountMode: "explicit", channelInterpretation: "discrete" };
      const nodes = Object.entries(tracks.nodes);
      const taps = nodes.flatMap(([name, { input, gain }]) => Object.entries({ input, gain }).map(([place, node]) => {
        const tap = new AnalyserNode(tracks.context, { fftSize: samples, ...left });
        node.connect(tap);
        return { name, place, node, tap, wave: new Float32Array(samples) };
      }));
      await new Promise((resolve) => setTimeout(resolve, 300 + (1000 * samples) / tracks.song.sampleRate));
      taps.forEach(({ tap, wave }) => tap.getFloatTimeDomainData(wave));
      const position = tracks.position;
      taps.forEach(({ node, tap }) => node.disconnect(tap));
      return [taps.map(({ name, place, wave }) => [name, place, [...wave]]), position];
    }
"""


def heard(visit):
    """The last samples of each track's left channel, as it is and as it is heard, and the page's position."""
    waves, position = visit.page.evaluate(LISTEN, HEARD)
    places = {"input": {}, "gain": {}}
    for name, place, wave in waves:
        places[place][name] = np.array(wave)
    return places["input"], places["gain"], position


def test_what_is_played_is_the_song_and_its_stems_in_step_to_the_sample(separated, song):
    separated.page.click("stem-player .play")
    separated.wait_until("return player.position > 0.3")
    waves, _, position = heard(separated)
    mixture = soundfile.read(song)[0][:, 0]
    assert np.abs(waves["mixture"]).max() > 0.05
    # stems add up to the song, to a rounding of 16 bits each; a sample apart they would not
    together = waves["vocals"] + waves["accompaniment"]
    assert np.abs(together - waves["mixture"]).max() <= 2.01 * LSB
    assert np.abs(together[1:] - waves["mixture"][:-1]).max() > 100 * LSB
    # and it is the song, where the page says it is; pieces of two seconds join without a gap
    starts = range(len(mixture) - HEARD)
    start = min(starts, key=lambda i: np.abs(mixture[i : i + 64] - waves["mixture"][:64]).max())
    assert np.abs(mixture[start : start + HEARD] - waves["mixture"]).max() <= 1e-6
    assert abs(start + HEARD - position) < 0.3 * RATE_HZ


def test_time_passes_as_it_should_and_pause_holds_it(separated):
    play = separated.page.locator("stem-player .play")
    assert play.get_attribute("aria-label") == "Play" and separated.player("player.position") == 0
    play.click()
    separated.wait_until("return player.position > 0.2")
    rate = separated.player(
        """await (async () => {
             const now = () => [player.position, player.tracks.context.currentTime], [p, t] = now();
             await new Promise((resolve) => setTimeout(resolve, 800));
             const [q, u] = now();
             return (q - p) / (u - t); })()"""
    )
    assert abs(rate - 1) < 0.01
    assert play.get_attribute("aria-label") == "Pause" and separated.player("player.playing")
    assert separated.page.locator("stem-player output.time").inner_text() in ("0:00", "0:01", "0:02")
    play.click()
    held = separated.player("player.position")
    separated.page.wait_for_timeout(300)
    assert separated.player("player.position") == held > 0 and not separated.player("player.playing")
    assert np.abs(heard(separated)[0]["mixture"]).max() == 0
    play.click()
    separated.wait_until(f"return player.position > {held} + 0.2")


def test_it_ends_and_begins_again(separated):
    separated.page.click("stem-player .play")
    separated.wait_until("return player.playing")
    separated.player(f"player.moveTo({SONG_S - 0.4})")
    separated.wait_until("return !player.playing")
    assert separated.player("player.position") == 0
    separated.page.click("stem-player .play")
    separated.wait_until("return player.position > 0.1 && player.position < 4")


def test_a_click_into_a_picture_goes_there(separated):
    picture = separated.track("vocals").locator(".picture")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] / 4, "y": 10})
    assert abs(separated.player("player.position") - SONG_S / 4) < 0.05  # standing
    separated.page.click("stem-player .play")
    separated.wait_until(f"return player.position > {SONG_S / 4}")
    picture.click(position={"x": box["width"] / 2, "y": 10})
    separated.wait_until(f"return player.position > {SONG_S / 2} + 0.1")  # playing on from there
    assert separated.player("player.position") < 0.9 * SONG_S


@pytest.mark.parametrize(
    ("balance", "vocals", "accompaniment"),
    [("-1", 1, 0), ("-0.5", 1, 0.5), ("0", 1, 1), ("0.25", 0.75, 1), ("1", 0, 1)],
)
def test_the_balance_turns_one_stem_down(separated, balance, vocals, accompaniment):
    separated.page.click("stem-player .play")
    separated.page.locator("stem-player .balance").fill(balance)
    expected = {"mixture": 0, "vocals": vocals, "accompaniment": accompaniment}
    assert separated.player("player.gains") == expected
    as_they_are, as_heard, _ = heard(separated)
    for name, gain in expected.items():
        assert np.abs(as_they_are[name]).max() > 0.02
        assert np.abs(as_heard[name] - gain * as_they_are[name]).max() < 1e-4, name


def test_the_balance_moves_by_keys_and_by_its_ends(separated):
    slider = separated.page.locator("stem-player .balance")
    slider.press("Home")
    assert separated.player("player.gains") == {"mixture": 0, "vocals": 1, "accompaniment": 0}
    separated.page.click("stem-player >> text='Both'")
    assert separated.player("player.gains") == {"mixture": 0, "vocals": 1, "accompaniment": 1}
    assert slider.input_value() == "0"
    slider.press("ArrowRight")
    assert separated.player("player.gains") == {"mixture": 0, "vocals": 0.99, "accompaniment": 1}


def test_listening_to_one_track_alone(separated):
    for name in ("mixture", "vocals", "accompaniment"):
        separated.track(name).locator(".listen").click()
        assert separated.player("player.gains") == {**dict.fromkeys(("mixture", "vocals", "accompaniment"), 0), name: 1}
        pressed = separated.page.locator("stem-player .track:has(.listen[aria-pressed=true])")
        assert [track.get_attribute("data-track") for track in pressed.all()] == [name]
        assert separated.player("player.playing")


# seeing and downloading


def test_what_is_shown(visit, song):
    page = visit()
    assert page.page.title() == "pyunetsep"
    assert "The model is jansson2017." in page.page.inner_text("body")
    assert "Songs of up to 1 MB and 1 minutes" in page.page.inner_text("body")
    page.separate(song)
    assert page.page.locator("stem-player h2").inner_text() == "a song"
    assert page.page.locator("stem-player header .fine").inner_text() == "0:08, 8.192 kHz, stereo"
    for name in ("mixture", "vocals", "accompaniment"):
        picture = page.track(name).locator("img")
        width, height = picture.evaluate(
            "async (img) => { await img.decode(); return [img.naturalWidth, img.naturalHeight] }"
        )
        assert width > 30 and height > 100
    with page.page.expect_popup() as popup:
        page.page.click("stem-player footer a")
    popup.value.wait_for_load_state()
    assert popup.value.evaluate("document.images[0].naturalWidth") > 800
    popup.value.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_dark_and_light(visit, song, scheme):
    page = visit(color_scheme=scheme).separate(song)
    contrast = """(selector) => {
        const channels = (color) => { const at = document.createElement("canvas").getContext("2d");
          at.fillStyle = getComputedStyle(document.body).backgroundColor; at.fillRect(0, 0, 1, 1);
          at.fillStyle = color; at.fillRect(0, 0, 1, 1); return [...at.getImageData(0, 0, 1, 1).data].slice(0, 3) };
        const light = (color) => channels(color).map((c) => c / 255)
          .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
          .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const inside = document.querySelector("stem-player").shadowRoot;
        const element = document.querySelector(selector) ?? inside.querySelector(selector);
        const [a, b] = [light(getComputedStyle(element).color), light("transparent")];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), b] }"""
    for selector in ("h1", ".lead", ".fine", "h2", "h3", ".listen", ".track a", ".end"):
        ratio, background = page.page.evaluate(contrast, selector)
        assert (background < 0.2) == (scheme == "dark")
        assert ratio >= 4.5, selector


@pytest.mark.parametrize("name", ["mixture", "vocals", "accompaniment"])
def test_downloads(separated, song, tmp_path, name):
    with separated.page.expect_download() as download:
        separated.track(name).locator("a").click()
    assert download.value.suggested_filename == f"a song - {name}.wav"
    download.value.save_as(tmp_path / "stem.wav")
    wave, rate_hz = soundfile.read(tmp_path / "stem.wav")
    original = soundfile.read(song)[0]
    assert rate_hz == RATE_HZ and wave.shape == original.shape
    if name == "mixture":
        assert np.array_equal(wave, original)
    else:
        assert np.abs(wave).max() > 0.01 and np.abs(wave - original).max() > 0.01


# what goes wrong


def message(visit):
    visit.page.wait_for_selector("#status .message")
    text = visit.page.inner_text("#status .message")
    assert "Traceback" not in visit.page.content() and "/tmp" not in text and "\n" not in text
    return text


def test_broken_and_silent_songs_get_a_message_and_the_next_song_works(visit, song, server, tmp_path):
    before = songs(server)
    page = visit()
    (tmp_path / "text.mp3").write_text("no music " * 50)
    (tmp_path / "half.wav").write_bytes(song.read_bytes()[:60_000])
    soundfile.write(tmp_path / "silent.wav", np.zeros(8_000), 8_000)
    soundfile.write(tmp_path / "long.flac", np.zeros(8_000 * 61), 8_000)
    for name, expected in {
        "text.mp3": "text.mp3: not an audio file",
        "half.wav": "half.wav: cut off: its header promises 65536 samples",
        "silent.wav": "silent.wav: is silent, there is nothing to separate",
        "long.flac": "long.flac: lasts 1.0 minutes; at most 1 are taken here",
    }.items():
        page.drop(tmp_path / name)
        page.page.wait_for_function("(name) => document.querySelector('#status')?.innerText.includes(name)", arg=name)
        assert message(page).startswith(expected)
        assert page.page.locator("stem-player").count() == 0 and songs(server) == before
    page.separate(song)
    assert page.page.locator("#status .message").count() == 0


def test_an_oversized_file_is_refused_with_a_message(visit, song, server, tmp_path):
    before = songs(server)
    page = visit()
    (tmp_path / "big.wav").write_bytes(song.read_bytes() + bytes(1 << 20))
    page.drop(tmp_path / "big.wav")
    page.page.wait_for_selector("text=/exceed the maximum allowed size of 1(.0)? Mb.*big.wav/i")
    assert list(server.studio.uploads.rglob("big.wav")) == [] and songs(server) == before
    page.separate(song)


def test_a_name_is_text_not_markup(visit, song, tmp_path):
    path = tmp_path / "<img src=x onerror='window.hacked=1'> & co.wav"
    shutil.copy(song, path)
    page = visit().separate(path)
    title = page.page.locator("stem-player h2").inner_text()
    assert "onerror" in title and "co" in title
    assert page.page.evaluate("window.hacked") is None
    assert page.page.locator("stem-player h2 img").count() == 0


def test_files_that_are_gone_are_explained(visit, song, server):
    before = songs(server)
    page = visit().separate(song)
    [token] = {path.name for path in songs(server)} - {path.name for path in before}
    server.studio.forget(server.studio._jobs[token].owner)
    page.page.click("stem-player .play")
    page.page.wait_for_selector("stem-player >> text='The files of this song are no longer kept. Drop it again.'")
    assert not page.player("player.playing")


def test_a_rate_that_no_browser_plays_can_still_be_downloaded(visit, tmp_path):
    soundfile.write(tmp_path / "low.wav", band(1.0, 3)[:2_000], 1_000)
    page = visit().separate(tmp_path / "low.wav")
    page.page.click("stem-player .play")
    page.page.wait_for_selector("stem-player >> text=This browser does not play mono at 1000 Hz.")
    assert not page.player("player.playing")
    with page.page.expect_download() as download:
        page.track("vocals").locator("a").click()
    assert soundfile.info(download.value.path()).frames == 2_000


# coming and going


def test_cancel(visit, song, server, slow):
    before = songs(server)
    page = visit()
    page.drop(song)
    page.page.wait_for_selector("text='Separating 25%'")
    assert not page.page.locator("#song").is_visible()
    page.page.click("#cancel")
    page.page.wait_for_selector("#song", state="visible")
    page.page.wait_for_selector("#cancel", state="hidden")
    assert page.page.locator("progress").count() == 0 and page.page.locator("stem-player").count() == 0
    eventually(lambda: songs(server) == before)
    slow.set()
    page.separate(song)


def test_a_second_visitor_waits_for_the_first(visit, song, slow):
    first, second = visit(), visit()
    first.drop(song)
    first.page.wait_for_selector("text='Separating 25%'")
    second.drop(song)
    second.page.wait_for_selector("text='Waiting: 1 song comes before yours'")
    slow.set()
    for page in (first, second):
        page.page.wait_for_selector("stem-player .play")


def test_files_go_with_the_next_song_and_with_the_page(visit, song, server):
    before = songs(server)
    page = visit().separate(song)
    [first] = set(songs(server)) - set(before)
    page.drop(song)
    page.page.wait_for_function(f"() => !document.querySelector('stem-player')?.outerHTML.includes('{first.name}')")
    eventually(lambda: first not in songs(server))
    page.page.wait_for_selector("stem-player .play")
    assert len(songs(server)) == len(before) + 1
    page.page.close()
    eventually(lambda: songs(server) == before)


def test_a_page_that_closes_right_after_the_drop_leaves_nothing(visit, song, server):
    before = songs(server)
    for pause_ms in (0, 20, 60, 150):
        page = visit()
        page.drop(song)
        page.page.wait_for_timeout(pause_ms)
        page.page.close()
    time.sleep(1.0)
    eventually(lambda: songs(server) == before)


def test_a_page_that_closes_while_it_waits_stops_the_work(visit, song, server, slow):
    before = songs(server)
    page = visit()
    page.drop(song)
    page.page.wait_for_selector("text='Separating 25%'")
    page.page.close()
    eventually(lambda: songs(server) == before)
