"""What the run looks like in the terminal: a live panel, or one plain line per interval.

Both show the same record (see `sfrl.records.metrics`) and write to stdout; a closed display leaves
stdout to the caller, so that the run's last line is its own. What environments print the panel
shows above itself, as it does log lines.
"""

import errno
import logging
import os
import select
import sys
import textwrap
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from io import UnsupportedOperation
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from rich import box
from rich.console import Console, ConsoleDimensions
from rich.control import Control
from rich.panel import Panel
from rich.segment import ControlType, Segment, Segments
from rich.table import Table
from rich.text import Text

from sfrl.envs.logs import FILES
from sfrl.records.bottleneck import limit_of
from sfrl.records.metrics import Record
from sfrl.records.timing import COMPONENT_STAGES, Kind, is_waiting
from sfrl.settings.actor_critic import ActorCriticConfig

LABEL_WIDTH = 9  # of the panel's first column
# Lines of the curve. Within these limits the panel, of so many other rows at most, has half of the
# window: one that is made half as wide has room for its broken lines, and can be cleared of them.
CURVE_HEIGHT = (3, 8)
OTHER_ROWS = 14
# What a low window leaves out of the panel, in this order, until the panel fits.
LEAST = ("loss", "shares", "learner", "progress", "curve", "time", "frames")
BAR_WIDTH = (10, 24)  # a fifth of a line's width, within these
SHOW_S = 0.25  # between two looks at what environments print, above the panel
MAX_SHOWN = 4000  # characters of it each time
_NO_BREAK = "\0"  # a blank of a file's name while lines are broken; no line of the log has one


class Marks(NamedTuple):
    """What the panel is drawn with. Parts of a bar differ without colors, too."""

    levels: str  # of a curve, from low to high
    work: str
    wait: str
    dot: str
    box: box.Box


MARKS = Marks("▁▂▃▄▅▆▇█", "█▓▒▞", "░·", "·", box.ROUNDED)
# For terminals of other encodings than UTF-8, and Linux's own, whose font lacks most of the others.
ASCII_MARKS = Marks("_.:-=+*#", "#=+%", ".,", "-", box.ASCII)
WORK_COLORS = ("green", "cyan", "yellow", "magenta")
WAIT_COLORS = ("bright_black", "blue")
LOG_COLORS = {logging.ERROR: "bold red", logging.WARNING: "yellow"}  # from this level on


class Display(ABC):
    """Shows one record per reporting interval. A context manager; closing twice is harmless.

    Attributes:
        log_handler: takes the log's lines, which do not tear what is shown.
    """

    log_handler: logging.Handler

    @abstractmethod
    def update(self, record: Record) -> None:
        """Show the record, of `RunMetrics.record`."""

    def refresh(self) -> None:  # noqa: B027 - lines stay as they are
        """Show the same once more if the window has another size by now."""

    def close(self) -> None:  # noqa: B027 - the plain display holds nothing that needs closing
        """Leave the terminal as it was. What was shown last stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def make_display(
    is_terminal: bool,
    *,
    out: TextIO | None = None,
    err: TextIO | None = None,
    title: str = "",
    train_seconds: float | None = None,
    train_frames: int | None = None,
    shown: Sequence[str] = ActorCriticConfig.SHOWN,
    headline: str = ActorCriticConfig.HEADLINE,
    is_serial: bool = False,
    console: Console | None = None,
) -> Display:
    """The live panel on a terminal that can redraw, plain lines otherwise.

    Args:
        is_terminal: usually `out.isatty()`.
        out: where it is shown; None: stdout.
        err: where log lines go, except for the panel's; None: stderr.
        title: what is being trained, for the panel.
        train_seconds: the `time_s` at which the run ends, if it does.
        train_frames: the `env_frames` at which the run ends, if it does.
        shown: statistics of the run's algorithm that the panel has, at most four.
        headline: the one that a plain line has.
        is_serial: the run is --serial.
        console: where the panel goes; `out` unless given.
    """
    end = _End(train_seconds, train_frames)
    out = out or sys.stdout
    console = console or Console(file=out)
    can_redraw = is_terminal and console.is_terminal and not console.is_dumb_terminal
    if can_redraw:
        return PanelDisplay(title, end, shown, is_serial, console)
    return PlainDisplay(end, [headline], is_serial, out, err or sys.stderr)


class PlainDisplay(Display):
    """One line per record, flushed; log lines go elsewhere, to stderr."""

    def __init__(
        self, end: "_End", statistics: Sequence[str], is_serial: bool, out: TextIO, err: TextIO
    ) -> None:
        self._end = end
        self._is_serial = is_serial
        self._statistics = statistics
        self._out = out
        self.log_handler = _StreamHandler(err)

    def update(self, record: Record) -> None:
        self._out.write(self._line(record) + "\n")  # in one piece
        self._out.flush()

    def _line(self, record: Record) -> str:
        left_s = self._end.seconds_left(record)
        return plain_line(record, left_s, self._statistics, is_serial=self._is_serial)


class _LosesLines(logging.Handler):
    """Where they cannot be written; log.txt has them."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _StreamHandler(_LosesLines, logging.StreamHandler[TextIO]):
    pass


