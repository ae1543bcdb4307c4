"""`sfrl demo`: a short run as one HTML file that needs nothing else."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sfrl.commands import EXIT_USAGE, demo
from sfrl.demo.moments import Moment
from sfrl.demo.page import number, page
from tests.runs import ROOT, TIMEOUT_S, TINY

VOID = {"meta", "link", "img", "br"}


class Parsed(HTMLParser):
    """A page's elements, each of which must be closed, and all that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.loaded, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "poster")]

    def handle_startendtag(self, tag, attrs):
        assert tag == "path"  # of the SVG

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command has told, and the page."""
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    # It ends by its frames: however busy the machine, something is learned, and saved before.
    flags = [*TINY, "--tune=off", "--train-frames=15_000", "--checkpoint-seconds=0.3"]
    flags += ["--train-seconds=60", f"--run-dir={run_dir}"]
    ended = subprocess.run(
        [sys.executable, "-m", "sfrl", "demo", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["file"] == f"{run_dir}/demo.html"
    return told, (run_dir / "demo.html").read_text()


def test_the_page_has_three_films_and_loads_nothing_from_elsewhere(made):
    _, text = made
    films = Parsed(text).loaded
    assert len(films) == 3
    for film in films:
        kind, _, data = film.partition(",")
        assert kind == "data:video/mp4;base64"
        content = base64.b64decode(data, validate=True)
        assert content[4:8] == b"ftyp"
        assert len(content) < 1_000_000
    assert not re.search(
        r"https?:|//\w|url\(|@import|<script|<link", re.sub(r"base64,\S+", "", text)
    )


def test_the_page_tells_the_run_and_the_machine(made):
    told, text = made
    texts = " ".join(Parsed(text).texts)
    assert f"{told['env_frames']:,}" in texts
    assert f"{told['episode_return_mean']:.3g}, mean of 100 episodes" in texts
    assert told["limit"] in texts
    assert f"sfrl train --resume --run-dir={told['run_dir']}" in texts
    for name in ("processor", "cores", "GPU", "versions", "commit", "torch 2."):
        assert name in texts
    assert re.search(r"Minute 0\s.*before learning.*Second \d+\s.*Second \d+\s", texts, re.S)


def test_the_curve_begins_and_ends_where_the_run_does(made):
    _, text = made
    [svg] = re.findall(r"<svg.*?</svg>", text, re.S)
    drawing = ElementTree.fromstring(svg)
    [line] = [path.get("d") for path in drawing.iter("path") if path.get("class") == "curve"]
    points = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    assert len(points) > 3
    assert points == sorted(points)
    assert all(84 <= x <= 704 and 0 < y < 240 for x, y in points)
    assert len([path for path in drawing.iter("path") if path.get("class") == "mark"]) == 3


def test_what_a_name_has_of_html_is_shown_as_it_is():
    moment = Moment(0.0, 0, None, b"film", -1.0, False)
    odd = "<b>&\"'$title"
    text = page(
        title=odd,
        lead=odd,
        moments=[moment],
        curve=[],
        figures={odd: odd},
        machine={odd: odd},
        command=odd,
    )
    assert Parsed(text).texts.count(odd) == 8
    assert "Too few episodes have ended for a curve." in text


def test_numbers_have_three_digits_or_are_whole():
    numbers = {0.12345: "0.123", -20.71: "-20.7", 999.4: "999", 999.6: "1,000", 12345.6: "12,346"}
    assert {value: number(value) for value in numbers} == numbers


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--resume"], "it shows a run from its beginning"),
        (["--train-seconds=0"], "a demo needs one"),
        (["--file=/proc"], "file=/proc cannot be written"),
        (["--file=no/where.html"], "where.html cannot be written"),
        (["--minutes=3"], "--minutes is unknown"),
        (["--env=tests.tiny_envs:Catch-v0"], "cannot be filmed"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_starts(
    flags, text, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert demo.main(flags, "sfrl demo") == EXIT_USAGE
    assert text in capsys.readouterr().err
    assert not [*tmp_path.glob("runs/*")]
