import errno
import fcntl
import io
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyte
import pytest
from rich.console import Console

from sfrl.envs.logs import own_logger
from sfrl.records.metrics import RunMetrics
from sfrl.records.timing import COMPONENT_STAGES
from sfrl.show.display import ASCII_MARKS, MARKS, curve, make_display, plain_line


def make_record(*, trained: bool = True):
    now = [0.0]
    metrics = RunMetrics(clock=lambda: now[0])
    totals = {name: np.zeros((2, len(stages))) for name, stages in COMPONENT_STAGES.items()}
    now[0] = 3725.0
    if trained:
        metrics.add_episode(-21.0, 800)
        metrics.add_episode(-18.0, 900)
        metrics.add_learner_stats(
            {
                "learner_steps": 1234,
                "total_loss": 0.12345,
                "entropy": 1.7,
                "policy_lag_mean": 3.4,
                "policy_lag_max": 11,
            }
        )
        totals["rollout"] += [1.0, 0.0, 2.6, 0.4]
        totals["policy"] += [4.0, 0.3, 2.0, 0.2, 0.1]
        totals["learner"] += [0.5, 1.0, 8.0, 0.3, 0.2]
    return metrics.record(env_frames=7_450_000, env_steps=1_862_500, stage_totals=totals)


def make_panel(**end):
    # As wide as a roomy terminal, so that no line is wrapped.
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system=None, width=140)
    return make_display(True, title="Pong", console=console, **end), output


# --- plain lines ---


def test_plain_line_has_the_fields_in_their_order():
    assert plain_line(make_record(), 65.0, ["entropy"]) == (
        "1:02:05 | 7,450,000 frames | 2,000 frames/s (average 2,000) | score -19.5 (2 episodes)"
        " | lag 3.4 (max 11) | loss 0.1235 | entropy 1.700"
        " | working: rollout 75% (env_step 65%) policy 39% (forward 30%) learner 95% (train 80%)"
        " | limited by the learner | 0:01:05 left"
    )


def test_plain_line_shows_a_dash_for_what_is_not_known_yet():
    line = plain_line(make_record(trained=False), None, ["entropy"])
    assert "score - (0 episodes) | lag - (max -) | loss - | entropy -" in line
    assert line.endswith("working: rollout - policy - learner -")


def test_plain_line_tells_of_dropped_rows_and_skipped_steps_only_if_there_are_any():
    record = make_record()
    assert "dropped" not in plain_line(record, None)
    line = plain_line(record | {"dropped_rows": 12000, "skipped_steps": 1}, None)
    assert "12,000 dropped rows" in line
    assert "1 skipped steps" in line


def test_plain_display_prints_one_line_per_record(capsys):
    with make_display(False, train_seconds=3735) as display:
        display.update(make_record())
        display.update(make_record())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "| entropy 1.700 |" in lines[0], "the algorithm's headline"
    assert lines[0].endswith("0:00:10 left")


RUN = """
import json, logging, sys
from sfrl.show.display import make_display
from tests.show.test_display import make_record
with make_display(sys.stdout.isatty(), title="Pong") as display:
    logging.getLogger().addHandler(display.log_handler)
    display.update(make_record())
    logging.warning("a warning")
    display.update(make_record())
print(json.dumps({"env_frames": 1}))
"""


def run_in(terminal: str | None, **env: str) -> list[str]:
    """The lines that `RUN` prints to such a terminal, or to a pipe."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": terminal or ""} | env,
    )
    os.close(theirs)
    with open(ours, errors="replace", newline="") as file:
        lines = list(read_lines(file))
    assert child.wait(timeout=60) == 0
    return lines


@pytest.mark.parametrize("terminal", [None, "xterm", "dumb"])
def test_the_last_line_of_stdout_is_the_callers(terminal):
    lines = run_in(terminal)
    assert json.loads(lines[-1]) == {"env_frames": 1}
    text = "".join(lines)
    assert "a warning" in text
    assert ("sfrl · Pong" in text) == (terminal == "xterm")
    assert ("| score -19.5 (2 episodes) |" in text) == (terminal != "xterm")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "koi8-r"])
def test_a_terminal_of_another_encoding_gets_a_panel_in_ascii(encoding):
    *lines, last = run_in("xterm", PYTHONIOENCODING=encoding)
    assert json.loads(last) == {"env_frames": 1}
    text = "".join(lines)
    assert "sfrl - Pong" in text
    assert "a warning" in text
    assert "####" in text
    assert text.isascii()
    assert "\\u" not in text


def read_lines(file):
    """The lines until the end, which Linux tells a terminal's reader by an I/O error."""
    try:
        yield from file
    except OSError as error:
        if error.errno != errno.EIO:
            raise


