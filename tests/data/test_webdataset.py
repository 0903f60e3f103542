"""Tars: where their members lie, which of them are a sample, and what is said of broken ones."""

import gzip
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dalle_jax.data import paths
from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import TarKey
from dalle_jax.data.readers import tar
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import BadReason, BadSample, hash_key
from dalle_jax.errors import UserError


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_scan_finds_what_tarfile_finds(write_tar, format):
    members = {"a.jpg": b"x" * 700, "b/c.txt": b"", "./d.png": b"y", "deep/" * 25 + "e" * 60 + ".json": b"z" * 512}
    if format != tarfile.USTAR_FORMAT:
        members |= {"n" * 150 + ".txt": b"long", "näme☃.txt": b"unicode"}
    path = write_tar("x.tar", members, format)
    with tarfile.open(path) as reference:
        wanted = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in reference]
    assert [tuple(member) for member in tar.scan(path)] == wanted


def test_real_tars_match_tarfile(cifar_glob):
    path = paths.expand(cifar_glob, ".tar")[0]
    with tarfile.open(path) as reference:
        wanted = [(m.name, m.offset_data, m.size) for m in reference]
    assert [tuple(member) for member in tar.scan(path)] == wanted


@pytest.mark.parametrize("keep", [100, 512 + 300, 512 * 3 + 512 + 10])
def test_a_tar_cut_short_is_named_with_its_offset(write_tar, png, keep):
    path = write_tar("cut.tar", {"a.png": b"p" * 700, "b.png": png(1), "b.txt": b"two"}, tarfile.USTAR_FORMAT)
    os.truncate(path, keep)
    with pytest.raises(UserError, match=rf"cut\.tar is cut short: the member at byte {512 * 3 if keep > 1024 else 0} "):
        WebDataset([path])


def test_a_tar_cut_in_half_is_an_error(write_tar, png):
    path = write_tar("half.tar", {f"{i}.png": png(i, 30, 30) for i in range(10)})
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(UserError, match=r"half\.tar is cut short: .* fetch it again"):
        WebDataset([write_tar("whole.tar", {"a.png": png()}), path])


def test_a_tar_cut_between_two_members_is_told(write_tar, png, caplog):
    path = write_tar("cut.tar", {f"{i}.png": png(i) for i in range(3)}, tarfile.USTAR_FORMAT)
    assert len(list(tar.scan(path))) == 3 and not caplog.records
    os.truncate(path, list(tar.scan(path))[2].offset - 512)
    assert len(list(tar.scan(path))) == 2
    assert "cut.tar ends without the empty blocks that close a tar: it may be cut short" in caplog.text


def test_compressed_and_damaged_tars_are_named(tmp_path, write_tar, png):
    path = write_tar("x.tar", {"a.png": png(), "b.png": png(1)}, tarfile.USTAR_FORMAT)
    data = Path(path).read_bytes()
    (tmp_path / "z.tar").write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match=r"z\.tar is compressed with gzip: unpack it"):
        WebDataset([str(tmp_path / "z.tar")])
    second = next(m.offset for m in tar.scan(path) if m.name == "b.png") - 512
    (tmp_path / "y.tar").write_bytes(data[: second + 3] + b"!" + data[second + 4 :])
    with pytest.raises(UserError, match=rf"y\.tar is damaged or no tar: no member starts at byte {second}"):
        WebDataset([str(tmp_path / "y.tar")])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("length", [b"000", b"xyz", b"-99", b"999"])
def test_a_damaged_pax_header_is_named(tmp_path, write_tar, length):
    path = write_tar("long.tar", {"n" * 150 + ".png": b"p"}, tarfile.PAX_FORMAT)
    data = Path(path).read_bytes()
    place = data.index(b" path=") - 3
    Path(path).write_bytes(data[:place] + length + data[place + 3 :])
    with pytest.raises(UserError, match=r"long\.tar is damaged or no tar: no member starts at byte 0"):
        WebDataset([path])


