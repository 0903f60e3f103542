"""Folders with links in them: every file once, under a path that no new link changes."""

import os

import pytest

from dalle_jax import storage
from dalle_jax.data import paths
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """`inner/0.png` to `inner/3.png`, `z.png`, and `0.tar` and `deep/1.tar`."""
    root = tmp_path / "root"
    for name in (*(f"inner/{i}.png" for i in range(4)), "z.png", "0.tar", "deep/1.tar"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


FILES = sorted([*(f"inner/{i}.png" for i in range(4)), "z.png", "0.tar", "deep/1.tar"])


@pytest.mark.timeout(60)
def test_a_folder_that_contains_itself(folder):
    (folder / "0self").symlink_to(folder)
    (folder / "inner" / "up").symlink_to("..")
    (folder / "deep" / "around").symlink_to("../inner")
    assert sorted(storage.walk(str(folder))) == FILES
    assert sorted(storage.walk(f"{folder}/0self/inner/up")) == FILES
    tars = [f"{folder}/0.tar", f"{folder}/deep/1.tar"]
    assert storage.glob_files(f"{folder}/**/*.tar") == paths.expand(f"{folder}/**/*.tar", ".tar") == tars


def test_no_image_is_trained_on_and_held_out(folder):
    for i in range(20):
        (folder / f"link{i}").symlink_to("inner")
        (folder / f"{i}-again.png").symlink_to("z.png")
    config = DataConfig(source=SourceKind.FOLDER, path=str(folder), eval_fraction=0.4)
    train, held_out = (
        {os.path.realpath(folder / source.key(i)) for i in range(len(source))}
        for source in (open_source(config), open_source(config, "eval"))
    )
    assert train and held_out and not train & held_out and len(train | held_out) == 5
    links = [left for left in Folder(str(folder)).left_out if left.reason.startswith("links ")]
    assert [(left.count, left.example) for left in links] == [(20, "0-again.png")]


def test_links_to_other_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "store" / "deeper").mkdir(parents=True)
    for name in ("a.png", "deeper/b.png"):
        (tmp_path / "store" / name).write_bytes(b"x")
    for name in ("m", "k"):
        (folder / name).symlink_to(tmp_path / "store")
    (folder / "a-link.png").symlink_to(tmp_path / "store" / "a.png")
    (folder / "only.png").symlink_to(tmp_path / "other.png")
    (tmp_path / "other.png").write_bytes(b"y")
    files, repeated, _ = storage.walk_links(str(folder))
    assert sorted(files) == sorted([*FILES, "k/a.png", "k/deeper/b.png", "only.png"])
    assert repeated == ["a-link.png"]


def test_links_to_nothing_are_files_for_whoever_reads_them(folder):
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "round.png").symlink_to("round.png")
    assert sorted(storage.walk(str(folder))) == sorted([*FILES, "gone.png", "round.png"])


def test_a_link_to_another_tar_keeps_its_name(folder):
    (folder / "-first.tar").symlink_to("0.tar")  # which sorts before it
    assert storage.glob_files(f"{folder}/*.tar") == [f"{folder}/0.tar"]
    assert storage.once([f"{folder}/z.png", f"{folder}/0.tar", f"{folder}/-first.tar", f"{folder}/z.png"]) == [
        f"{folder}/z.png", f"{folder}/0.tar"
    ]  # fmt: skip
    assert storage.once(["gs://b/1.tar", "gs://b/0.tar", "gs://b/1.tar"]) == ["gs://b/1.tar", "gs://b/0.tar"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.tar", ["0.tar", "deep/1.tar"]),
        ("deep/**/1.tar", ["deep/1.tar"]),
        ("**/deep/*", ["deep/1.tar"]),
        ("d*/**/*.tar", ["deep/1.tar"]),
        ("**/[2-3].png", ["inner/2.png", "inner/3.png"]),
    ],
)
def test_patterns_over_folders(folder, pattern, found):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "2.tar").write_bytes(b"")
    assert storage.glob_files(f"{folder}/{pattern}") == [f"{folder}/{name}" for name in found]


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*/inner: Permission denied"):
        storage.walk(str(folder))


# Pipes, sockets, devices and folders


def test_a_pipe_that_is_called_as_an_image_is_counted_and_never_opened(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    os.mkfifo(tmp_path / "metadata.csv")
    folder = Folder(str(tmp_path))
    assert [folder.key(i) for i in range(len(folder))] == ["a.png"]
    assert [(found.reason, found.count, found.example) for found in folder.left_out] == [
        ("pipes, sockets and devices", 3, "b.png")
    ]


@pytest.mark.parametrize("pattern", ["*.tar", "**/*.tar", "[ab].tar", "", "b.tar", "{a,b}.tar"])
@pytest.mark.parametrize("link", [False, True])
def test_a_pattern_reads_files_alone(tmp_path, write_tar, png, pattern, link):
    write_tar("a.tar", {"a.png": png()})
    if link:
        (tmp_path / "b.tar").symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(UserError, match=r"b\.tar.*, which is a pipe, socket or device"):
        paths.expand(str(tmp_path / pattern), ".tar")
    os.unlink(tmp_path / "b.tar")
    (tmp_path / "b.tar").mkdir()
    if pattern in ("*.tar", "[ab].tar"):
        with pytest.raises(UserError, match=r"matches .*b\.tar, which is a folder: .* \*\*"):
            paths.expand(str(tmp_path / pattern), ".tar")
