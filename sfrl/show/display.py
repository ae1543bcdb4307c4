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
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from io import UnsupportedOperation
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sfrl.records.metrics import Record
from sfrl.records.timing import COMPONENT_STAGES, Kind, is_waiting
from sfrl.settings.actor_critic import ActorCriticConfig

BAR_WIDTH = 24
SPARK_WIDTH = 32
SPARKS = "▁▂▃▄▅▆▇█"
ASCII_SPARKS = "_.:-=+*#"  # for terminals of other encodings than UTF-8
WORK_COLORS = ("green", "cyan", "yellow", "magenta")
WAIT_COLOR = "grey37"
SHOW_S = 0.25  # between two looks at what environments print, above the panel
MAX_SHOWN = 4000  # characters of it each time


class Display(ABC):
    """Shows one record per reporting interval. A context manager; closing twice is harmless.

    Attributes:
        log_handler: takes the log's lines, which do not tear what is shown.
    """

    log_handler: logging.Handler

    @abstractmethod
    def update(self, record: Record) -> None:
        """Show the record, of `RunMetrics.record`."""

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
        console: where the panel goes; `out` unless given.
    """
    end = _End(train_seconds, train_frames)
    out = out or sys.stdout
    console = console or Console(file=out)
    can_redraw = is_terminal and console.is_terminal and not console.is_dumb_terminal
    if can_redraw:
        return PanelDisplay(title, end, shown, console)
    return PlainDisplay(end, [headline], out, err or sys.stderr)


class PlainDisplay(Display):
    """One line per record, flushed; log lines go elsewhere, to stderr."""

    def __init__(self, end: "_End", statistics: Sequence[str], out: TextIO, err: TextIO) -> None:
        self._end = end
        self._statistics = statistics
        self._out = out
        self.log_handler = _StreamHandler(err)

    def update(self, record: Record) -> None:
        self._out.write(self._line(record) + "\n")  # in one piece
        self._out.flush()

    def _line(self, record: Record) -> str:
        return plain_line(record, self._end.seconds_left(record), self._statistics)


class _LosesLines(logging.Handler):
    """Where they cannot be written; log.txt has them."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _StreamHandler(_LosesLines, logging.StreamHandler[TextIO]):
    pass


class _PanelHandler(_LosesLines, RichHandler):
    def emit(self, record: logging.LogRecord) -> None:
        if _takes_output(self.console):  # or rich would keep it
            super().emit(record)


class PanelDisplay(Display):
    """A panel that is redrawn in place at each record; log lines scroll above it.

    Attributes:
        console: whatever else must be printed while the panel is up goes through it.
    """

    def __init__(
        self, title: str, end: "_End", statistics: Sequence[str], console: Console
    ) -> None:
        self.console = console
        self._statistics = statistics
        self.log_handler = _PanelHandler(console=console, show_path=False)
        self._title = title
        self._end = end
        self._scores: list[float] = []
        self._ascii = console.options.ascii_only
        self._next_show_s = 0.0
        # Redrawn only when there is something new: no thread, no processor time in between.
        self._live = Live(console=console, auto_refresh=False)
        self._fit()
        self._live.start()

    def update(self, record: Record) -> None:
        if not _takes_output(self.console):
            # What it cannot write rich would keep, and more and more of it.
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._fit()
        if (score := record["episode_return_mean"]) is not None:
            self._scores.append(score)
        body = Group(self._numbers(record), Text(), _time_bars(record, "#" if self._ascii else "█"))
        # Text, not markup: the title may hold a path with brackets.
        dot = "-" if self._ascii else "·"
        title = Text(f"sfrl {dot} {self._title}" if self._title else "sfrl")
        self._live.update(Panel(body, title=title, expand=False), refresh=True)

    def show(self, text: str) -> bool:
        """Show above the panel what an environment has printed, if need be the end of it.

        False: not now. Each time the panel is drawn again.
        """
        now_s = time.monotonic()
        if now_s < self._next_show_s or not _takes_output(self.console):
            return False
        self._next_show_s = now_s + SHOW_S
        if len(text) > MAX_SHOWN:
            text = "...\n" + text[-MAX_SHOWN:]
        with suppress(OSError):  # a terminal that is gone: the text is lost, and others go on
            self.console.print(Text.from_ansi(text))
        return True

    def close(self) -> None:
        if self._live.is_started:
            with suppress(OSError):  # a terminal that takes nothing
                self._live.stop()
                # Ends with the sequence that shows the cursor again, which must not stand before
                # the caller's last line where a program reads the terminal.
                self.console.line()

    def _fit(self) -> None:
        """To the terminal's size, for which rich asks descriptors 0 to 2: a run replaces two."""
        with suppress(OSError):  # no terminal
            columns, rows = os.get_terminal_size(self.console.file.fileno())
            if columns and "COLUMNS" not in os.environ:
                self.console.size = ConsoleDimensions(columns, rows)

    def _sparks(self) -> str:
        return sparkline(self._scores, SPARK_WIDTH, ASCII_SPARKS if self._ascii else SPARKS)

    def _numbers(self, record: Record) -> Table:
        seconds_left = self._end.seconds_left(record)
        left = "" if seconds_left is None else f"   {_clock(seconds_left)} left"
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column()
        table.add_row(
            "frames/s",
            f"[bold green]{_count(record['frames_per_s'])}[/]"
            f"   {_count(record['frames_per_s_average'])} on average",
        )
        table.add_row(
            "score",
            f"[bold green]{_number(record['episode_return_mean'])}[/]"
            f"   {_number(record['episode_return_min'])} to"
            f" {_number(record['episode_return_max'])}"
            f"   best {_number(record['best_episode_return_mean'])}"
            f"   {_count(record['episodes'])} episodes",
        )
        table.add_row("", Text(self._sparks(), style="green"))
        table.add_row(
            "frames", f"{_count(record['env_frames'])}   {_clock(record['time_s'])}{left}"
        )
        if (fraction := self._end.fraction_done(record)) is not None:
            table.add_row("", ProgressBar(total=1.0, completed=fraction, width=SPARK_WIDTH))
        table.add_row(
            "learner",
            f"{_count(record['learner_steps'])} steps"
            f"   lag {_number(record['policy_lag_mean'])}, at most"
            f" {_count(record['policy_lag_max'])}{_troubles(record, '[bold red]', '[/]')}",
        )
        table.add_row("loss", "   ".join(_named(record, name) for name in self._statistics[:3]))
        others = (*self._statistics[3:4], "grad_norm", "learning_rate")
        table.add_row("", "   ".join(_named(record, name) for name in others))
        return table


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