@pytest.mark.timeout(60)
def test_a_negative_size_is_damage(write_tar):
    path = write_tar("x.tar", {"a.png": b"p", "b.png": b"q"}, tarfile.USTAR_FORMAT)
    data = bytearray(Path(path).read_bytes())
    header = bytearray(data[1024:1536])
    header[124:136], header[148:156] = b"-0000002000\0", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    Path(path).write_bytes(data[:1024] + header + data[1536:])
    with pytest.raises(UserError, match=r"x\.tar is damaged or no tar: no member starts at byte 1024"):
        WebDataset([path])


def test_samples_in_any_order(write_tar, png):
    first = write_tar("0.tar", {"000.jpg": png(0), "000.txt": b"zero", "001.txt": b"one\n\n uno \n", "001.png": png(1)})
    second = write_tar("1.tar", {"002.json": b'{"caption": "two"}', "002.webp": png(2), "003.JPEG": png(3)})
    source = WebDataset([first, second])
    assert len(source) == 4 and not source.has_labels
    assert [source.key(i) for i in range(4)] == ["000", "001", "002", "003"]
    assert [source[i].captions for i in (3, 1, 0, 2)] == [(), ("one", "uno"), ("zero",), ("two",)]
    assert [source[i].image for i in range(4)] == [png(i) for i in range(4)]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2]
    assert list(all_captions(source)) == ["zero", "one", "uno", "two"]
    assert list(all_captions(source, limit=2)) == ["zero", "two"]


def test_caption_field_chooses_among_the_jsons(write_tar, png):
    json = b'{"caption": "old", "blip": ["new", "newer"]}'
    path = write_tar("0.tar", {"a.png": png(), "a.txt": b"alt text", "a.json": json, "b.png": png(), "b.txt": b"only"})
    assert WebDataset([path])[0].captions == ("alt text",)
    source = WebDataset([path], caption_field="blip")
    assert source[0].captions == ("new", "newer")
    assert source[1].captions == ("only",)


def test_captions_that_are_not_text(write_tar, png):
    members = {
        "a.png": png(), "a.txt": b"caf\xe9",
        "b.png": png(), "b.txt": b" \n",
        "c.png": png(), "c.json": b'{"caption": "\\ud83d"}',
        "d.png": png(), "d.json": b"{broken",
        "e.png": png(), "e.txt": b"\xff\xfe", "e.json": b'{"caption": "readable"}',
        "f.png": png(), "f.json": b'["a list"]',
        "g.png": png(), "g.json": b'{"width": ' + b"9" * 5000 + b', "caption": "a dog"}',  # Python reads 4,300 digits
        "h.png": png(), "h.json": b"[" * 200_000,
        "i.png": png(), "i.json": b'{"caption": ' + b"[" * 800 + b'"a dog"' + b"]" * 800 + b"}",
    }  # fmt: skip
    source = WebDataset([write_tar("0.tar", members)])
    found = [(source[i].captions, source[i].captions_fault) for i in range(len(source))]
    encoding, json, none = ((), BadReason.CAPTION_ENCODING), ((), BadReason.CAPTION_JSON), ((), None)
    assert found == [encoding, none, encoding, json, (("readable",), None), none, json, json, none]


def test_labels_and_what_is_no_sample(write_tar, png):
    path = write_tar("0.tar", {"x/a.png": png(), "x/a.cls": b"7\n", "b.txt": b"no image", "._a.png": b"macOS"})
    source = WebDataset([path])
    assert source.has_labels and source[0].label == 7 and source.key(0) == "x/a" and len(source) == 1
    with pytest.raises(UserError, match="no member is an image"):
        WebDataset([write_tar("1.tar", {"b.txt": b"alone"})])


def left_out(source):
    return {found.reason: (found.count, found.example) for found in source.left_out}


