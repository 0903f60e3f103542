"""Tars of every make: what `tarfile` finds in them, read in the same places, and what nobody can read told."""

import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dalle_jax.data.left_out import Tally
from dalle_jax.data.readers import tar
from dalle_jax.data.readers.tables import read_table
from dalle_jax.errors import UserError

NAMES = st.one_of(
    st.sampled_from(["a.jpg", "b.txt", "./a.jpg", "x/a.jpg", "x/y/b.txt", "/absolute/c.png", "d.e.jpg"]),
    st.text("abö☃ .", min_size=1, max_size=120)
    .filter(lambda name: name.strip(" ./"))
    .map(lambda name: f"n{name}n.jpg"),
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
TARGETS = NAMES.filter(lambda name: not name.startswith("/"))  # `tarfile` takes these for relative
MEMBERS = st.lists(st.tuples(NAMES, KINDS, st.integers(0, 1500), TARGETS), max_size=8)


def archive(members, format, pax=False) -> bytes:
    """A tar of (name, type, size, target of a link)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as writer:
        for number, (name, kind, size, target) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, 1.5 if pax else 1
            info.linkname = target if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
            info.size = size if kind == tarfile.REGTYPE else 0
            writer.addfile(info, io.BytesIO(bytes([number + 1]) * size))
    return file.getvalue()


def scanned(path) -> tuple[dict[str, bytes], Tally]:
    """The last file of each name, and what was counted."""
    tally, data = Tally(), Path(path).read_bytes()
    return {name: data[offset:][:size] for name, offset, size in tar.scan(str(path), tally)}, tally


def by_tarfile(path) -> tuple[dict[str, bytes], set[str]]:
    """What `tarfile` reads under each name, the last of it; and names of what it cannot read as a file."""
    found, unreadable = {}, set()
    with tarfile.open(path, ignore_zeros=True) as reader:
        for member in reader:
            if member.isdir():
                continue
            try:
                file = reader.extractfile(member)
            except (KeyError, RecursionError):  # a link to nothing, or to itself
                file = None
            name = member.name.removeprefix("./")
            if file is None:
                unreadable.add(name)
            else:
                found[name] = file.read()
    return found, unreadable


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    tars=st.lists(st.tuples(MEMBERS, st.booleans()), min_size=1, max_size=2),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    tail=st.sampled_from([0, 512, 100_000]),
)
def test_files_are_those_of_tarfile(tmp_path, tars, format, tail):
    """One tar or several in a row, with or without a tail of zeros, names that come again, and links."""
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(archive(members, format, pax) for members, pax in tars) + bytes(tail))
    found, tally = scanned(path)
    wanted, unreadable = by_tarfile(path)
    names = [os.path.normpath(name) for members, _ in tars for name, *_ in members]
    if len(set(names)) == len(names):
        assert found == wanted and bool(unreadable) == bool(tally.found())
        return
    # Whoever unpacks a link whose target comes again has what was there then, or a link to what comes last.
    links = {name.removeprefix("./") for members, _ in tars for name, kind, *_ in members if kind in b"12"}
    assert {name: found.get(name) for name in wanted.keys() - links} == {
        name: data for name, data in wanted.items() if name not in links
    }
    assert tally.found() or unreadable <= found.keys()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_links_are_the_files_that_they_lead_to(tmp_path, format):
    deep = "d" * (90 if format == tarfile.USTAR_FORMAT else 150)
    members = [
        (f"{deep}/a.jpg", tarfile.REGTYPE, 700, ""),
        ("hard.jpg", tarfile.LNKTYPE, 0, f"./{deep}/a.jpg"),
        (f"{deep}/soft.jpg", tarfile.SYMTYPE, 0, "a.jpg"),
        ("later.jpg", tarfile.SYMTYPE, 0, "./to/b.jpg"),
        ("to/b.jpg", tarfile.REGTYPE, 9, ""),
        ("chain.jpg", tarfile.LNKTYPE, 0, "later.jpg"),
        ("nowhere.jpg", tarfile.SYMTYPE, 0, "../outside.jpg"),
        ("round.jpg", tarfile.SYMTYPE, 0, "round.jpg"),
        ("early.jpg", tarfile.LNKTYPE, 0, "comes-later.jpg"),
        ("comes-later.jpg", tarfile.REGTYPE, 3, ""),
    ]
    path = tmp_path / "x.tar"
    path.write_bytes(archive(members, format))
    found, tally = scanned(path)
    assert found == by_tarfile(path)[0]
    assert found["hard.jpg"] == found[f"{deep}/soft.jpg"] == b"\1" * 700 and found["chain.jpg"] == b"\5" * 9
    (left_out,) = tally.found()
    assert (left_out.count, left_out.reason) == (3, "links that lead to no file in their tar")


def test_a_hard_link_that_repeats_the_bytes(tmp_path):
    """As `pax -o linkdata` writes them; others state a size and write nothing."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as writer:
        for name, kind, data in (("a.jpg", b"0", b"p" * 700), ("b.jpg", b"1", b"p" * 700), ("c.jpg", b"0", b"q")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "a.jpg" if kind == b"1" else "", len(data)
            writer.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    assert scanned(path)[0] == {"a.jpg": b"p" * 700, "b.jpg": b"p" * 700, "c.jpg": b"q"}
    with tarfile.open(path, "w") as writer:
        for name, kind, data in (("a.jpg", b"0", b"p" * 700), ("b.jpg", b"1", b""), ("c.jpg", b"0", b"q")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "a.jpg" if kind == b"1" else "", len(data) or 700
            writer.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    assert scanned(path)[0] == {"a.jpg": b"p" * 700, "b.jpg": b"p" * 700, "c.jpg": b"q"}


def sparse_gnu(name: str, more: int) -> bytes:
    """A GNU sparse member of one block of data, with so many further blocks of map."""
    info = tarfile.TarInfo(name)
    info.type, info.size = b"S", 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = more > 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    maps = b"".join(bytes(504) + bytes([i < more - 1]) + bytes(7) for i in range(more))
    return bytes(header) + maps + b"s" * 512


@pytest.mark.parametrize("more", [0, 1, 3])
def test_sparse_members_are_counted_and_passed_over(tmp_path, more):
    path = tmp_path / "x.tar"
    plain = archive([("a.jpg", tarfile.REGTYPE, 600, "")], tarfile.GNU_FORMAT)
    path.write_bytes(sparse_gnu("sparse.jpg", more) + plain)
    found, tally = scanned(path)
    assert found == {"a.jpg": b"\1" * 600}
    assert [(entry.reason, entry.example) for entry in tally.found()] == [
        ("sparse members, which are not read", "sparse.jpg")
    ]


def test_a_sparse_member_of_pax(tmp_path):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("GNUSparseFile.0/s.jpg")
    info.size = 512
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg"}
    path.write_bytes(
        info.tobuf(tarfile.PAX_FORMAT) + bytes(512) + archive([("a.jpg", b"0", 5, "")], tarfile.PAX_FORMAT)
    )
    found, tally = scanned(path)
    assert found == {"a.jpg": b"\1" * 5} and tally.found()[0].example == "s.jpg"


def test_a_global_header_comes_between_a_name_and_its_member(tmp_path):
    path = tmp_path / "x.tar"
    long = "n" * 150 + ".jpg"
    data = archive([(long, b"0", 5, "")], tarfile.GNU_FORMAT)
    comment = tarfile.TarInfo.create_pax_global_header({"comment": "of git archive"})
    path.write_bytes(comment + data[:1024] + comment + data[1024:])
    assert scanned(path)[0] == {long: b"\1" * 5}


ONE = archive([("a.jpg", b"0", 700, ""), ("b.jpg", b"0", 700, "")], tarfile.USTAR_FORMAT)


def test_members_behind_empty_blocks_are_read_and_told(tmp_path, caplog):
    path = tmp_path / "two.tar"
    path.write_bytes(ONE + archive([("c.jpg", b"0", 9, "")], tarfile.USTAR_FORMAT))
    assert scanned(path)[0].keys() == {"a.jpg", "b.jpg", "c.jpg"}
    (record,) = caplog.records
    assert "two.tar has members behind the empty blocks at byte 3072, which are read too" in record.getMessage()


@pytest.mark.parametrize("start", [1536, 1024])
def test_a_hole_after_which_no_member_begins_is_refused(tmp_path, start):
    """In whose place the header of b.jpg lay, or the end of a.jpg too."""
    path = tmp_path / "hole.tar"
    path.write_bytes(ONE[:start] + bytes(2048 - start) + ONE[2048:])
    with pytest.raises(
        UserError, match=r"hole\.tar is damaged: it is empty from byte 1536 on, .* at byte 2048 is not a mem"
    ):
        list(tar.scan(str(path)))


@pytest.mark.parametrize("junk", [b"junk", b"j" * 512, bytes(100) + b"junk"])
def test_what_follows_the_end_and_is_no_tar_is_refused(tmp_path, junk):
    path = tmp_path / "x.tar"
    path.write_bytes(ONE + junk)
    with pytest.raises(UserError, match=r"x\.tar is damaged: it is empty from byte 3072 on"):
        list(tar.scan(str(path)))


@pytest.mark.timeout(60)
def test_a_preallocated_tail_costs_nothing(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(ONE)
    os.truncate(path, 1 << 40)
    begun = time.perf_counter()
    assert len(list(tar.scan(str(path)))) == 2
    assert time.perf_counter() - begun < 5.0
    with open(path, "r+b") as file:  # the same with something at its end
        file.seek((1 << 40) - 1024)
        file.write(archive([("z.jpg", b"0", 9, "")], tarfile.USTAR_FORMAT)[:1024])
    assert [member.name for member in tar.scan(str(path))] == ["a.jpg", "b.jpg", "z.jpg"]


def test_a_tail_of_part_of_a_block(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(ONE[:3072] + bytes(100))
    assert len(list(tar.scan(str(path)))) == 2


def test_checksums_of_signed_bytes_are_read(tmp_path):
    """As old writers made them, where `char` has a sign; `tarfile` reads both."""
    data = bytearray(archive([("näme.jpg", tarfile.REGTYPE, 20, "")], tarfile.GNU_FORMAT))
    header = data[:148] + b" " * 8 + data[156:512]
    signed = sum(byte - 256 if byte > 127 else byte for byte in header)
    assert signed != sum(header)
    data[148:156] = b"%06o\0 " % signed
    path = tmp_path / "old.tar"
    path.write_bytes(data)
    assert scanned(path)[0] == by_tarfile(path)[0] == {"näme.jpg": b"\1" * 20}
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged or no tar"):
        scanned(path)


IN_PLACE = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "pointer of Git LFS.*git lfs pull",
    ),
    "page": (b"<!DOCTYPE html>\n<html><body>404</body></html>" + b" " * 1000, "HTML page.*download it anew"),
    "empty": (b"", "is empty: .*fetch it again|is empty: download it anew"),
}


@pytest.mark.parametrize(("content", "said"), IN_PLACE.values(), ids=IN_PLACE)
def test_what_came_in_place_of_a_tar_is_called_so(tmp_path, content, said):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.tar .*({said})"):
        scanned(path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "captions_train2017.json", "metadata.parquet"])
@pytest.mark.parametrize(("content", "said"), list(IN_PLACE.values())[:2], ids=list(IN_PLACE)[:2])
def test_what_came_in_place_of_a_table_is_called_so(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} .*({said})"):
        read_table(str(tmp_path / name))