def plain_line(record: Record, seconds_left: float | None, statistics: Sequence[str] = ()) -> str:
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
        f"working: {working}{_troubles(record)}",
    ]
    if seconds_left is not None:
        fields.append(f"{_clock(seconds_left)} left")
    return " | ".join(fields)


def _largest_stage(record: Record, component: Kind) -> str:
    """The stage, of those that are work, that takes most of the component's time."""
    stages = [stage for stage in COMPONENT_STAGES[component] if not is_waiting(stage)]
    shares = {stage: record[f"{component}/{stage}"] or 0.0 for stage in stages}
    stage = max(shares, key=shares.__getitem__)
    return f" ({stage} {_percent(shares[stage])})" if shares[stage] > 0 else ""


def sparkline(values: Sequence[float], width: int, sparks: str = SPARKS) -> str:
    """The course of the values in at most `width` characters, from their minimum to maximum."""
    if not values:
        return ""
    columns = min(width, len(values))
    # The last value of each of `columns` equal parts, so that the newest is always shown.
    picked = [values[(column + 1) * len(values) // columns - 1] for column in range(columns)]
    low, high = min(picked), max(picked)
    scale = (len(sparks) - 1) / (high - low) if high > low else 0.0
    return "".join(sparks[round((value - low) * scale)] for value in picked)


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


def _time_bars(record: Record, block: str) -> Table:
    """For each component a bar of its stages, work first and colored, waiting last and grey."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for component, stages in COMPONENT_STAGES.items():
        bar, legend = Text(), Text()
        colors = iter(WORK_COLORS)
        total = 0.0
        for stage in sorted(stages, key=is_waiting):
            share = record[f"{component}/{stage}"]
            color = WAIT_COLOR if is_waiting(stage) else next(colors)
            # From the running total to the next one: rounded by itself, each part would be a
            # little off, and the bar too short or too long.
            end = total + (share or 0.0)
            bar.append(block * (round(end * BAR_WIDTH) - round(total * BAR_WIDTH)), style=color)
            legend.append(f"{stage} {_percent(share)}", style=color).append("  ")
            total = end
        table.add_row(component, bar, legend)
    return table


def _troubles(record: Record, before: str = "", after: str = "") -> str:
    """What should be zero and is not."""
    names = (
        "dropped_rows",
        "skipped_steps",
        "dropped_reports",
        "worker_restarts",
        "write_failures",
    )
    return "".join(
        f"   {before}{_count(record[name])} {name.replace('_', ' ')}{after}"
        for name in names
        if record[name]
    )


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
