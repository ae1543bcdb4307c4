"""`sfrl web`, as it is started and called: over HTTP, and in a browser."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.parse import urlencode

import pytest

from sfrl.commands import EXIT_FAILURE, EXIT_USAGE, web
from sfrl.records import run_folder
from tests.runs import ROOT, TIMEOUT_S
from tests.web.conftest import SECOND

MANY, RECORDS = 100, 10_000
OPENS_IN_S = 2.0


@contextmanager
def served(folder, *flags, signum=signal.SIGINT):
    """The URL that `sfrl web` prints; afterwards it is ended as a user ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sfrl", "web", str(folder), "--port=0", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        [url] = re.findall(r"http://\S+", process.stdout.readline())
        yield url
        process.send_signal(signum)
        assert process.wait(TIMEOUT_S) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(folder):
    with served(folder) as url:
        yield url


def get(url, path="/", **headers):
    """Status, headers and body. The path goes as it is: `..` is not resolved."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=TIMEOUT_S)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def test_a_service_manager_ends_it_in_order(folder):
    with served(folder, signum=signal.SIGTERM) as url:
        assert get(url)[0] == 200


def test_a_long_request_in_pieces_is_read(url):
    """As it comes through a tunnel: its path names each run whose curve is to be shown."""
    host = url.split("/")[2]
    with socket.create_connection(host.split(":"), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"GET /" + b"x" * 20_000)
        time.sleep(0.2)  # until it has read that alone
        connection.sendall(b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 404")


def test_another_loopback_address_is_called_by_what_was_given(folder):
    with served(folder, "--host=127.0.0.2") as url:
        assert url.startswith("http://127.0.0.2:")
        assert get(url)[0] == 200
        assert get(url, Host="LocalHost:1")[0] == 200
        assert get(url, Host="evil.example:80")[0] == 403


def told(url, what, *runs):
    status, _, body = get(url, f"/api/{what}?{urlencode([('run', run) for run in runs])}")
    return status, json.loads(body)


def test_the_list_has_the_runs_of_the_folder_and_below_and_follows_no_link(folder, url):
    status, answer = told(url, "runs")
    assert (status, answer["folder"]) == (200, str(folder))
    assert [run["path"] for run in answer["runs"]] == ["first", SECOND, "sweep/third"]
    last = json.loads((folder / "first/metrics.jsonl").read_text().splitlines()[-1])
    assert answer["runs"][0]["env_frames"] == last["env_frames"] > 0
    assert answer["runs"][0]["state"] == "ended"


def test_a_run_tells_its_records_findings_log_settings_and_starts(folder, url):
    (folder / "sweep/third/log.txt").write_text(
        "2026-01-01 00:00:00,000 training CartPole-v1 in x\n"
        "2026-01-01 00:00:01,000 the run failed: <script>alert(1)</script>\n"
    )
    status, run = told(url, "run", "sweep/third")
    assert (status, run["state"], run["seed"]) == (200, "failed", 2)
    lines = (folder / "first/metrics.jsonl").read_text().splitlines()
    assert run["records"]["env_frames"] == [json.loads(line)["env_frames"] for line in lines]
    assert run["limit"].startswith("limited by ")
    assert run["findings"][0]["name"] == "failed"
    assert run["log"][-1].endswith("the run failed: <script>alert(1)</script>")
    [gamma] = [setting for setting in run["settings"] if setting["name"] == "gamma"]
    assert gamma == {"name": "gamma", "value": "0.5", "default": "0.99", "by": "flag"}
    [start] = run["starts"]
    assert "versions: (python: " in start["machine"]
    assert not set("{}[]'") & set(start["machine"])  # it is for people


def test_runs_that_differ_in_their_seeds_are_a_group(url):
    status, answer = told(url, "curves", "first", "sweep/third", SECOND)
    assert status == 200
    assert [group["runs"] for group in answer["groups"]] == [["first"], ["sweep/third", SECOND]]
    assert answer["groups"][1]["label"] == "CartPole-v1 gamma=0.5"
    assert answer["groups"][1]["score"]["low"] is not None
    assert len(answer["runs"][0]["env_frames"]) == len(answer["runs"][0]["time_s"]) > 0


@pytest.mark.parametrize(
    "run",
    [
        *("", ".", "empty", "nothing", "link", "sweep", "sweep/outside", "first/checkpoints"),
        *("..", "../shown0/first", "/tmp", "first/../first", "a\0b", "n" * 300, "first/" * 9),
    ],
)
def test_what_is_no_run_below_the_folder_is_not_found(run, url):
    for what in ("run", "curves"):
        status, answer = told(url, what, run)
        assert status == 404
        assert "is no run in " in answer["error"]


@pytest.mark.parametrize(
    "path", ["/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd", "/api/none"]
)
def test_no_path_leads_out_of_the_page(path, url):
    assert get(url, path)[0] == 404


def test_every_answer_forbids_what_is_not_the_pages_own(url):
    for path in ("/", "/app.js", "/api/runs", "/api/run?run=none", "/none"):
        _, headers, _ = get(url, path)
        assert headers["Content-Security-Policy"].startswith("default-src 'self';"), path
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_page_of_somebody_elses_name_reads_nothing(url):
    assert get(url, "/api/runs", Host="evil.example:8501")[0] == 403
    assert get(url, "/api/runs", Host="localhost:8501")[0] == 200


def test_with_another_address_only_who_has_the_token_sees_anything(folder):
    with served(folder / "first", "--host=0.0.0.0") as url:
        address, token = url.split("?token=")
        for path in ("/", "/app.js", "/api/runs", "/api/runs?token=wrong", "/?token=%C3%A9"):
            assert get(url, path)[0] == 403, path
        assert get(url, "/", Cookie="sfrl-=; sfrl-1=x")[0] == 403
        status, headers, _ = get(url, f"/?token={token}")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"]
        assert "httponly" in cookie.lower()
        status, _, body = get(address, "/api/runs", Cookie=cookie.split(";")[0])
        [run] = json.loads(body)["runs"]
        assert (status, run["path"], run["name"]) == (200, ".", "first")
        assert get(address, "/api/run?run=.", Cookie=cookie.split(";")[0])[0] == 200


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["nowhere"], EXIT_USAGE, "nowhere is no folder; name one that holds runs"),
        ([".", "--port=70000"], EXIT_USAGE, "port=70000 must lie between 0 and 65535"),
        ([".", "--host=192.0.2.1"], EXIT_FAILURE, "host=192.0.2.1 port=8501 cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(argv, code, text, capsys):
    assert web.main(argv, "sfrl web") == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sfrl web: {text}")


def test_what_must_be_installed_is_told(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert web.main(["."], "sfrl web") == EXIT_USAGE
    told = 'sfrl web: it needs starlette and uvicorn: pip install "sfrl[web]"\n'
    assert capsys.readouterr().err == told


@pytest.fixture(scope="module")
def many(folder, tmp_path_factory):
    """So many runs of so many records; their files are links to one, which saves their writing."""
    many = tmp_path_factory.mktemp("many")
    record = json.loads((folder / "first/metrics.jsonl").read_text().splitlines()[-1])
    with (many / "all.jsonl").open("w") as file:
        for index in range(1, RECORDS + 1):
            file.write(json.dumps(record | {"time_s": index, "env_frames": 100 * index}) + "\n")
    for index in range(MANY):
        run = many / f"run-{index:03}"
        run.mkdir()
        shutil.copy(folder / "first/config.json", run)
        shutil.copy(folder / "first/log.txt", run)
        os.link(many / "all.jsonl", run / "metrics.jsonl")
    return many


@contextmanager
def page_of(browser, width, scheme="light"):
    """A page of this width; afterwards its console must have been silent."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(1000 * TIMEOUT_S)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    assert said == []
    assert page.text_content("#note") == ""
    page.close()


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_a_run_is_drawn_as_text_and_curves(browser, url, width, scheme):
    with page_of(browser, width, scheme) as page:
        page.goto(f"{url}#/run?{urlencode({'run': SECOND})}")
        page.wait_for_selector(".chart canvas")
        assert page.text_content("h1") == "slow <b>second"
        titles = page.locator(".charts h3 > span").all_text_contents()
        assert {"Score, mean of 100 episodes", "Frames/s", "Entropy", "value loss"} <= {*titles}
        assert page.locator(".bar").count() == 3
        assert "gamma0.50.99flag" in page.locator("tr.differs").all_text_contents()
        assert "limited by" in page.text_content("main")
        assert overflow(page) <= 0
        axis = page.locator("#axis")
        axis.select_option("env_frames")
        assert "x=env_frames" in page.url
        plot = page.locator(".plot").first
        whole = plot.get_attribute("aria-label")
        assert "against frames; at last" in whole
        plot.focus()
        for key, part in [("+", " from "), ("ArrowLeft", " from "), ("-", "; "), ("+", " from ")]:
            page.keyboard.press(key)
            page.locator(f".plot[aria-label*='against frames{part}']").first.wait_for()
        page.keyboard.press("0")
        page.locator(f".plot[aria-label='{whole}']").wait_for()


