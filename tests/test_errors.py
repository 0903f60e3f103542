"""What the system refuses and a person can mend is one line; what is a fault keeps its traceback."""

import errno
import os
import re

import pytest

from dalle_jax import storage
from dalle_jax.errors import run_main
from dalle_jax.storage import write_whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room(number, capsys):
    def main():
        raise OSError(number, os.strerror(number), "/data/metrics.jsonl")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: the disk is full while writing /data/metrics.jsonl: free some")


@pytest.mark.parametrize("name", ["file/x", "file/x/y"])
def test_a_file_where_a_folder_should_be(name, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit) as ended:
        run_main(write_whole, tmp_path / name, b"")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}") and "a file stands where a folder should be" in line
    assert (tmp_path / "file").read_text() == "kept"


def test_what_cannot_be_written_goes_by_the_name_that_a_person_gave(tmp_path, capsys):
    """Not by that of the file that is written first, and moved there; of that nothing is left."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (
        ("folder", "is a folder, where a file is wanted"),
        ("x" * 300, "File name too long"),
        ("loop/x", "Too many levels of symbolic links"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_main(write_whole, tmp_path / name, b"")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path / name.split('/')[0]}") and said in line and ".tmp" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "loop"]


@pytest.mark.timeout(60)
def test_a_device_is_not_read_without_end(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_main(storage.read, "/dev/zero")
    assert capsys.readouterr().err.startswith("error: /dev/zero is a device")


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "No such file"), FileExistsError(), OSError()])
def test_other_faults_go_on(fault):
    def main():
        raise fault

    with pytest.raises(type(fault)):
        run_main(main)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/data/out/a.png"),
            "/data/out/a.png .* read-only: name another",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/data/a.tar"), "/data/a.tar .* not allowed .*rights"),
        (PermissionError(errno.EPERM, "Operation not permitted", "/data/a.tar"), "/data/a.tar .* not allowed"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/data/a"), "/data/a is a folder, where a file is wanted"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a/x"), "/a/x .*File name too long.* name another"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/a/x"), "/a/x .*Too many levels.* name another"),
        (OSError(errno.EIO, "Input/output error", "/data/a.tar"), "/data/a.tar .*the disk .*Input/output error"),
    ],
)
def test_what_the_system_refuses_is_one_line(fault, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_main(lambda: (_ for _ in ()).throw(fault))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: {said}.*", line)
