"""`sfrl video`: `sfrl enjoy --video` by a shorter name."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

from sfrl.commands import answers, enjoy
from sfrl.commands.answers import answer, only_name
from sfrl.records.run_folder import VIDEO
from sfrl.runs import reader


@dataclass(frozen=True, kw_only=True)
class Args(answers.Args):
    """The film."""

    file: str = ""
    """FILE.mp4 or FILE.gif. Empty: video.mp4 in the run's folder."""
    checkpoint: str = "latest"
    """latest, best, or the path of a checkpoint."""
    episodes: int = 1
    """Whole games to play. sfrl enjoy has more flags."""


def main(argv: Sequence[str], prog: str) -> int:
    text = (
        "Film a run's agent: a folder, or its name in runs/; the newest there if none is named. "
        "The last line is a JSON object."
    )
    return answer(argv, prog, Args(), text, lambda args: _video(args, prog))


def _video(args: Args, prog: str) -> int:
    folder = reader.find(only_name(args.runs))
    flags = [
        f"--run-dir={folder}",
        f"--video={args.file or folder / VIDEO}",
        f"--checkpoint={args.checkpoint}",
        f"--episodes={args.episodes}",
    ]
    if not args.json:
        return enjoy.main(flags, prog)
    lines = io.StringIO()
    with redirect_stdout(lines):
        code = enjoy.main(flags, prog)
    sys.stdout.writelines(lines.getvalue().splitlines(keepends=True)[-1:])
    return code
