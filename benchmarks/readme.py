"""Rewrites the tables of the README and of the model card, between their markers, from the results.

No figure there is typed by hand.

python benchmarks/readme.py
"""

import re
import textwrap
from typing import Any

from published import (
    EXACT,
    GPU_WAYS,
    OURS,
    ROOT,
    SPLEETER,
    a,
    by_mode,
    fastest,
    load,
    load_gpu,
    load_if_measured,
    seconds,
    title,
)


def networks() -> str:
    data = load("unet_cpu")
    rows = []
    for row in data["results"]["networks"]:
        ours, peer = row["engines"][OURS], fastest(row["engines"])
        other = " | "
        if peer is not None:
            median = row["engines"][peer]["median_s"]
            other = f"{seconds(median)}, {title(peer)} | {median / ours['median_s']:.1f}"
        rows.append(
            f"| {title(row['model'])} | {row['patches']} | {row['threads']} | {seconds(ours['median_s'])} | {other} "
            f"| {ours['gflops']:.0f} | {ours['share_of_peak']:.0%} |"
        )
    peaks = " and ".join(
        f"{peak:.0f} GFLOP/s on {count} {'thread' if count == '1' else 'threads'}"
        for count, peak in data["results"]["peak_gflops"].items()
    )
    return (
        "| network | patches | threads | pyunetsep | fastest other engine | ratio | GFLOP/s | of the peak |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        + paragraph(
            f"The peak, multiply-adds in registers, is {peaks} of {a(data['context']['cpu'])}. GFLOP are counted as "
            "the convolutions are defined; the kernels' algorithm needs fewer, so more than 100 % is possible."
        )
    )


def songs() -> str:
    data = load("separate_cpu")
    results = data["results"]
    ways = [(way, exact) for exact in (False, True) for way in ("array", "files")]
    runs = {key: by_mode(results[key[0]], exact=key[1]) for key in ways}
    rows = []
    for name in runs["array", True]:  # Spleeter itself is among these alone
        times = " | ".join(seconds(runs[key][name]["median_s"]) if name in runs[key] else "" for key in ways)
        memory = [
            results["memory"][key]["above_imports_mib"] for key in (name, name + EXACT) if key in results["memory"]
        ]
        rows.append(f"| {title(name)} | {times} | {max(memory):.0f} MiB |")
    ours = results["array"][OURS]
    ratios = []
    peer = fastest(runs["array", False], SPLEETER)
    if peer is not None:
        ratio = runs["array", False][peer]["median_s"] / ours["median_s"]
        ratios.append(f"{ratio:.1f} times as fast as the fastest other engine ({title(peer)}) in the same pipeline")
    if SPLEETER in results["array"]:
        ratio = results["array"][SPLEETER]["median_s"] / results["array"][OURS + EXACT]["median_s"]
        ratios.append(f"with `exact=True` {ratio:.1f} times as fast as Spleeter on TensorFlow")
    return (
        f"| {results['seconds']:.0f} s of stereo, {results['threads']} threads | array to stems | file to files "
        "| exact: array | exact: files | peak memory |\n| --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        + paragraph(
            ", ".join([f"By default that is {ours['times_real_time']:.0f} times real time", *ratios])
            + ". Memory is array to stems, the larger of both modes, the song and its stems included, above an "
            "interpreter that has imported PyTorch (or TensorFlow) alone."
        )
    )


def paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def kernels() -> str:
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for run in load("ops_cpu")["benchmarks"]:
        params = run["params"]
        if params.get("device", "cpu") == "cpu":
            name = f"`{run['group']}`" + (f", {params['n_fft']} samples a frame" if "n_fft" in params else "")
            cases.setdefault(name, {})[params["rival"]] = run["stats"]
    rows = []
    for name, rivals in cases.items():
        kernel, plain = rivals["kernel"], rivals["plain PyTorch"]
        times = " | ".join(
            f"{1e3 * stats['median']:.1f} ms (IQR {1e3 * stats['iqr']:.1f})" for stats in (kernel, plain)
        )
        rows.append(f"| {name} | {times} | {plain['median'] / kernel['median']:.1f} |")
    header = "| op, one block of a song | kernel, median | plain PyTorch | ratio |\n| --- | --- | --- | --- |\n"
    return header + "\n".join(rows)


def gpu() -> str:
    networks, songs = load_gpu("unet_cuda"), load_gpu("separate_cuda")
    parts = [part(data) for part, data in ((gpu_networks, networks), (gpu_songs, songs)) if data is not None]
    if not parts:
        return "Not yet measured on a GPU: `make gpu-bench` does it."
    if len(parts) == 2:  # as plot.py wants it
        parts.append("![Bars: the same on a GPU](docs/images/speed-gpu.png)")
    return "\n\n".join(parts)


