"""Folders, manifests, licences and splits: what is found, under which name, on which side."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyunetsep.data import (
    Source,
    Split,
    Track,
    find_tracks,
    load_recordings,
    matching_tracks,
    permissive,
    permits_commercial_use,
    shared_accompaniments,
    split_tracks,
)
from pyunetsep.data.licences import _TABLE
from pyunetsep.errors import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not (SHARED / "manifest.csv").exists(), reason="needs the recordings in ../shared/data, which are not published"
)


def touch(*paths: Path) -> None:
    """Files that are there; finding reads none of them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_manifest(folder: Path, rows: Sequence[Mapping[str, str]], name: str = "manifest.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if "path" in row and row["path"] and not row["path"].startswith(("/", "..")):
            touch(folder / row["path"])
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def song(name: str, *, group: str = "", split: str = "", kind: str = "song", licence: str = "") -> Track:
    stems = (
        ("vocals", "accompaniment") if kind == "song" else ("accompaniment" if kind == "accompaniment" else "vocals",)
    )
    sources = {stem: (Source(Path(f"/{name}/{stem}.wav")),) for stem in stems}
    return Track(name, sources, kind, licence=licence, group=group, split=split)  # type: ignore[arg-type]


def names(tracks: Sequence[Track]) -> list[str]:
    return [track.name for track in tracks]


def files(track: Track) -> dict[str, list[str]]:
    return {stem: [source.path.name for source in sources] for stem, sources in track.sources.items()}


# Licences


@pytest.mark.parametrize(
    "licence",
    [
        *("CC0-1.0", "CC-BY-4.0", "cc-by-sa-3.0", " MIT ", "GPL-2.0-or-later", "GPL-3+", "CC0-1.0 AND CC-BY-4.0"),
        "own terms: free use incl. commercial, redistribution with link",
    ],
)
def test_commercial_use_is_permitted(licence):
    assert permits_commercial_use(licence)


@pytest.mark.parametrize(
    "licence",
    [
        *("", "proprietary", "CC-BY-NC-4.0", "CC-BY-NC-SA", "CC-BY-ND-4.0", "OpenSinger: research / non-commercial"),
        *("own terms: redistribution with credit", "CC0-1.0 AND CC-BY-NC-4.0", "CC0-1.0 AND ", "CC-BY-9.0"),
        "CC-BY-4.0, I think",
    ],
)
def test_commercial_use_is_not_permitted(licence):
    assert not permits_commercial_use(licence)


def test_no_licence_that_says_non_commercial_permits():
    for licence in _TABLE:
        if "NC" in licence or "non-commercial" in licence or "research" in licence or "not restated" in licence:
            assert not permits_commercial_use(licence), licence


def test_permissive():
    tracks = [song("a", licence="CC0-1.0"), song("b", licence="CC-BY-NC-4.0"), song("c")]
    assert names(permissive(tracks)) == ["a"]


# Folders


def test_stem_folders(tmp_path):
    touch(tmp_path / "a" / "vocals.wav", tmp_path / "a" / "accompaniment.flac", tmp_path / "a" / "mixture.wav")
    touch(tmp_path / "deep" / "er" / "b" / "Vocals.WAV", tmp_path / "deep" / "er" / "b" / "accompaniment.wav")
    touch(tmp_path / "c" / "vocals.wav", tmp_path / "d" / "accompaniment.wav", tmp_path / "notes.txt")
    touch(tmp_path / "a" / "._vocals.wav", tmp_path / ".trash" / "vocals.wav", tmp_path / "a" / "vocals.txt")
    tracks = find_tracks([tmp_path])
    assert [(t.name, t.kind, t.group, t.split, t.licence) for t in tracks] == [
        ("a", "song", "a", "", ""),
        ("c", "vocals", "c", "", ""),
        ("d", "accompaniment", "d", "", ""),
        ("b", "song", "b", "", ""),
    ]
    assert files(tracks[0]) == {"vocals": ["vocals.wav"], "accompaniment": ["accompaniment.flac"]}


def test_a_song_itself_is_a_folder(tmp_path):
    touch(tmp_path / "a" / "vocals.wav", tmp_path / "a" / "accompaniment.wav")
    assert names(find_tracks([str(tmp_path / "a")])) == ["a"]


def test_musdb_hq(tmp_path):
    for split, name in (("train", "x"), ("test", "y")):
        touch(*(tmp_path / split / name / f"{stem}.wav" for stem in ("vocals", "drums", "bass", "other", "mixture")))
    y, x = find_tracks([tmp_path])
    assert (x.name, x.kind, x.split, y.name, y.kind, y.split) == ("x", "song", "train", "y", "song", "test")
    assert files(x) == {"vocals": ["vocals.wav"], "accompaniment": ["drums.wav", "bass.wav", "other.wav"]}


def test_an_accompaniment_that_is_summed_already_is_taken(tmp_path):
    touch(*(tmp_path / "a" / f"{stem}.wav" for stem in ("vocals", "accompaniment", "drums", "bass")))
    assert files(find_tracks([tmp_path])[0])["accompaniment"] == ["accompaniment.wav"]


def test_musdb_stem_mp4(tmp_path):
    touch(tmp_path / "test" / "A - B.stem.mp4")
    (track,) = find_tracks([tmp_path])
    assert (track.name, track.kind, track.split) == ("A - B", "song", "test")
    streams = {stem: [source.stream for source in sources] for stem, sources in track.sources.items()}
    assert streams == {"vocals": [4], "accompaniment": [1, 2, 3]}


def test_loose_recordings(tmp_path):
    touch(tmp_path / "train" / "vocals" / "x" / "a.mp3", tmp_path / "singing" / "b.opus", tmp_path / "speech" / "c.wav")
    touch(tmp_path / "accompaniment" / "d.ogg", tmp_path / "other" / "e.wav", tmp_path / "f.wav")
    found = {track.name: (track.kind, list(track.sources), track.split) for track in find_tracks([tmp_path])}
    assert found == {
        "a": ("vocals", ["vocals"], "train"),
        "b": ("vocals", ["vocals"], ""),
        "c": ("speech", ["vocals"], ""),
        "d": ("accompaniment", ["accompaniment"], ""),
    }
    assert names(find_tracks([tmp_path / "speech"])) == ["c"]


def test_songs_in_a_folder_of_loose_recordings_stay_songs(tmp_path):
    touch(tmp_path / "accompaniment" / "a" / "vocals.wav", tmp_path / "accompaniment" / "a" / "accompaniment.wav")
    touch(tmp_path / "accompaniment" / "b.wav")
    assert {track.name: track.kind for track in find_tracks([tmp_path])} == {"a": "song", "b": "accompaniment"}


def test_names_that_occur_twice_get_their_parents(tmp_path):
    touch(*(tmp_path / split / "x" / "vocals" / "a.wav" for split in ("train", "test")))
    touch(tmp_path / "vocals" / "b.wav", tmp_path / "vocals" / "b.flac", tmp_path / "vocals" / "c.wav")
    tracks = find_tracks([tmp_path])
    assert sorted(names(tracks)) == ["b.flac", "b.wav", "c", "test/x/vocals/a", "train/x/vocals/a"]
    assert all(track.group == track.name for track in tracks)


@pytest.mark.parametrize("missing", ["drums", "bass", "other"])
def test_a_band_that_is_not_whole(tmp_path, missing):
    touch(*(tmp_path / "a" / f"{stem}.wav" for stem in ("vocals", "drums", "bass", "other") if stem != missing))
    with pytest.raises(DataError, match=f"a: {missing} missing"):
        find_tracks([tmp_path])


def test_two_files_of_one_stem(tmp_path):
    touch(tmp_path / "a" / "vocals.wav", tmp_path / "a" / "vocals.mp3")
    with pytest.raises(DataError, match=r"a: vocals\.mp3 and vocals\.wav are both vocals"):
        find_tracks([tmp_path])


def test_no_stems(tmp_path):
    touch(tmp_path / "a.wav", tmp_path / "karaoke" / "song.wav")
    with pytest.raises(
        DataError, match=r"(?s)no stems found; understood are.*song/vocals.*MUSDB18.*manifest\.csv"
    ) as error:
        find_tracks([tmp_path])
    assert str(error.value).startswith(str(tmp_path))
    with pytest.raises(DataError, match="no data"):
        find_tracks([])


def test_paths_that_are_no_data(tmp_path):
    touch(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        find_tracks([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"a\.wav: is neither a folder nor a \.csv file"):
        find_tracks([tmp_path / "a.wav"])
    with pytest.raises(TypeError, match="want a list of paths"):
        find_tracks(str(tmp_path))


def test_the_same_file_twice(tmp_path):
    touch(tmp_path / "vocals" / "a.wav")
    with pytest.raises(DataError, match=r"a\.wav: found twice"):
        find_tracks([tmp_path, tmp_path / "vocals"])


# Manifests


def test_manifest(tmp_path):
    rows = [
        {"path": "s/a/vocals.wav", "kind": "vocals", "split": "train", "licence": "CC0-1.0", "singer": "eva"},
        {"path": "s/a/accompaniment.wav", "kind": "accompaniment", "split": "train", "licence": "CC0-1.0"},
        {"path": "l/b.wav", "kind": "singing", "split": "test", "licence": "MIT", "singer": "eva"},
        {"path": "l/c.wav", "kind": "speech"},
        {"path": "l/d.wav", "kind": "accompaniment"},
        {"path": "m/v1.wav", "kind": "vocals", "song": "choir"},
        {"path": "m/band.wav", "kind": "accompaniment", "song": "choir"},
        {"path": "m/v2.wav", "kind": "singing", "song": "choir"},
        {"path": "m/vocals.wav", "kind": "vocals"},
    ]
    write_manifest(tmp_path, rows)
    tracks = find_tracks([tmp_path])
    assert [(t.name, t.kind, t.group, t.split, t.licence) for t in tracks] == [
        ("a", "song", "eva", "train", "CC0-1.0"),
        ("b", "vocals", "eva", "test", "MIT"),
        ("c", "speech", "c", "", ""),
        ("d", "accompaniment", "d", "", ""),
        ("choir", "song", "choir", "", ""),
        ("vocals", "vocals", "vocals", "", ""),
    ]
    assert files(tracks[4]) == {"vocals": ["v1.wav", "v2.wav"], "accompaniment": ["band.wav"]}


def test_a_manifest_of_another_name_and_one_below(tmp_path):
    rows = [{"path": "a.wav", "kind": "singing"}]
    assert names(find_tracks([write_manifest(tmp_path / "x", rows, "list.CSV")])) == ["a"]
    write_manifest(tmp_path / "y" / "z", rows)
    touch(tmp_path / "y" / "z" / "vocals.wav")  # not in the manifest
    assert names(find_tracks([tmp_path / "y"])) == ["a"]


def test_a_pair_with_a_third_is_loose(tmp_path):
    rows = [{"path": f"a/{n}.wav", "kind": n} for n in ("vocals", "accompaniment")]
    write_manifest(tmp_path, [*rows, {"path": "a/extra.wav", "kind": "vocals"}])
    assert [track.kind for track in find_tracks([tmp_path])] == ["vocals", "accompaniment", "vocals"]


def test_group_column_and_byte_order_mark(tmp_path):
    touch(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfpath , kind,group,colour\r\na.wav,vocals,eva,red,surplus\r\n\r\n")
    assert find_tracks([tmp_path / "m.csv"])[0].group == "eva"


def test_an_explicit_group_survives_renaming(tmp_path):
    rows = [
        {"path": "eva.wav", "kind": "vocals", "singer": "eva"},
        {"path": "b/eva.wav", "kind": "vocals", "singer": "eva"},
    ]
    write_manifest(tmp_path, rows)
    tracks = find_tracks([tmp_path])
    assert len(set(names(tracks))) == 2
    assert [track.group for track in tracks] == ["eva", "eva"]


@pytest.mark.parametrize(("vocals", "permits"), [("MIT", True), ("CC-BY-NC-4.0", False), ("", False)])
def test_stems_of_two_licences(tmp_path, vocals, permits):
    rows = [{"path": "v.wav", "kind": "vocals", "song": "a", "licence": vocals}]
    write_manifest(tmp_path, [*rows, {"path": "a.wav", "kind": "accompaniment", "song": "a", "licence": "CC0-1.0"}])
    assert bool(permissive(find_tracks([tmp_path]))) == permits


ROW = {"path": "a.wav", "kind": "vocals"}
OTHER = {"path": "b.wav", "kind": "accompaniment"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.wav"}], r"no column kind; there are path"),
        ([{"file": "a.wav"}], r"no column path and no column kind; there are file"),
        ([ROW | {"kind": "guitar"}], r"line 2: kind is 'guitar', want vocals, singing, speech, accompaniment"),
        ([ROW | {"kind": ""}], r"line 2: kind is ''"),
        ([ROW | {"split": "dev"}], r"line 2: split is 'dev', want train, validation, test"),
        ([ROW | {"path": ""}], r"line 2: no path"),
        ([ROW | {"path": "../a.wav"}], r"line 2: \.\./a\.wav leads out of"),
        ([ROW | {"path": "/etc/passwd"}], r"line 2: /etc/passwd leads out of"),
        ([ROW | {"path": "a.stem.mp4"}], r"line 2: a\.stem\.mp4 holds a whole song"),
        ([ROW, OTHER, ROW | {"path": "./a.wav"}], r"line 4: .*stands in line 2 already"),
        (
            [ROW | {"song": "s", "split": "train"}, OTHER | {"song": "s", "split": "test"}],
            r"line 3: rows of one song disagree, split is 'train' and 'test'",
        ),
        (
            [ROW | {"song": "s", "singer": "x"}, OTHER | {"song": "s", "singer": "y"}],
            r"line 3: rows of one song disagree, singer is 'x' and 'y'",
        ),
    ],
)
def test_wrong_manifests(tmp_path, rows, message):
    path = write_manifest(tmp_path, rows)
    with pytest.raises(DataError, match=message) as error:
        find_tracks([path])
    assert str(error.value).startswith(str(path))


def test_manifests_that_are_none(tmp_path):
    path = tmp_path / "m.csv"
    for content, message in [
        (b"", "no column path"),
        (b"path,kind\n", "lists no recordings"),
        (b"path,kind\n\xff\xfe,vocals\n", "is not a CSV table in UTF-8"),
        (b'path,kind\n"a.wav,vocals\n', "is not a CSV table"),
        (b"path,kind\nmissing.wav,vocals\n", r"line 2: missing\.wav is not there"),
        (b"path,kind\na\0b.wav,vocals\n", "m.csv"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            find_tracks([path])


# Splits


def test_patterns_and_what_the_data_says(tmp_path):
    tracks = [song("a"), song("b", split="test"), song("c", group="eva"), song("d", group="eva"), song("e [live]")]
    split = split_tracks(tracks, validation=["ev?", "e [live]"], test=[])
    assert (names(split.train), names(split.validation), names(split.test)) == (["a"], ["c", "d", "e [live]"], ["b"])
    split = split_tracks(tracks, validation=["b"], test=["[a]"])  # a pattern overrules the data
    assert (names(split.validation), names(split.test)) == (["b"], ["a"])


def test_a_share_is_stable():
    tracks = [song(f"song {i}", split="train") for i in range(200)]
    loose = [song(f"loose {i}", kind="accompaniment") for i in range(50)]
    before, after = split_tracks(tracks[:100] + loose), split_tracks(tracks[::-1])
    assert 3 <= len(before.validation) <= 20
    assert all(track.kind == "song" for track in before.validation)
    assert set(before.validation) == set(after.validation) & set(tracks[:100])
    assert split_tracks(tracks, share=0).validation == ()
    assert len(split_tracks(tracks, share=0.5).validation) > 70


def test_a_share_takes_whole_groups_and_leaves_one():
    tracks = [song("a1", group="a"), song("a2", group="a"), song("b1", group="b"), song("b2", group="b", kind="vocals")]
    split = split_tracks(tracks, share=0.01)
    assert len({track.group for track in split.validation}) == len({track.group for track in split.train}) == 1
    assert len(split.validation) == 2
    assert len(split_tracks(tracks, share=0.999).train) == 2
    assert split_tracks(tracks[:2]).validation == ()
    assert split_tracks([]) == Split((), (), ())


def test_what_the_data_says_of_validation_is_enough():
    tracks = [song("a", split="validation"), song("b"), song("c")]
    assert names(split_tracks(tracks, share=0.9).validation) == ["a"]


def test_a_group_on_both_sides():
    tracks = [
        song("a", group="eva"),
        song("b", group="eva"),
        song("c", group="jo", split="test"),
        song("d", group="jo"),
    ]
    with pytest.raises(DataError, match=r"eva: is on both sides of the split \(a in validation, b in train\)"):
        split_tracks(tracks[:2], validation=["a"])
    with pytest.raises(DataError, match="jo: is on both sides"):
        split_tracks(tracks)
    with pytest.raises(DataError, match="a: asked for in validation and in test"):
        split_tracks(tracks[:2], validation=["eva"], test=["a"])


def test_names_and_groups_that_match():
    tracks = [song("Song [live]"), song("Song l"), song("c", group="eva")]
    assert names(matching_tracks("Song [live]", tracks)) == ["Song [live]", "Song l"]  # a name as well as a pattern
    assert names(matching_tracks("Song*", tracks)) == ["Song [live]", "Song l"]
    assert names(matching_tracks("eva", tracks)) == ["c"]
    with pytest.raises(DataError, match=r"'song\*': matches no track"):
        matching_tracks("song*", tracks)


def test_a_pattern_that_matches_nothing():
    tracks = [song(f"mir1k_{name}") for name in ("amy", "bug", "leon", "stool", "tammy", "titon")]
    with pytest.raises(DataError, match=r"'mir1k_amie': matches no track and no group; there is mir1k_amy"):
        split_tracks(tracks, test=["mir1k_amie"])
    with pytest.raises(DataError, match=r"\(6 in all\)"):
        split_tracks(tracks, test=["*xyz*"])
    with pytest.raises(TypeError, match="want a list of patterns"):
        split_tracks(tracks, test="mir1k_amy")
    with pytest.raises(ValueError, match="share"):
        split_tracks(tracks, share=1.0)


# The recordings that the project has


@needs_shared
def test_the_shared_manifest():
    tracks = find_tracks([SHARED])
    with open(SHARED / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["licence"] for row in rows} <= set(_TABLE)
    assert sum(len(sources) for track in tracks for sources in track.sources.values()) == len(rows)
    assert sum(track.kind == "song" for track in tracks) == 19
    commercial = permissive(tracks)
    assert not any(track.name.startswith(("mir1k_", "gtsinger", "m4singer", "choral")) for track in commercial)
    assert sum(track.kind == "song" for track in commercial) == 4


def shared_pairs(singers: Sequence[str], cache: Path) -> set[frozenset[str]]:
    """The singers of MIR-1K who share a karaoke track."""
    tracks = [track for track in find_tracks([SHARED]) if track.name in {f"mir1k_{singer}" for singer in singers}]
    assert len(tracks) == len(singers)
    recordings = load_recordings(tracks, sample_rate_hz=4000, channels=1, cache=cache)
    leaks = shared_accompaniments(recordings, recordings)
    return {frozenset(name.removeprefix("mir1k_") for name in leak[:2]) for leak in leaks if leak[0] != leak[1]}


@needs_shared
def test_karaoke_tracks_that_singers_share(tmp_path):
    pairs = shared_pairs(["abjones", "bug", "stool", "tammy", "bobon"], tmp_path)
    assert pairs == {frozenset({"abjones", "stool"}), frozenset({"bobon", "tammy"})}


@needs_shared
@pytest.mark.slow
def test_karaoke_tracks_that_all_singers_share(tmp_path):
    singers = ["Ani", "Kenshin", "abjones", "amy", "annar", "bobon", "bug", "fdps", "geniusturtle", "jmzen", "leon"]
    singers += ["stool", "tammy", "titon", "yifen"]
    pairs = shared_pairs(singers, tmp_path)
    partners = {singer: {other for pair in pairs if singer in pair for other in pair - {singer}} for singer in singers}
    assert {singer for singer in singers if not partners[singer]} == {"bug", "jmzen", "titon"}
    assert (partners["abjones"], partners["stool"]) == ({"stool"}, {"abjones"})
    assert {"amy", "Kenshin", "fdps", "tammy", "bobon"} <= partners["leon"]
    assert "yifen" in partners["amy"]


def test_finding_needs_no_torch(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "vocals").mkdir()
    soundfile.write(tmp_path / "vocals" / "a.wav", rng.uniform(-0.5, 0.5, 8000), 8000)
    script = (
        "import sys; from pyunetsep.data import find_tracks, load_recordings, split_tracks;"
        f"split = split_tracks(find_tracks([{str(tmp_path)!r}]));"
        f"load_recordings(split.train, sample_rate_hz=4000, channels=1, cache={str(tmp_path / 'cache')!r});"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
