"""Files and rows that cannot be used cost a line, replaced ones are done again, and names of others stay text."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_fst import cli
from hf_fst.prediction.files import stamp
from hf_fst.prediction.sources import is_remote, open_source
from tests.evaluation.conftest import run_dir, tiny_model  # noqa: F401  the fixture
from tests.prediction.test_predict import by_hand, indices, noise


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def images(tmp_path):
    for index in range(3):
        noise(tmp_path / f"images/{index}.png", (32, 48), index)
    return tmp_path / "images"


def run(capsys, *argv) -> tuple[int, str]:
    capsys.readouterr()
    return cli.main([*map(str, argv)]), capsys.readouterr().err


def labeled(output: Path) -> dict[str, dict]:
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").glob("*.parquet"))).to_pylist()
    return {row["source"]: row for row in rows}


def undecodable(folder: Path, *inside: bytes) -> None:
    path = os.path.join(os.fsencode(folder), *inside)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_bytes((folder / "0.png").read_bytes())


ODD = {
    "a broken link": [
        lambda folder: (folder / "odd.png").symlink_to("/nowhere/else.png"),
        lambda folder: (folder / "odd.png").symlink_to("odd.png"),
    ],
    "not a regular file": [
        lambda folder: os.mkfifo(folder / "odd.png"),
        lambda folder: socket.socket(socket.AF_UNIX).bind(str(folder / "odd.png")),
    ],
    "its name is not valid text": [
        lambda folder: undecodable(folder, b"odd\xff.png"),
        lambda folder: undecodable(folder, b"odd\xff", b"a.png"),
    ],
}


@pytest.mark.parametrize("command", ["predict", "label"])
@pytest.mark.parametrize("reason, make", [(reason, make) for reason, makes in ODD.items() for make in makes])
def test_a_file_that_cannot_be_used_costs_a_line(
    run_dir,  # noqa: F811
    images,
    tmp_path,
    capsys,
    monkeypatch,
    command,
    reason,
    make,
):
    monkeypatch.chdir(images)  # the path of a socket has 108 bytes at most
    make(Path())
    code, said = run(capsys, command, run_dir, images, "-o", tmp_path / "out")
    lines = said.splitlines()
    assert code == 1 and re.match(r"odd.*\.png: ", lines[-2]) and lines[-2].endswith(f": {reason}")
    assert lines[-1] == "hf-fst: 1 of 4 files failed, see above; the others are done."
    done = labeled(tmp_path / "out") if command == "label" else {p.name for p in (tmp_path / "out").rglob("*.png")}
    assert len(done) == 3


@pytest.mark.parametrize("command", ["predict", "label"])
def test_a_name_as_long_as_the_disk_allows_is_as_good_as_another(run_dir, images, tmp_path, capsys, command):  # noqa: F811
    (images / "1.png").rename(images / f"{'x' * 251}.png")
    assert run(capsys, command, run_dir, images, "-o", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("command", ["predict", "label"])
def test_one_such_file_alone_is_named(run_dir, tmp_path, capsys, command):  # noqa: F811
    (tmp_path / "odd.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "all").mkdir()
    (tmp_path / "all/odd.png").symlink_to("nowhere.png")
    for name, words in (
        ("odd.png", "odd.png is a broken link"),
        ("pipe.png", "pipe.png is not a regular file; give one with images."),
        ("all", "that can be read (odd.png: a broken link)."),
    ):
        code, said = run(capsys, command, run_dir, tmp_path / name, "-o", tmp_path / "out")
        assert code == 1 and words in said and "Traceback" not in said


def parquet(path: Path, rows: list[dict | None]) -> Path:
    path.parent.mkdir(exist_ok=True)
    column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = datasets.Features(image=datasets.Image())
    pq.write_table(pa.table({"image": column}, schema=features.arrow_schema), path)
    return path.parent


def test_rows_without_an_image_cost_a_line_each(run_dir, images, tmp_path, capsys):  # noqa: F811
    good = {"bytes": (images / "0.png").read_bytes(), "path": None}
    shards = parquet(tmp_path / "shards/a.parquet", [None, good, {"bytes": None, "path": None}, good])
    code, said = run(capsys, "label", run_dir, shards, "-o", tmp_path / "out")
    assert code == 1 and "a.parquet#0 is null; every row needs an image." in said
    assert "a.parquet#2: An image has neither a path nor bytes" in said and "2 of 4 files failed" in said
    assert list(labeled(tmp_path / "out")) == ["a.parquet#1", "a.parquet#3"]


def test_a_table_without_rows_or_images_costs_a_sentence(run_dir, images, tmp_path, capsys):  # noqa: F811
    good = {"bytes": (images / "0.png").read_bytes(), "path": None}
    shards = parquet(tmp_path / "shards/b.parquet", [good])
    pq.write_table(pq.read_table(shards / "b.parquet").slice(0, 0), shards / "c.parquet")
    code, said = run(capsys, "label", run_dir, shards, "-o", tmp_path / "out")
    assert code == 1 and "c.parquet has no rows." in said and "1 of 2 files failed" in said
    pq.write_table(pa.table({"image": pa.array([None, None])}), shards / "a.parquet")
    code, said = run(capsys, "label", run_dir, shards, "-o", tmp_path / "none")
    assert code == 1 and "has no image in any row of its first file" in said


def test_a_broken_table_or_archive_is_named(run_dir, images, tmp_path, capsys):  # noqa: F811
    good = {"bytes": (images / "0.png").read_bytes(), "path": None}
    parquet(tmp_path / "shards/a.parquet", [good])
    (tmp_path / "shards/b.parquet").write_bytes((tmp_path / "shards/a.parquet").read_bytes()[:-200])
    pq.write_table(pa.table({"image": pa.array([7])}), tmp_path / "shards/c.parquet")  # of another type
    code, said = run(capsys, "label", run_dir, tmp_path / "shards", "-o", tmp_path / "out")
    assert code == 1 and "b.parquet is damaged (" in said and "c.parquet is damaged (Unsupported cast" in said
    assert "2 of 3 files failed" in said
    assert list(labeled(tmp_path / "out")) == ["a.parquet#0"]
    for name in ("c.parquet", "c.tar"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / name).write_bytes(b"neither one nor the other")
        code, said = run(capsys, "label", run_dir, tmp_path / "one" / name, "-o", tmp_path / "more")
        assert code == 1 and f"{name} cannot be read (" in said and "Traceback" not in said


def test_a_table_publishes_no_files_of_this_machine_unless_asked(run_dir, images, tmp_path, capsys):  # noqa: F811
    private = noise(tmp_path / "private/face.png", seed=7)
    good = {"bytes": (images / "0.png").read_bytes(), "path": "/home/somebody/0.png"}
    names = [
        str(private),
        f"file://{private}",
        os.path.relpath(private),
        f"file://{private}::https://example.org/a.zip",
    ]
    shards = parquet(tmp_path / "shards/a.parquet", [good, *({"bytes": None, "path": name} for name in names)])
    code, said = run(capsys, "label", run_dir, shards, "-o", tmp_path / "out")
    assert code == 1 and said.count("which would be published with the labels; give --local_files") == 4
    assert "#1 holds no image but names a file on this machine, 'face.png'" in said
    assert list(labeled(tmp_path / "out")) == ["a.parquet#0"]
    assert not any(str(private).encode() in path.read_bytes() for path in (tmp_path / "out/data").iterdir())
    code, said = run(capsys, "label", run_dir, shards, "-o", tmp_path / "asked", "--local_files")
    found = labeled(tmp_path / "asked")["a.parquet#1"]["image"]
    assert found == {"bytes": private.read_bytes(), "path": "face.png"}


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("hf://datasets/a/b@main/c.png", True),
        ("zip://c.png::hf://datasets/a/b/d.zip", True),
        ("https://example.org/c.png", True),
        ("c.png", False),
        ("C:\\c.png", False),
        ("zip://c.png::/tmp/d.zip", False),
        ("zip://c.png::file:///tmp/d.zip", False),
        ("/etc/c.png::https://example.org/d.zip", False),
        ("local://c.png", False),
        ("simplecache::/tmp/c.png", False),
    ],
)
def test_what_counts_as_an_address(path, remote):
    assert is_remote(path) is remote


def test_what_a_failure_says_in_the_shards_names_no_folder_of_this_machine(
    run_dir,  # noqa: F811
    images,
    tmp_path,
    capsys,
    monkeypatch,
):
    def lost(*arguments):
        found = open_source(*arguments)
        (images / "0.png").unlink()  # by somebody else, while the job runs
        return found

    monkeypatch.setattr("hf_fst.prediction.label.open_source", lost)
    code, said = run(capsys, "label", run_dir, images, "-o", tmp_path / "out")
    assert code == 1 and "\n0.png cannot be read (No such file or directory)" in said
    assert not any(str(images).encode() in path.read_bytes() for path in (tmp_path / "out/data").iterdir())


REPLACED = {
    "an older date": lambda path, before: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 10**13)),
    "the same date and another size": lambda path, before: (
        path.write_bytes(path.read_bytes() + b"more"),
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns)),
    ),
    "the same size": lambda path, before: None,
    "the same size and date": lambda path, before: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns)),
}


@pytest.mark.parametrize("how", REPLACED)
def test_a_replaced_image_is_done_again_and_no_other(run_dir, images, tmp_path, capsys, how):  # noqa: F811
    for index in range(3):
        noise(images / f"{index}.bmp", (32, 48), index)
        (images / f"{index}.png").unlink()
    runs = [
        ("predict", run_dir, images, "-o", tmp_path / "predicted", "--overlays", "--json"),
        ("label", run_dir, images, "-o", tmp_path / "labeled", "--shard_size", "1", "--json"),
    ]
    for argv in runs:
        assert cli.main([*map(str, argv)]) == 0
    before = (images / "1.bmp").stat()
    noise(images / "1.bmp", (32, 48), seed=8)
    assert (images / "1.bmp").stat().st_size == before.st_size
    REPLACED[how](images / "1.bmp", before)
    for argv, count in zip(runs, ("images", "labeled_now"), strict=True):
        for expected in (1, 0):  # once
            capsys.readouterr()
            assert cli.main([*map(str, argv)]) == 0
            assert json.loads(capsys.readouterr().out)[count] == expected
    classes = by_hand(run_dir, np.asarray(Image.open(images / "1.bmp"))).argmax(0).numpy()
    assert np.array_equal(indices(tmp_path / "predicted/predictions/1.png"), classes)
    assert labeled(tmp_path / "labeled")["1.bmp"]["image"]["bytes"] == (images / "1.bmp").read_bytes()


def test_of_a_large_file_every_byte_is_looked_at_whatever_its_date(tmp_path):
    path, seen = tmp_path / "shard.tar", []
    size = 100 * 2**20 + 1
    for changed in (None, 0, size // 2, 60 * 2**20, size - 1):
        with open(path, "wb") as file:  # sparse: it takes no room
            file.truncate(size)
            if changed is not None:
                file.seek(changed)
                file.write(b"x")
        os.utime(path, ns=(0, 0))
        seen.append(stamp([path]))
    assert len(set(seen)) == 5
    os.utime(path, ns=(0, 10**9))
    assert stamp([path]) == seen[-1]  # nothing changed but the date


def test_a_file_behind_many_shards_is_read_once(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.parquet", []
    path.write_bytes(b"some rows")
    monkeypatch.setattr("builtins.open", lambda *args, plain=open: opened.append(args[0]) or plain(*args))
    assert len({stamp([path]) for _ in range(5)}) == 1 and opened == [path]


def test_an_overlay_of_a_replaced_image_is_made_again(run_dir, images, tmp_path):  # noqa: F811
    argv = ["predict", str(run_dir), str(images / "1.png"), "-o", str(tmp_path / "out")]
    assert cli.main([*argv, "--overlays"]) == 0
    before = (tmp_path / "out/overlays/1.jpg").read_bytes()
    noise(images / "1.png", (32, 48), seed=8)
    assert cli.main(argv) == 0 and cli.main([*argv, "--overlays"]) == 0
    assert (tmp_path / "out/overlays/1.jpg").read_bytes() != before


def test_a_replaced_table_is_labeled_again_with_all_its_shards(run_dir, images, tmp_path, capsys):  # noqa: F811
    rows = [{"bytes": (images / f"{index}.png").read_bytes(), "path": None} for index in range(3)]
    parquet(tmp_path / "shards/a.parquet", rows)
    shards = parquet(tmp_path / "shards/b.parquet", rows)
    argv = ["label", str(run_dir), str(shards), "-o", str(tmp_path / "out"), "--shard_size", "1", "--json"]
    assert cli.main(argv) == 0
    parquet(tmp_path / "shards/b.parquet", rows[2:])
    capsys.readouterr()
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["labeled_now"] == 1
    found = labeled(tmp_path / "out")
    assert list(found) == ["a.parquet#0", "a.parquet#1", "a.parquet#2", "b.parquet#0"]
    assert found["b.parquet#0"]["image"]["bytes"] == rows[2]["bytes"]


def test_names_of_files_and_classes_cannot_steer_the_terminal(images, tmp_path, capsys):
    network = tiny_model(1)
    network.config.id2label = {0: "sky\x1b[2J", 1: "road\x07\nhf-fst: all is well", 2: "car\u202e", 3: "tree $x_$"}
    network.save_pretrained(tmp_path / "model")
    (images / "a\x1b]0;mine\x07.png").write_bytes(b"no picture")
    for command in ("predict", "label"):
        argv = [command, tmp_path / "model", images, "-o", tmp_path / command]
        code, said = run(capsys, *argv, *(["--overlays"] if command == "predict" else []))
        assert code == 1 and "a\\x1b]0;mine\\x07.png is not an image" in said
        assert not {"\x1b", "\x07"} & set(said.replace("\x1b[A", ""))  # tqdm moves up a line


@pytest.mark.parametrize("store", [lambda file: file, lambda file: {"bytes": file, "width": 48}])
def test_a_table_whose_column_holds_the_bytes_of_files_is_labeled(run_dir, images, tmp_path, store):  # noqa: F811
    files = [(images / f"{index}.png").read_bytes() for index in range(2)]
    table = pa.table({"image": pa.array(map(store, [files[0], b"no image", files[1]]))})
    pq.write_table(table, tmp_path / "bytes.parquet")
    argv = ["label", run_dir, tmp_path / "bytes.parquet", "-o", tmp_path / "out"]
    assert cli.main([*map(str, argv)]) == 1  # for the one that is no image
    assert sorted(row["image"]["bytes"] for row in labeled(tmp_path / "out").values()) == sorted(files)