def gpu_networks(data: Any) -> str:
    rows = []
    for row in data["results"]["networks"]:
        engines = row["engines"]
        cells = [title(row["model"]), str(row["patches"])]
        for precision in ("float16", "float32"):
            same = {name: run for name, run in engines.items() if run["precision"] == precision}
            by_speed = sorted(same, key=lambda name, same=same: same[name]["median_s"])
            ours, peer = (next((n for n in by_speed if n.startswith(OURS) is own), "") for own in (True, False))
            cells.append(seconds(same[ours]["median_s"]) if ours else "")
            cells.append(f"{seconds(same[peer]['median_s'])}, {peer}" if peer else "")
            if precision == "float16":
                cells.append(f"{same[peer]['median_s'] / same[ours]['median_s']:.1f}" if ours and peer else "")
                cells.append(f"{same[ours]['share_of_peak']:.0%}" if ours else "")
        rows.append(f"| {' | '.join(cells)} |")
    context, peak = data["context"], data["results"]["peak_flops"]["float16"]
    return (
        "| both networks | patches | float16 | fastest in PyTorch | ratio | of the peak | float32 | PyTorch |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        + paragraph(
            f"On one {context['gpu']} with torch {context['torch']}, caches flushed before each run, each with "
            "or without a CUDA graph as it is faster. PyTorch in float16 runs on cuDNN, norms folded in and channels "
            f"last, or is compiled with max-autotune. The peak is {peak / 1e12:.0f} TFLOP/s."
        )
    )


def gpu_songs(data: Any) -> str:
    duration, rows = data["results"]["seconds"], []
    for song in data["results"]["songs"]:
        ways = [song.get(way, {}) for way in GPU_WAYS]
        for name in ways[0]:
            times = [seconds(way[name]["median_s"]) if name in way else "" for way in ways]
            real_time = f"{ways[0][name]['times_real_time']:,.0f}"
            rows.append(f"| {' | '.join([title(song['model']), name, *times, real_time])} |")
    return (
        f"| {duration:.0f} s, two stems | | on the GPU | the public call there | array to stems | file to files "
        "| × real time, on the GPU |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        + paragraph(
            "On the GPU is the pipeline alone, wave to stems in the GPU's memory. The public call with the same wave "
            "checks each block first, and waits for that; the others bring the song there and its stems back as well."
        )
    )


def fidelity() -> str:
    results = load("fidelity")["results"]
    tensorflow, double = results["snr_against_tensorflow_db"], results["snr_against_float64_db"]
    rows = "\n".join(f"| {stem} | {tensorflow[stem]:.1f} dB | {double[stem]:.1f} dB |" for stem in tensorflow)
    worst = max(results["largest_error_of_the_sum"].values())
    rates = ", ".join(f"{int(rate) / 1000:g}" for rate in results["largest_error_of_the_sum"])
    return (
        f"| stem, `exact=True` | against TensorFlow Spleeter | against float64 |\n| --- | --- | --- |\n{rows}\n\n"
        f"In the default mode the stems add up to the song: at {rates} kHz the largest error "
        f"is {worst:.0e} of full scale."
    )


def precisions() -> str:
    """The CUDA kernels' precisions, as fidelity.py --emulated measures them."""
    results, key = load("fidelity")["results"], "emulated_cuda_{}_snr_against_float64_db"
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{snr:.1f} dB" for snr in results[key.format(name)].values()) + " |"
        for name in ("float32", "float16", "bfloat16")
    )
    return f"| precision | vocals | accompaniment |\n| --- | --- | --- |\n{rows}"


def extension() -> str:
    results = load("mask_extension")["results"]
    excerpts = next(iter(results.values()))["excerpts"]
    rows = "\n".join(
        f"| {name} | {row['sdr_below_11_khz_db']:.2f} dB | {row['sdr_above_11_khz_db']:.2f} dB |"
        for name, row in results.items()
    )
    return f"| highs, median of {excerpts} excerpts | vocals below 11 kHz | vocals above |\n| --- | --- | --- |\n{rows}"


def training() -> str:
    on_cpu, on_gpu = load_if_measured("training_step_cpu"), load_gpu("training_step_cuda")
    parts = [part(data) for part, data in ((training_on_cpu, on_cpu), (training_on_gpu, on_gpu)) if data is not None]
    return "\n\n".join(parts) or "Not yet measured: `benchmarks/training_step.py` does it."


def training_on_cpu(data: Any) -> str:
    peak = max(cell["peak_gflops"]["float32"] for cell in data["results"]["cells"])
    return steps_table(data, "CPU", "training-step.png", (
        f"Medians and peak memory, both networks, {data['results']['threads']} threads of "
        f"{a(data['context']['cpu'])}; n/a was not measured. PyTorch's fastest is of eager or compiled ones, channels "
        f"last or not. The peak is that of multiply-adds of float32 in registers, {peak:.0f} GFLOP/s, in "
        "bfloat16 that of products of matrices; counted are the multiply-adds of the convolutions and their gradients "
        "alone, as they are defined."
    ))  # fmt: skip


