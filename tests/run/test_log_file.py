"""log.txt does not grow without bound."""

import logging

import pytest

from sfrl.records import run_folder
from sfrl.run import log_file
from sfrl.run.log_file import LogFile

LINE = 100  # bytes of a line, with its end


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "MAX_BYTES", 10 * LINE)
    return tmp_path / "log.txt"


def write(path, numbers, is_ours=lambda: True):
    """Lines with these numbers, by a handler of their own, as each start of a run has it."""
    handler = LogFile(path, is_ours)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for number in numbers:
        handler.note(f"{number:0{LINE - 1}d}")
    handler.end()


def numbers_in(path):
    return [int(line) for line in path.read_text().splitlines()]


def test_a_full_log_becomes_the_older_one_and_lines_go_on(path):
    write(path, range(7))
    write(path, range(7, 25))  # as --resume does
    older = path.with_name("log.txt.1")
    assert numbers_in(older) == list(range(10, 20))
    assert numbers_in(path) == list(range(20, 25))
    run_folder.check(path.parent)
    with pytest.raises(run_folder.RunFolderError, match=r"delete its log\.txt, log\.txt\.1"):
        run_folder.check_new(path.parent)


def test_a_new_run_may_begin_beside_the_older_log_of_one_that_learned_nothing(path):
    write(path, range(15))
    with path.open("a") as file:
        file.write(f"x {run_folder.UNTRAINED}\n")
    run_folder.check_new(path.parent)
    path.unlink()
    with pytest.raises(run_folder.RunFolderError, match="already holds a run"):
        run_folder.check_new(path.parent)


def test_a_log_that_cannot_be_moved_away_goes_on_growing(path):
    (path.parent / "log.txt.1").mkdir()
    write(path, range(15))
    assert numbers_in(path) == list(range(15))
    with pytest.raises(run_folder.RunFolderError, match=r"log\.txt\.1 is a folder, and must be"):
        run_folder.check(path.parent)


def test_a_link_in_the_older_logs_place_is_replaced_and_not_followed(path, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "log.txt.1").symlink_to(tmp_path / "precious")
    write(path, range(12))
    assert (tmp_path / "precious").read_text() == "precious"
    assert numbers_in(tmp_path / "log.txt.1") == list(range(10))


def test_another_runs_log_is_not_moved(path):
    write(path, range(12), is_ours=lambda: False)
    assert numbers_in(path) == list(range(12))