# --- the panel ---


def test_panel_shows_speed_score_lag_and_where_the_time_goes():
    display, output = make_panel(train_seconds=7450)
    with display:
        display.update(make_record())
    text = output.getvalue()
    for part in (
        "sfrl · Pong",
        "2,000   2,000 on average",
        "-19.5   -21.0 to -18.0",
        "7,450,000   1:02:05   1:02:05 left",
        "lag 3.4, at most 11",
        "entropy 1.700",
        "limited by the learner",
        "█ env_step 65%  ▓ store 10%  ░ wait_actions 25%  · wait_slot 0%",
        "▓ train 80%",
    ):
        assert part in text


def test_panel_can_show_a_record_in_which_nothing_is_known():
    display, output = make_panel()
    with display:
        display.update(make_record(trained=False))
    assert "env_step -" in output.getvalue()


def test_brackets_in_the_title_are_shown_as_they_are():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system=None, width=140)
    with make_display(True, title="runs/a[/b]", console=console) as display:
        display.update(make_record())
    assert "sfrl · runs/a[/b]" in output.getvalue()


def test_a_bar_is_full_however_its_parts_round():
    shares = {"wait_requests": 0.4, "gather": 0.15, "forward": 0.15, "scatter": 0.15}
    shares["refresh_weights"] = 0.15
    record = make_record() | {f"policy/{stage}": share for stage, share in shares.items()}
    display, output = make_panel()
    with display:
        display.update(record)
    bars = re.findall(r"policy +([█▓▒▞░]+)  ", output.getvalue())
    assert [len(bar) for bar in bars] == [24]
    assert {bars[0].count(mark) for mark in "█▓▒▞"} <= {3, 4}


def test_log_lines_stand_whole_above_the_panel():
    display, output = make_panel()
    logger = logging.getLogger("test_display")
    logger.addHandler(display.log_handler)
    with display:
        display.update(make_record())
        logger.warning("worker [bold]3[/] %s", "is slow")
        lines = output.getvalue().splitlines()
    logger.removeHandler(display.log_handler)
    (at,) = [index for index, line in enumerate(lines) if "worker [bold]3[/] is slow" in line]
    assert "│" not in lines[at]
    assert any("sfrl · Pong" in line for line in lines[at:])  # drawn again below, at once


def test_closing_twice_is_harmless():
    display, _ = make_panel()
    display.close()
    display.close()


# --- its parts ---


@pytest.mark.parametrize(
    ("end", "left"),
    [
        ({}, None),
        ({"train_seconds": 3785.0}, "0:01:00 left"),
        ({"train_frames": 7_690_000}, "0:02:00 left"),
        ({"train_seconds": 3785.0, "train_frames": 7_690_000}, "0:01:00 left"),
        ({"train_seconds": 10.0}, "0:00:00 left"),
    ],
)
def test_time_left_is_until_whichever_end_comes_first(end, left, capsys):
    make_display(False, **end).update(make_record())
    line = capsys.readouterr().out.strip()
    assert line.endswith(left) if left else "left" not in line


@pytest.mark.parametrize("levels", [MARKS.levels, ASCII_MARKS.levels])
def test_a_curve_runs_from_lowest_to_highest_and_ends_with_the_newest(levels):
    low, *_, high = levels
    assert curve([3.0], 4, 2, levels) == ["    ", low * 4]
    assert curve(range(8), 8, 1, levels) == [levels]
    assert curve([0, 1], 4, 2, levels) == ["  " + high * 2, low * 2 + high * 2]
    top, bottom = curve([*range(99), -50], 10, 2, levels)
    assert (len(top), len(bottom)) == (10, 10)
    assert bottom[1:] == high * 8 + low
    assert top[8] == high


