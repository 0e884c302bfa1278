"""The command line on a terminal: a bar while it works, and a line when it is done."""

import os
import struct
import subprocess
import sys

import pytest
import soundfile

from pyunetsep.checkpoint import save_checkpoint
from tests.tiny import INFO, SPLEETER_LIKE, checkpoint, noise

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")


def test_a_bar_and_a_line_on_a_terminal(tmp_path):
    tiny = checkpoint(SPLEETER_LIKE)
    states = {stem: network.state_dict() for stem, network in tiny.networks.items()}
    save_checkpoint(tmp_path / "tiny.safetensors", tiny.config, states, INFO)
    soundfile.write(tmp_path / "song.wav", noise(2, 20_000).T.numpy(), 8_000, subtype="PCM_16")
    command = [sys.executable, "-m", "pyunetsep", "separate", "song.wav", "-m", "tiny.safetensors", "-d", "cpu"]

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    try:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=end)
    finally:
        os.close(end)
    shown = bytearray()
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # Linux's word for the end
        pass
    os.close(terminal)
    assert process.communicate(timeout=60)[0] == b"" and process.returncode == 0, shown
    *bars, line = shown.decode().splitlines()
    assert any(bar.startswith("separating:   0% |") and " of 2 s, " in bar and bar.endswith(" left") for bar in bars)
    assert line.startswith(f"song.wav: {os.path.join('stems', 'song', 'vocals.wav')}, ")
    assert "2.5 s of audio in " in line and line.endswith(" s on the cpu)")

    piped = subprocess.run([*command, "--overwrite"], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, b"", b"")