def test_what_is_left_out_is_counted_by_reason(write_tar, png):
    members = {
        "a.png": png(0), "a.txt": b"one", "a.jpg": png(1), "b.txt": b"no image", "c.json": b"{}", "._a.png": b"macOS",
        "readme.md": b"", "d.tar.gz": b"", "x/e.v2.png": png(2), "x/e.v2.txt": b"two", "png": b"", "f.png": png(3),
        "f.TXT": b"old", "f.txt": b"new",
    }  # fmt: skip
    paths = [write_tar("0.tar", members), write_tar("1.tar", {"z.png": png(), "note.md": b""})]
    source = WebDataset(paths)
    assert [source.key(i) for i in range(len(source))] == ["a", "f", "z"] and source.captioned() == 2
    assert source[0].image == png(1) and source[1].captions == ("new",)
    assert left_out(source) == {
        "members whose names begin with a dot": (1, "._a.png in 0.tar"),
        "members of other extensions": (4, "readme.md in 0.tar"),
        "members with a dot before the one of their extension (data.key=stem reads them)": (2, "x/e.v2.png in 0.tar"),
        "images of keys that have a later one": (1, "a.png in 0.tar"),
        ".txt files of keys that have a later one": (1, "f.TXT in 0.tar"),
        "samples without an image": (2, "b in 0.tar"),
    }
    again = WebDataset(paths)  # from the cache
    assert left_out(again) == left_out(source) == left_out(pickle.loads(pickle.dumps(source)))


def test_the_last_member_of_a_name_counts(tmp_path, write_tar, png):
    path = write_tar("0.tar", {"a.png": png(0), "b.png": png(1), "./a.txt": b"old"}, tarfile.USTAR_FORMAT)
    newer = write_tar("1.tar", {"a.png": png(2), "a.txt": b"new"}, tarfile.USTAR_FORMAT)
    with open(path, "ab") as file:
        file.write(Path(newer).read_bytes())
    source = WebDataset([path])
    assert [(source.key(i), source[i].image, source[i].captions) for i in range(2)] == [
        ("a", png(2), ("new",)), ("b", png(1), ())
    ]  # fmt: skip
    assert left_out(source) == {"members that a later one of the same name replaces": (2, "a.png in 0.tar")}


def test_keys_up_to_the_last_dot(write_tar, png):
    members = {
        "2020.01.png": png(0), "2020.01.txt": b"January", "2020.02.jpg": png(1), "2020.02.cls": b"7",
        "v1.0/c.png": png(2), "d.png": png(3), "d.txt": b"an image and its mask", "d.seg.png": png(4),
        "e.png": png(5), "e.crop.png": png(6),
    }  # fmt: skip
    path = write_tar("0.tar", members)
    source = WebDataset([path], key=TarKey.STEM)
    found = {source.key(i): (source[i].image, source[i].captions, source[i].label) for i in range(len(source))}
    assert found == {
        "2020.01": (png(0), ("January",), None), "2020.02": (png(1), (), 7), "v1.0/c": (png(2), (), None),
        "d": (png(3), ("an image and its mask",), None), "e": (png(5), (), None), "e.crop": (png(6), (), None),
    }  # fmt: skip
    reason = "images named after another sample, which alone has captions or a label"
    assert left_out(source) == {reason: (1, "d.seg.png in 0.tar")}
    assert [WebDataset([path]).key(i) for i in range(3)] == ["v1.0/c", "d", "e"]


def test_where_every_name_has_dots_the_option_is_named(write_tar, png):
    path = write_tar("0.tar", {f"2020.01.{i:02}.png": png(i) for i in range(3)})
    with pytest.raises(
        UserError, match=r"no member is an image .* set config\.data\.key=stem .* 3, such as 2020\.01\.00"
    ):
        WebDataset([path])
    assert len(WebDataset([path], key=TarKey.STEM)) == 3


def test_a_tar_that_shrinks_or_goes_gives_bad_samples(write_tar, png):
    path = write_tar("0.tar", {"a.png": png(0), "b.png": png(1)})
    source = WebDataset([path])
    os.truncate(path, 1200)
    with pytest.raises(BadSample) as shrunk:
        source[1]
    os.remove(path)
    with pytest.raises(BadSample) as gone:
        source[0]
    assert shrunk.value.reason == gone.value.reason == BadReason.MISSING