class PanelDisplay(Display):
    """A panel that is drawn anew in its place at each record; log lines scroll above it.

    Whatever else must be printed while the panel is up goes through `show`.
    """

    def __init__(
        self,
        title: str,
        end: "_End",
        statistics: Sequence[str],
        is_serial: bool,
        console: Console,
    ) -> None:
        self._console = console
        self._is_serial = is_serial
        self._statistics = statistics
        self.log_handler = _PanelHandler(self)
        self._title = title
        self._end = end
        self._scores: list[float] = []
        self._record: Record | None = None
        self._paced: Record = {}  # the newest of a whole interval: of its rates and shares
        self._time_s = self._interval_s = 0.0  # of the newest of all
        is_ascii = console.options.ascii_only or os.environ.get("TERM") == "linux"
        self._marks = ASCII_MARKS if is_ascii else MARKS
        self._drawn: list[int] = []  # the widths of the lines that are in the terminal
        self._drawn_size: ConsoleDimensions | None = None
        self._next_show_s = 0.0
        self._is_open = True
        self._lock = threading.RLock()  # logs and environments' lines come in other threads
        console.show_cursor(False)

    def update(self, record: Record) -> None:
        if (score := record["episode_return_mean"]) is not None:
            self._scores.append(score)
        time_s = record["time_s"] or 0.0
        if time_s - self._time_s >= self._interval_s / 2:  # not the last one, in which a run stops
            self._paced = record
        self._interval_s = time_s - self._time_s if self._record else 0.0
        self._record, self._time_s = record, time_s
        if not _takes_output(self._console):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._draw()

    def refresh(self) -> None:
        self._fit()
        if self._drawn_size not in (None, self._console.size) and _takes_output(self._console):
            with suppress(OSError):  # which the next record tells of
                self._draw()

    def log(self, record: logging.LogRecord) -> None:
        """Show a line of the log above the panel, if the terminal takes it."""
        if _takes_output(self._console):
            self._fit()
            time_of_day = time.strftime("%H:%M:%S ", time.localtime(record.created))
            color = next((c for least, c in LOG_COLORS.items() if record.levelno >= least), "")
            level = f"{record.levelname.lower()}: " if color else ""
            text = f"{time_of_day}{level}{record.getMessage()}"
            text = _wrapped(text, self._console.width, getattr(record, FILES, ()))
            line = Text(text)
            line.stylize("bright_black", 0, len(time_of_day))
            line.stylize(color, len(time_of_day), len(time_of_day) + len(level))
            self._draw(line)

    def show(self, text: str) -> bool:
        """Show above the panel what an environment has printed, if need be the end of it.

        False: not now. Each time the panel is drawn again.
        """
        now_s = time.monotonic()
        if now_s < self._next_show_s or not _takes_output(self._console):
            return False
        self._next_show_s = now_s + SHOW_S
        if len(text) > MAX_SHOWN:
            text = "...\n" + text[-MAX_SHOWN:]
        with suppress(OSError):  # a terminal that is gone: the text is lost, and others go on
            self._draw(Text.from_ansi(text))
        return True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            with suppress(OSError):  # a terminal that takes nothing
                self._console.show_cursor(True)
                # Ends with that sequence, which must not stand before the caller's last line where
                # a program reads the terminal.
                self._console.line()

    def _draw(self, *above: Text) -> None:
        """Write `above` in the panel's place, and the panel below it, all in one piece."""
        with self._lock:
            self._fit()
            size = self._console.size
            lines = self._lines()
            with self._console.capture() as captured:
                self._console.control(self._erasure(size.width))
                for text in above:  # long lines are the terminal's to break, which can be copied
                    self._console.print(text, overflow="ignore", crop=False)
                for line in lines:
                    self._console.print(Segments([*line, Segment.line()]), end="")
            self._console.file.write(captured.get())
            self._console.file.flush()
            self._drawn = [Segment.get_line_length(line) for line in lines]
            self._drawn_size = size if lines else None

    def _erasure(self, width: int) -> Control:
        """Of the panel, from the line below it, where the cursor is.

        Most terminals break lines that have become longer than the window. Those that cut them off
        lose some lines above the panel as well, once, when the window is made narrower.
        """
        rows = sum(max(1, -(-drawn // width)) for drawn in self._drawn)
        row_up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *row_up * rows)

    def _fit(self) -> None:
        """To the terminal's size, for which rich asks descriptors 0 to 2: a run replaces two."""
        with suppress(OSError):  # no terminal
            columns, rows = os.get_terminal_size(self._console.file.fileno())
            if columns and "COLUMNS" not in os.environ:
                self._console.size = ConsoleDimensions(columns, rows)

    def _lines(self) -> list[list[Segment]]:
        """The panel's, with as many of its rows as the window has room for."""
        lines: list[list[Segment]] = []
        if self._record is None:
            return lines
        # Text, not markup: the title may hold a path with brackets.
        title = Text(f"sfrl {self._marks.dot} {self._title}" if self._title else "sfrl")
        title.overflow = "crop"  # rich's ellipsis is not ASCII
        for count in range(len(LEAST) + 1):
            table = self._table(self._record, LEAST[:count])
            panel = Panel(table, title=title, box=self._marks.box)
            lines = self._console.render_lines(panel, pad=False)
            if len(lines) < self._console.height:
                break
        return lines[: self._console.height - 1]

    def _table(self, record: Record, left_out: Sequence[str]) -> Table:
        width = max(1, self._console.width - 4 - LABEL_WIDTH - 1)  # borders with a space; a space
        seconds_left, paced = self._end.seconds_left(record), self._paced
        table = Table.grid(padding=(0, 1))
        table.add_column(style="bold", width=LABEL_WIDTH, no_wrap=True, overflow="crop")
        table.add_column(width=width, no_wrap=True, overflow="crop")
        rows: list[tuple[str, list[str]]] = [
            (
                "frames/s",
                [
                    f"[bold green]{_count(paced['frames_per_s'])}[/]",
                    f"{_count(record['frames_per_s_average'])} on average",
                ],
            ),
            (
                "score",
                [
                    f"[bold green]{_number(record['episode_return_mean'])}[/]",
                    f"{_number(record['episode_return_min'])} to"
                    f" {_number(record['episode_return_max'])}",
                    f"best {_number(record['best_episode_return_mean'])}",
                    f"{_count(record['episodes'])} episodes",
                ],
            ),
            (
                "frames",
                [
                    _count(record["env_frames"]),
                    _clock(record["time_s"]),
                    *([] if seconds_left is None else [f"{_clock(seconds_left)} left"]),
                ],
            ),
            (
                "learner",
                [
                    f"{_count(record['learner_steps'])} steps",
                    f"lag {_number(record['policy_lag_mean'])}, at most"
                    f" {_count(record['policy_lag_max'])}",
                    *(f"[bold red]{trouble}[/]" for trouble in _troubles(record)),
                ],
            ),
            (
                "loss",
                [
                    _named(record, name)
                    for name in (*self._statistics, "grad_norm", "learning_rate")
                ],
            ),
        ]
        fraction = self._end.fraction_done(record)
        limit = limit_of(paced, is_serial=self._is_serial)
        for label, items in rows:
            if label not in left_out:
                table.add_row(label, _flow(map(Text.from_markup, items), width))
            if label == "score" and "curve" not in left_out:
                self._add_curve(table, width)
            if label == "frames" and fraction is not None and "progress" not in left_out:
                parts = [(self._marks.work[0], fraction, "green")]
                parts += [(self._marks.wait[0], 1 - fraction, WAIT_COLORS[0])]
                table.add_row("", _bar(parts, width))
        if limit is not None and "time" not in left_out:
            table.add_row("time", Text(limit, "bold"))
        for component in COMPONENT_STAGES if "shares" not in left_out else ():
            table.add_row(component, _time_bar(paced, component, self._marks, width))
        return table

    def _add_curve(self, table: Table, width: int) -> None:
        """The score's, with its highest and lowest value beside it."""
        if not self._scores:
            return
        least, most = CURVE_HEIGHT
        height = min(most, max(least, self._console.height // 2 - OTHER_ROWS))
        lines = curve(self._scores, width, height, self._marks.levels)
        ends = [_number(max(self._scores)), *[""] * (height - 2), _number(min(self._scores))]
        for end, line in zip(ends, lines, strict=True):
            label = Text(end.rjust(LABEL_WIDTH), "not bold bright_black")
            table.add_row(label, Text(line, "green"))


class _PanelHandler(_LosesLines):
    def __init__(self, panel: PanelDisplay) -> None:
        super().__init__()
        self._panel = panel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._panel.log(record)
        except Exception:  # as logging's own handlers do: a faulty line must not end the run
            self.handleError(record)


def _named(record: Record, name: str) -> str:
    digits = 6 if name == "learning_rate" else 3
    value, label = record[name], name.replace("_", " ")
    if name.endswith("_fraction"):
        return f"{label.removesuffix(' fraction')} {_percent(value)}"
    return f"{label} {_number(value, digits)}"


def _takes_output(console: Console) -> bool:
    try:
        return bool(select.select((), (console.file,), (), 0)[1])
    except UnsupportedOperation:  # no descriptor: a text in memory
        return True


def plain_line(
    record: Record,
    seconds_left: float | None,
    statistics: Sequence[str] = (),
    *,
    is_serial: bool = False,
) -> str:
    """The record in one line, the same fields in the same order each time."""
    working = " ".join(
        f"{component} {_percent(record[f'{component}/working'])}{_largest_stage(record, component)}"
        for component in COMPONENT_STAGES
    )
    fields = [
        _clock(record["time_s"]),
        f"{_count(record['env_frames'])} frames",
        f"{_count(record['frames_per_s'])} frames/s"
        f" (average {_count(record['frames_per_s_average'])})",
        f"score {_number(record['episode_return_mean'])} ({_count(record['episodes'])} episodes)",
        f"lag {_number(record['policy_lag_mean'])} (max {_count(record['policy_lag_max'])})",
        f"loss {_number(record['total_loss'], 4)}",
        *(_named(record, name) for name in statistics),
        f"working: {'   '.join([working, *_troubles(record)])}",
    ]
    if (limit := limit_of(record, is_serial=is_serial)) is not None:
        fields.append(limit)
    if seconds_left is not None:
        fields.append(f"{_clock(seconds_left)} left")
    return " | ".join(fields)


def _largest_stage(record: Record, component: Kind) -> str:
    """The stage, of those that are work, that takes most of the component's time."""
    stages = [stage for stage in COMPONENT_STAGES[component] if not is_waiting(stage)]
    shares = {stage: record[f"{component}/{stage}"] or 0.0 for stage in stages}
    stage = max(shares, key=shares.__getitem__)
    return f" ({stage} {_percent(shares[stage])})" if shares[stage] > 0 else ""


def curve(values: Sequence[float], width: int, height: int, levels: str) -> list[str]:
    """The course of the values, at least one, in `height` lines of `width` characters.

    It reaches from their minimum to their maximum. The newest is always shown.

    Args:
        levels: characters of growing height.
    """
    # The last value of each of `width` equal parts; of few values each takes several columns.
    picked = [values[-(-(column + 1) * len(values) // width) - 1] for column in range(width)]
    low, high = min(picked), max(picked)
    scale = (height * len(levels) - 1) / (high - low) if high > low else 0.0
    heights = [1 + round((value - low) * scale) for value in picked]
    below = [len(levels) * line for line in reversed(range(height))]
    shapes = " " + levels
    return ["".join(shapes[min(max(0, h - b), len(levels))] for h in heights) for b in below]


def _wrapped(text: str, width: int, names: Sequence[str] = ()) -> str:
    """In lines of the width; no word is broken, for it may name a file, and none of the names."""
    wrap = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    for name in names:
        text = text.replace(name, name.replace(" ", _NO_BREAK))
    return "\n".join(map(wrap, text.split("\n"))).replace(_NO_BREAK, " ")


def _flow(items: Iterable[Text], width: int) -> Text:
    """The items side by side, and in further lines where they are too many; none is broken."""
    flow, used = Text(), 0
    for item in items:
        if used and used + 3 + item.cell_len > width:
            flow.append("\n")
            used = 0
        flow.append("   " if used else "").append_text(item)
        used += item.cell_len + (3 if used else 0)
    return flow


def _bar(parts: Iterable[tuple[str, float, str]], width: int) -> Text:
    """A bar of parts: mark, share and color of each. The shares add up to 1, or nearly so."""
    bar, total = Text(), 0.0
    for mark, share, color in parts:
        # From the running total to the next one: rounded by itself, each part would be a little
        # off, and the bar too short or too long.
        end = total + share
        bar.append(mark * (round(end * width) - round(total * width)), color)
        total = end
    return bar


class _End:
    """When the run ends, if it does: by the clock, by frames, or by whichever comes first."""

    def __init__(self, train_seconds: float | None, train_frames: int | None) -> None:
        self._train_seconds = train_seconds
        self._train_frames = train_frames

    def seconds_left(self, record: Record) -> float | None:
        left = []
        if self._train_seconds is not None:
            left.append(self._train_seconds - (record["time_s"] or 0.0))
        frames_per_s = record["frames_per_s_average"]
        if self._train_frames is not None and frames_per_s:
            left.append((self._train_frames - (record["env_frames"] or 0)) / frames_per_s)
        return max(0.0, min(left)) if left else None

    def fraction_done(self, record: Record) -> float | None:
        done = []
        if self._train_seconds is not None:
            done.append((record["time_s"] or 0.0) / self._train_seconds)
        if self._train_frames is not None:
            done.append((record["env_frames"] or 0) / self._train_frames)
        return min(1.0, max(done)) if done else None


def _time_bar(record: Record, component: Kind, marks: Marks, width: int) -> Text:
    """A bar of the component's stages, work first, and what each is, as far as there is room."""
    works = iter(zip(marks.work, WORK_COLORS, strict=True))
    waits = iter(zip(marks.wait, WAIT_COLORS, strict=True))
    parts, told = [], {}
    for stage in sorted(COMPONENT_STAGES[component], key=is_waiting):
        share = record[f"{component}/{stage}"]
        mark, color = next(waits if is_waiting(stage) else works)
        parts.append((mark, share or 0.0, color))
        told[stage] = Text(f"{mark} {stage} {_percent(share)}", color)
    least, most = BAR_WIDTH
    bar_width = min(most, max(least, width // 5))
    bar = _bar(parts, bar_width)
    bar.append(" " * (bar_width - bar.cell_len))
    room = width - bar_width
    shares = {stage: share for stage, (_, share, _) in zip(told, parts, strict=True)}
    fitting = set()
    for stage in sorted(told, key=shares.__getitem__, reverse=True):
        room -= 2 + told[stage].cell_len
        if room < 0:
            break
        fitting.add(stage)
    for stage in told:
        if stage in fitting:
            bar.append("  ").append_text(told[stage])
    return bar


def _troubles(record: Record) -> list[str]:
    """What should be zero and is not."""
    names = (
        "dropped_rows",
        "skipped_steps",
        "dropped_reports",
        "worker_restarts",
        "write_failures",
    )
    return [f"{_count(record[name])} {name.replace('_', ' ')}" for name in names if record[name]]


def _count(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _number(value: float | int | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _clock(seconds: float | int | None) -> str:
    minutes, seconds = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
