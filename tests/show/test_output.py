"""What a run prints, and what others print meanwhile: nobody waits, and no line is torn."""

import fcntl
import io
import json
import os
import pty
import socket
import subprocess
import sys
import termios
import time

import pytest

from sfrl.show.output import own_output
from tests.runs import finish, wait_for

# Its own lines, those of a program and those of Python, 200 of SIZE.
FLOODED = """
import json, os, subprocess, sys
from pathlib import Path
from sfrl.show.output import own_output
with own_output(last_line_follows=True) as output:
    for i in range(200):
        try:
            output.out.write(f"own {i} " + "." * 2000 + "\\n")
        except BlockingIOError:
            Path("lost").touch()
        print("python", i, "." * SIZE)
        subprocess.run(["echo", "program", str(i)], check=True)
    sys.stdout.write("unfinished")
    Path("done").touch()
print(json.dumps({"env_frames": 1}))
"""


def start(script, stdout, cwd, stderr=None, **env):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        # Buffered, as Python is unless told otherwise.
        env=os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": ""} | env,
        text=True,
    )


MUCH, LITTLE = (FLOODED.replace("SIZE", size) for size in ("20_000", "4_000"))
"""More, and less, than waits for a reader."""


def make_pipe():
    return os.pipe()


def make_socket():
    """As some supervisors give it: it cannot be opened again, and `send` blocks."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def make_terminal():
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    return ours, theirs


def make_nonblocking_pipe():
    """The user's own setting, which others share."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    return ours, theirs


def read_all(descriptor):
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:  # so a terminal tells its end
        pass
    os.close(descriptor)
    return b"".join(parts).decode()


@pytest.mark.parametrize("make", [make_pipe, make_socket, make_terminal])
def test_nothing_but_the_last_line_waits_for_a_reader(tmp_path, make):
    ours, theirs = make()
    process = start(MUCH, theirs, tmp_path)
    os.close(theirs)
    wait_for((tmp_path / "done").exists, timeout_s=30)
    assert (tmp_path / "lost").exists(), "nobody reads"
    assert process.poll() is None, "it waits for somebody who reads the last line"
    lines = read_all(ours).splitlines()
    assert process.wait(30) == 0
    assert json.loads(lines[-1]) == {"env_frames": 1}
    notes = [line for line in lines if line.endswith(" bytes found no reader in time]")]
    assert notes, "memory is bounded, and what is lost is told"
    assert_whole([line for line in lines[:-1] if line not in notes])
    assert any(line.startswith("python 199") for line in lines), "the last of it is kept"


@pytest.mark.parametrize("make", [make_pipe, make_terminal, make_nonblocking_pipe])
def test_who_reads_gets_all(tmp_path, make):
    ours, theirs = make()
    process = start(LITTLE, theirs, tmp_path)
    os.close(theirs)
    lines = read_all(ours).splitlines()
    assert process.wait(30) == 0
    assert json.loads(lines[-1]) == {"env_frames": 1}
    assert lines[-2] == "unfinished"
    assert_whole(lines[:-2])
    for kind in ("python", "program"):
        numbers = [int(line.split()[1]) for line in lines if line.startswith(kind)]
        assert numbers == list(range(200))


def assert_whole(lines):
    lengths = {"own": [2000], "python": [4000, 20_000], "program": [0]}
    for line in lines:
        if line != "unfinished":
            kind, number, *dots = line.split()
            assert len("".join(dots)) in lengths[kind], line[:100]
            assert int(number) < 200


def test_others_are_not_disturbed(tmp_path):
    """The descriptor stays as it was, also while the program runs."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    process = start(MUCH, theirs, tmp_path)
    wait_for((tmp_path / "done").exists, timeout_s=30)
    assert os.get_blocking(theirs)
    os.close(theirs)
    read_all(ours)
    assert process.wait(30) == 0


ERRORS = """
import os, sys, time
from sfrl.show.output import own_output
with own_output() as output:
    for i in range(3):
        try:
            output.out.write("a line\\n")
        except OSError as error:
            print(type(error).__name__, error.strerror, file=sys.stderr)
        time.sleep(0.2)
    print("of others")
"""


def test_a_reader_that_has_gone_is_told(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    process = start(ERRORS, theirs, tmp_path, stderr=subprocess.PIPE)
    os.close(theirs)
    ended = finish(process)
    assert ended.code == 0
    assert ended.stderr == "BrokenPipeError Broken pipe\n" * 2


STUCK = """
import sys, time
from sfrl.show.output import own_output
with own_output() as output:
    output.out.write("x" * 100_000)
raise ValueError("told on stderr")
"""


def test_a_failure_waits_for_no_reader(tmp_path):
    ours, theirs = os.pipe()
    started_s = time.monotonic()
    process = start(STUCK, theirs, tmp_path, stderr=subprocess.PIPE)
    os.close(theirs)
    ended = finish(process, timeout_s=30)
    assert ended.code == 1
    assert "ValueError: told on stderr" in ended.stderr
    assert time.monotonic() - started_s < 20
    os.close(ours)


ASCII = """
import os
from sfrl.show.output import own_output
with own_output() as output:
    output.out.write("größe █ " + os.fsdecode(b"\\xff") + "\\n")
    print("größe")
"""


def test_what_an_encoding_lacks_is_escaped(tmp_path):
    process = start(ASCII, subprocess.PIPE, tmp_path, PYTHONIOENCODING="ascii:backslashreplace")
    process.stdout.reconfigure(encoding="latin-1")
    text, _ = process.communicate(timeout=30)
    assert text == "gr\\xf6\\xdfe \\u2588 \xff\ngr\\xf6\\xdfe\n"


def test_a_notebook_shows_what_is_printed_though_it_names_its_kernels_terminal(
    tmp_path, monkeypatch
):
    class Cell(io.StringIO):
        def fileno(self):
            return terminal.fileno()

    with (tmp_path / "terminal").open("w+") as terminal:
        cell = Cell()
        monkeypatch.setattr(sys, "stdout", cell)
        monkeypatch.setattr(sys, "stderr", cell)
        with own_output(last_line_follows=True) as output:
            output.out.write("own\n")
            subprocess.run(["echo", "program"], check=True)
        assert sorted(cell.getvalue().split()) == ["own", "program"]
        assert (tmp_path / "terminal").read_text() == ""


def test_an_object_that_only_writes_may_be_stdout(monkeypatch):
    """As programs make them that write to a file as well."""

    class Tee:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    tee = Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    with own_output() as output:
        output.out.write("own \u2588\n")
        print("python")
    assert sorted(tee.text.split("\n")) == ["", "own \u2588", "python"]