def test_a_tar_that_was_written_anew_is_scanned_anew(write_tar, png):
    path = write_tar("0.tar", {"a.png": png(0)})
    assert len(WebDataset([path])) == 1
    write_tar("0.tar", {"a.png": png(0), "b.png": png(1)})
    source = WebDataset([path])
    assert len(source) == 2 and source.key_hashes().tolist() == [hash_key("a"), hash_key("b")]


def test_patterns(tmp_path):
    for name in ("00.tar", "01.tar", "02.tar", "a,b.tar"):
        (tmp_path / name).touch()

    def names(pattern):
        return [os.path.basename(path) for path in paths.expand(pattern.replace("@", str(tmp_path)), ".tar")]

    (tmp_path / "00-again.tar").symlink_to(tmp_path / "00.tar")
    assert names("@/0*.tar,@/02.tar") == ["00.tar", "01.tar", "02.tar"]
    (tmp_path / "00-again.tar").unlink()
    assert names("@/{00..02}.tar") == ["00.tar", "01.tar", "02.tar"]
    assert names("@/0{2,0}.tar") == ["02.tar", "00.tar"]
    assert names("@/0[01].tar") == ["00.tar", "01.tar"]
    assert names("@/00.tar, @/{01..02}.tar") == ["00.tar", "01.tar", "02.tar"]
    assert names("@") == ["00.tar", "01.tar", "02.tar", "a,b.tar"]
    assert paths.expand_braces("{9..11}") == ["9", "10", "11"]
    assert paths.expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    with pytest.raises(UserError, match=r"2 of the files .* do not exist, the first is '.*/03\.tar'"):
        names("@/{00..04}.tar")
    with pytest.raises(UserError, match="matches no .tar file"):
        names("@/*.tarr")
    (tmp_path / "03.tar").symlink_to("moved.tar")
    for pattern in ("@/{00..03}.tar", "@/*.tar", "@/0[0-9].tar", "@"):
        with pytest.raises(UserError, match=r"1 of the files .* do not exist, the first is '.*/03\.tar'"):
            names(pattern)
    (tmp_path / "03.tar").unlink()
    with pytest.raises(UserError, match="cannot read the brace range '{a..b}'"):
        names("@/{a..b}.tar")
    with pytest.raises(UserError, match="config.data.path is empty"):
        names("")


def test_the_real_sets_read(emoji_glob, cifar_glob):
    emoji, photographs = (WebDataset(paths.expand(glob, ".tar")) for glob in (emoji_glob, cifar_glob))
    assert (len(emoji), len(photographs)) == (3421, 15_000)
    assert photographs.has_labels and photographs[17].label in range(10)
    for index in np.linspace(0, 3420, 20).astype(int):
        assert emoji[int(index)].captions and emoji[int(index)].image[:4] == b"\x89PNG"


def test_a_json_that_is_none_is_a_reason_of_its_own(write_tar, png):
    members = {"a.png": png(), "a.json": b'{"caption": "a ca', "b.png": png(), "b.json": b"{}"}
    source = WebDataset([write_tar("x.tar", members)])
    assert source[0].captions_fault is BadReason.CAPTION_JSON
    assert source[1].captions_fault is None


def test_class_files_with_names_are_no_labels(write_tar, png, caplog):
    """Not -1 for all of them, as which they were evaluated."""
    names = {"a.png": png(), "a.cls": b"cat", "b.png": png(), "b.cls": b"dog"}
    source = WebDataset([write_tar("x.tar", names)])
    assert not source.has_labels and source[0].label is None
    assert "x.tar: .cls files hold b'cat', and not numbers: there are no labels" in caplog.text
    mixed = WebDataset([write_tar("y.tar", names | {"a.cls": b"0"})])
    assert mixed.has_labels and mixed[0].label == 0
    with pytest.raises(BadSample, match="no_label: b.cls holds b'dog'"):
        mixed[1]