@pytest.mark.parametrize("width", [360, 1200])
def test_runs_are_chosen_sorted_and_opened_by_keyboard(browser, url, width):
    with page_of(browser, width) as page:
        page.goto(url)
        page.wait_for_selector("tbody tr a")
        assert overflow(page) <= 0
        page.focus("#sort-path")
        page.keyboard.press("Enter")
        names = page.locator("tbody a").all_text_contents()
        assert names == ["sweep/third", SECOND, "first"]
        assert page.evaluate("document.activeElement.id") == "sort-path"
        page.focus("[id='choose-sweep/third']")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"
        page.keyboard.press("Space")
        page.focus(f"[id='choose-{SECOND}']")
        page.keyboard.press("Space")
        page.wait_for_selector(".chart canvas")
        page.locator(".u-legend tr").nth(3).wait_for()  # frames, both edges, the mean
        assert page.locator("section > table tbody tr").count() == 1  # two seeds are one group
        assert overflow(page) <= 0
        page.focus("[id='to-first']")
        page.keyboard.press("Enter")
        page.locator("h1", has_text="first").wait_for()


def test_a_live_run_is_looked_at_again(browser, folder, tmp_path):
    run = tmp_path / "live"
    shutil.copytree(folder / "first", run)
    lock = run_folder.lock(run)  # as its trainer has it
    with served(tmp_path) as url, page_of(browser, 1200) as page:
        page.clock.install()  # of the page alone: it need not be waited for
        page.goto(f"{url}#/run?run=live")
        page.locator(".state.live").wait_for()
        page.locator(".plot").first.focus()
        page.keyboard.press("+")
        page.locator(".plot[aria-label*=' from ']").wait_for()
        lines = (run / "metrics.jsonl").read_text().splitlines()
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(json.loads(lines[-1]) | {"env_frames": 987654321}) + "\n")
        page.clock.fast_forward("00:05")
        page.get_by_text("987,654,321").wait_for()
        assert " from " in page.locator(".plot").first.get_attribute("aria-label")  # it stays
        run_folder.unlock(lock)
        page.clock.fast_forward("00:05")
        page.locator(".state.ended").wait_for()


def test_a_hundred_long_runs_open_soon(browser, many):
    with served(many) as url, page_of(browser, 1200) as page:
        started_s = time.monotonic()
        page.goto(url)
        page.locator("tbody a").nth(MANY - 1).wait_for()
        assert time.monotonic() - started_s < OPENS_IN_S