def training_on_gpu(data: Any) -> str:
    return steps_table(data, "GPU", "training-step-gpu.png", (
        f"The same on one {data['context']['gpu']} with torch {data['context']['torch']}. PyTorch's fastest is of "
        "eager or compiled ones, with or without a CUDA graph. The peak is that of products of matrices."
    ))  # fmt: skip


def steps_table(data: Any, device: str, picture: str, what: str) -> str:
    """In each precision ours, and PyTorch's fastest."""
    rows = []
    for cell in data["results"]["cells"]:
        for precision in ("float32", "bfloat16", "float16"):
            same = {name: run for name, run in cell["steps"].items() if run["precision"] == precision}
            if not same:
                continue
            by_speed = sorted(same, key=lambda name, same=same: same[name]["median_s"])
            ours, peer = (next((n for n in by_speed if n.startswith(OURS) is own), None) for own in (True, False))
            columns = [title(cell["preset"]), str(cell["batch"]), precision]
            columns += [of_step(same[ours]), f"{same[ours]['share_of_peak']:.0%}"] if ours else ["n/a", ""]
            columns += [f"{of_step(same[peer])}, {peer.replace(f', {precision}', '')}" if peer else "n/a"]
            columns += [f"{same[peer]['median_s'] / same[ours]['median_s']:.1f}" if ours and peer else ""]
            rows.append(f"| {' | '.join(columns)} |")
    return (
        "| a step | examples | precision | pyunetsep | of the peak | fastest in PyTorch | ratio |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n"
        + paragraph(what)
        + f"\n\n![Bars: a step of training on a {device}](docs/images/{picture})"
    )


def of_step(run: dict[str, Any]) -> str:
    return f"{seconds(run['median_s'])}, {run['memory_mib']:.0f} MiB"


def choices() -> str:
    data = load_if_measured("training_choices")
    if data is None:
        return "Not yet measured: `benchmarks/training_choices.py` does it."
    results = data["results"]
    base_db = results["choices"]["base"]["nsdr_db"]
    rows = [
        f"| {name} | {row['nsdr_db']:.2f} dB | {row['nsdr_db'] - base_db:+.2f} dB |"
        for name, row in results["choices"].items()
    ]
    what = f"vocals after {results['steps']} steps of {results['base']['batch']}"
    return f"| {what} | improvement | to base |\n| --- | --- | --- |\n" + "\n".join(rows)


def quality() -> str:
    data = load_if_measured("quality")
    if data is None:
        return "Not yet measured: `benchmarks/quality.py` does it."
    results = data["results"]
    karaoke, songs = results["karaoke"]["models"], results["songs"]["models"]
    rows = []
    for name, row in karaoke.items():
        cells = [f"{row[stem]['gnsdr']:.2f} dB" for stem in ("vocals", "accompaniment")]
        cells += [f"{songs[name]['vocals'][f'{band}_mean']:.2f} dB" for band in ("low", "high", "full")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        "| | karaoke, vocals | karaoke, accompaniment | song, vocals below 4 kHz | above | full band |\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )


def latency() -> str:
    results = load("latency")["results"]
    rows = []
    for model, latencies in results["models"].items():
        for row in latencies.values():
            if "impossible" not in row:
                rows.append(f"| {model} | {row['latency_s']:.2f} s | {row['nsdr_db']:.2f} dB | {row['load']:.0%} |")
    return "| model | latency | vocals, improvement | of a core |\n| --- | --- | --- | --- |\n" + "\n".join(rows)


def catalogue() -> str:
    data = load_if_measured("catalogue_mp3")
    if data is None:
        return "Not yet measured: `benchmarks/catalogue.py` does it."
    results = data["results"]
    parts, speed = results["processor_time_of_a_song"], results["songs_a_minute"]
    return paragraph(
        f"{results['songs']} songs of {results['duration_s']:g} s of stereo, MP3 in and out, on {results['cores']} "
        f"cores of {a(data['context']['cpu'])}: {speed['loop']:.0f} songs a minute in a loop of `separate_file`, "
        f"{speed['together']:.0f} with `workers={results['workers']}`, {results['ratio']:.2f} times as many. A song "
        f"takes {seconds(parts['read_s'])} of processor time to decode, {seconds(parts['separate_s'])} to separate and "
        f"{seconds(parts['write_s'])} to encode twice; the loop encodes on one core, several songs at a time on all."
    )


TABLES = {
    "README.md": (networks, songs, kernels, gpu, fidelity, precisions, extension, training, choices, quality),
    "docs/jansson2017.md": (quality,),
    "docs/performance.md": (latency, catalogue),
}


def main() -> None:
    for name, tables in TABLES.items():
        text = (ROOT / name).read_text()
        for table in tables:
            marker = table.__name__
            parts = re.split(rf"(?s)(?<=<!-- {marker} -->\n).*?(?=<!-- /{marker} -->)", text)
            if len(parts) != 2:
                raise SystemExit(f"{name}: want one pair of markers <!-- {marker} -->, found {len(parts) - 1}")
            text = parts[0] + table() + "\n" + parts[1]
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