def test_what_is_shown_on_a_terminal_that_is_gone_is_lost_without_a_fault():
    """Whoever passes it on, in a thread, must go on: else all who print would wait for it."""
    ours, theirs = pty.openpty()
    file = os.fdopen(theirs, "w", buffering=1)
    try:
        display = make_display(True, console=Console(file=file, force_terminal=True, width=80))
        os.close(ours)
        assert display.show("lost\n")
        with pytest.raises(OSError, match="Input/output"):
            os.write(theirs, b"x")
        display.close()
    finally:
        with suppress(OSError):  # of the last flush
            file.close()


# --- on a terminal, as its user sees it ---


class Terminal:
    """A terminal of some size, emulated by pyte, and a panel that draws on it.

    Args:
        reflows: breaks lines in two that are longer than the window has become, as most do.
    """

    def __init__(self, columns, rows, *, reflows=False, encoding="utf-8"):
        self.ours, theirs = pty.openpty()
        self.reflows = reflows
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self._set_size(columns, rows)
        self.file = os.fdopen(theirs, "w", encoding=encoding)
        self.panel = make_display(True, out=self.file, title="Pong  runs/pong")

    def _set_size(self, columns, rows):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns, rows):
        self.read()
        self._set_size(columns, rows)
        if not self.reflows:
            self.screen.resize(rows, columns)
            return
        lines, at = self.lines(), len(self.screen.history.top) + self.screen.cursor.y
        self.screen.reset()
        self.screen.resize(rows, columns)
        self.stream.feed("\r\n".join([*lines, *[""] * (at - len(lines) + 1)][: at + 1]).encode())

    def read(self):
        os.set_blocking(self.ours, False)
        with suppress(BlockingIOError):
            while data := os.read(self.ours, 1 << 16):
                self.stream.feed(data)

    def lines(self):
        """Of the history and the screen, without trailing spaces and empty lines at the end."""
        self.read()
        width = self.screen.columns
        past = ["".join(line[x].data for x in range(width)) for line in self.screen.history.top]
        return (
            "\n".join(line.rstrip() for line in [*past, *self.screen.display]).rstrip().split("\n")
        )

    def colors(self):
        self.read()
        return {cell.fg for row in self.screen.buffer.values() for cell in row.values()}


