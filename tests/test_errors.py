"""What the system refuses and a person can mend is one line; what is a fault keeps its traceback."""

import errno
import os

import pytest

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


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "No such file"), FileExistsError(), OSError()])
def test_other_faults_go_on(fault):
    def main():
        raise fault

    with pytest.raises(type(fault)):
        run_main(main)