@pytest.fixture
def terminal(monkeypatch):
    """Makes one."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLUMNS", raising=False)  # it would count for more than the terminal's size
    made = []

    def make(*args, **kwargs):
        made.append(Terminal(*args, **kwargs))
        return made[-1]

    yield make
    for terminal in made:
        terminal.panel.close()
        terminal.file.close()
        os.close(terminal.ours)


def assert_one_panel(lines, columns):
    """Whole, in the last lines, and no part of another one."""
    edges = [at for at, line in enumerate(lines) if re.match("[╭╰+]", line)]
    top, bottom = edges
    assert bottom == len(lines) - 1
    assert {len(line) for line in lines[top:]} == {columns}
    assert not any(re.match("[│|]", line) for line in lines[:top])


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_panel_is_as_wide_as_the_window_and_breaks_nothing(terminal, columns):
    seen = terminal(columns, 24)
    for score in (1.0, 5.0, 9.0):
        seen.panel.update(make_record() | {"episode_return_mean": score})
    lines = seen.lines()
    assert_one_panel(lines, columns)
    assert len(lines) < 24
    text = "\n".join(lines)
    for whole in ("best -", "2 episodes", "policy loss -", "entropy 1.700", "learning rate -"):
        assert whole in text
    [top] = [line for line in lines if line.startswith("│       9.0 ")]
    [bottom] = [line for line in lines if line.startswith("│       1.0 ")]
    third = (columns - 14) // 3
    assert len(top[12:-1].strip()) in (third, third + 1)
    assert bottom[12:-1].strip().count("█") == pytest.approx(2 * third, abs=2)
    assert len(bottom[12:-1].strip()) == columns - 14


@pytest.mark.parametrize(
    ("reflows", "sizes"),
    [
        (True, [(120, 45), (60, 45), (61, 40), (120, 50)]),
        (True, [(80, 40), (50, 40)]),
        (False, [(120, 24), (60, 24), (80, 24), (79, 24)]),  # pyte cannot do other heights
    ],
)
def test_after_a_resize_there_is_one_panel_on_the_screen_and_in_the_history(
    terminal, reflows, sizes
):
    seen = terminal(*sizes[0], reflows=reflows)
    logger = logging.getLogger("test_display.resize")
    logger.addHandler(seen.panel.log_handler)
    seen.panel.update(make_record())
    for size in sizes[1:]:
        seen.resize(*size)
        seen.panel.refresh()
        assert_one_panel(seen.lines(), size[0])
        logger.warning("a line of %s", size)
        assert_one_panel(seen.lines(), size[0])
    seen.resize(*sizes[0])
    seen.panel.update(make_record())
    logger.removeHandler(seen.panel.log_handler)
    assert_one_panel(seen.lines(), sizes[0][0])
    if reflows:
        assert sum("a line of" in line for line in seen.lines()) == len(sizes) - 1


@pytest.mark.parametrize(
    ("size", "labels"),
    [
        ((120, 40), "frames/s score frames learner loss time rollout policy learner"),
        ((80, 14), "frames/s score frames learner time rollout policy learner"),
        ((80, 13), "frames/s score frames learner time"),
        ((60, 10), "frames/s score frames time"),
        ((60, 5), "frames/s score"),
    ],
)
def test_a_low_window_has_a_whole_panel_of_fewer_rows(terminal, size, labels):
    seen = terminal(*size)
    for _ in range(3):
        seen.panel.update(make_record())
    lines = seen.lines()
    assert_one_panel(lines, size[0])
    assert len(lines) < size[1]
    assert re.findall(r"^│ ([a-z/]+) ", "\n".join(lines), re.M) == labels.split()


def test_a_window_too_low_for_any_panel_has_its_upper_part(terminal):
    seen = terminal(80, 3)
    for _ in range(3):
        seen.panel.update(make_record())
    assert [line[0] for line in seen.lines()] == ["╭", "│"]


@pytest.mark.parametrize(
    ("term", "encoding", "is_ascii"),
    [("xterm-16color", "utf-8", False), ("linux", "utf-8", True), ("xterm", "latin-1", True)],
)
def test_a_poor_terminal_tells_the_parts_of_a_bar_apart(
    terminal, monkeypatch, term, encoding, is_ascii
):
    monkeypatch.setenv("TERM", term)
    seen = terminal(120, 30, encoding=encoding)
    seen.panel.update(make_record())
    text = "\n".join(seen.lines())
    assert text.isascii() == is_ascii
    marks = "#=." if is_ascii else "█▓░"
    assert re.search(
        f"rollout +[{marks}]+ +{'  '.join(f'[{m}] [a-z_]+ [0-9]+%' for m in marks)}", text
    )
    # pyte has a name for each of the 16 colors, a number for the others.
    names = {*pyte.graphics.FG.values(), *pyte.graphics.FG_AIXTERM.values()}
    assert {"green", "brown", "brightblack"} <= seen.colors() <= names


def test_no_color_means_none(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    seen = terminal(80, 30)
    seen.panel.update(make_record())
    seen.panel.show("from an environment\n")
    assert_one_panel(seen.lines(), 80)
    assert seen.colors() == {"default"}


def test_a_files_name_that_is_longer_than_a_line_stays_in_one_piece(terminal):
    seen = terminal(60, 30)
    logger = logging.getLogger("test_display.names")
    logger.addHandler(seen.panel.log_handler)
    name = "/home/me/" + "a-long-name/" * 5 + "latest-000000199923.pt"
    seen.panel.update(make_record())
    logger.warning("the last checkpoint is %s", name)
    logger.removeHandler(seen.panel.log_handler)
    seen.panel.show(f"an environment tells of {name}\n")
    lines = seen.lines()
    assert lines[1] + lines[2] == name
    assert "".join(lines[3:5]) == "an environment tells of " + name
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: the last checkpoint is", lines[0])


def test_a_files_name_is_not_broken_at_its_blanks(terminal):
    seen = terminal(60, 30)
    logger = own_logger("sfrl.test_display")  # as whoever saves a checkpoint
    logger.addHandler(seen.panel.log_handler)
    name = Path("/home/me/all my runs/with Pong/latest-000000199923.pt")
    seen.panel.update(make_record())
    logger.warning("the last checkpoint is %s and %s", name, "a b " * 8)
    logger.removeHandler(seen.panel.log_handler)
    assert seen.lines()[1].startswith(str(name))
