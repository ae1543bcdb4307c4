"""What the page changes: a live run is stopped or saved from it, and by nobody else's page."""

import dataclasses
import http.client
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlencode

import psutil
import pytest

from sfrl import ConfigError, envs, train
from sfrl.callbacks import RunStart
from sfrl.commands import EXIT_USAGE
from sfrl.commands import train as train_command
from sfrl.records import checkpoint, run_folder
from sfrl.run import trainer
from sfrl.runs.comparison import compare
from sfrl.runs.reader import read
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.defaults import defaults_for, resolve
from sfrl.settle import changes, settle
from sfrl.systems import SYSTEMS
from sfrl.web.beside import Beside
from tests.commands.test_diagnose import SMALL
from tests.runs import ROOT, TIMEOUT_S, has_trained, wait_for
from tests.web.test_web import page_of, served


def request(url, method, path, headers):
    """Status, headers and text of the answer."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=TIMEOUT_S)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.headers, body


def ask(url, run="live", what="stop", method="POST", **headers):
    """Status and text. As the page itself asks, unless headers say otherwise."""
    given = {"Origin": f"http://{url.split('/')[2]}"} | headers
    known = {name: value for name, value in given.items() if value is not None}
    status, _, body = request(
        url, method, f"/api/ask?{urlencode({'run': run, 'what': what})}", known
    )
    return status, body


def asked(folder):
    return sorted(path.name for path in folder.rglob("*.request"))


@contextmanager
def running(folder, **settings):
    """A run in a thread, as in a notebook, without an end of its own; gives its summaries."""
    summaries = []
    settings = {**SMALL, "env": "CartPole-v1", "train_frames": 0, "run_dir": folder, **settings}
    run = threading.Thread(target=lambda: summaries.append(train(**settings)))
    run.start()
    try:
        wait_for(lambda: has_trained(folder))
        yield summaries
    finally:
        if run.is_alive():
            run_folder.request(folder, "stop")
        run.join()


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder with a run that seems live, since its folder is locked as a trainer has it."""
    folder = tmp_path_factory.mktemp("held")
    for name in ("live", "ended"):
        (folder / name).mkdir()
        (folder / name / "log.txt").write_text("2026-01-01 00:00:00,000 training Pong in x\n")
    (folder / "empty").mkdir()
    lock = run_folder.lock(folder / "live")
    yield folder
    run_folder.unlock(lock)


@pytest.fixture(scope="module")
def url(held):
    with served(held) as url:
        yield url


def test_a_live_run_is_saved_and_stopped_from_the_page(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "FOLDER_LOOK_S", 0.05)
    run = tmp_path / "live"
    with served(tmp_path) as url, running(run) as summaries, page_of(browser, 1200) as page:
        page.clock.install()  # of the page alone: it need not be waited for
        page.goto(f"{url}#/run?run=live")
        page.click("#save")
        wait_for(lambda: [*run.glob("checkpoints/latest-*.pt")])
        page.clock.fast_forward("00:05")
        page.get_by_text("Saved latest-").wait_for()
        [name] = [path.name for path in (run / "checkpoints").glob("latest-*")]
        assert f"Saved {name} at " in page.text_content("main")
        page.click("#stop")
        page.click("#surely")
        page.get_by_text("Asked to stop.").wait_for()
        assert page.locator("#stop").is_disabled()
        wait_for(lambda: summaries)
        page.clock.fast_forward("00:05")
        page.locator(".state.ended").wait_for()
        page.get_by_text("It has stopped. Last checkpoint: latest-").wait_for()
        assert page.locator("#stop").is_hidden()
    lines = (run / "log.txt").read_text().splitlines()
    told = [line.partition(",")[2][4:] for line in lines]
    assert told[-4:-1] == [
        "sfrl web has asked for a checkpoint",
        f"checkpoint: {name}",
        "stopping: sfrl web has asked for it",
    ]
    assert told[-1].startswith(run_folder.LAST_CHECKPOINT)
    assert summaries[0].env_frames > 0
    assert asked(tmp_path) == []


def test_stop_is_confirmed_by_keyboard_on_a_phone(browser, held, url):
    with page_of(browser, 360, "dark") as page:
        page.goto(f"{url}#/run?run=ended")
        page.locator(".state.ended").wait_for()
        assert page.locator("#stop").is_hidden()
        page.goto(f"{url}#/run?run=live")
        page.locator("#stop:visible").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.textContent") == "Go on"
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "stop"
        assert asked(held) == []
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_text("Asked to stop.").wait_for()
        assert asked(held) == ["stop.request"]
    run_folder.drop_requests(held / "live")


def test_a_live_run_whose_server_has_gone_does_not_seem_live(browser, held):
    page = browser.new_page()  # its console tells of the lost server, as it must
    page.clock.install()
    with served(held) as url:
        page.goto(f"{url}#/run?run=live")
        page.click("#stop")
        page.click("#surely")
        page.get_by_text("Asked to stop.").wait_for()
    page.clock.fast_forward("00:05")
    page.get_by_text("It was asked to stop, and answers no more.").wait_for()
    assert page.locator(".state").text_content() == "no answer"
    assert page.locator("#stop").is_hidden()
    assert "has ended. Trying again." in page.text_content("#note")
    with served(held) as url:
        page.goto(f"{url}#/run?run=nosuch")
        page.get_by_text("nosuch is no run in ").wait_for()
        assert page.locator("main").is_hidden()  # headings without anything under them
    page.close()
    run_folder.drop_requests(held / "live")


def test_a_request_that_came_too_late_does_not_stop_the_next_run(tmp_path):
    (tmp_path / "stop.request").touch()
    (tmp_path / "checkpoint.request").touch()
    settings = {**SMALL, "env": "CartPole-v1", "run_dir": tmp_path}
    assert train(**settings, train_frames=500).env_frames >= 500
    (tmp_path / "stop.request").touch()
    assert train(run_dir=tmp_path, resume=True, train_frames=1000).env_frames >= 1000
    assert "sfrl web" not in (tmp_path / "log.txt").read_text()
    assert asked(tmp_path) == []
    (tmp_path / "stop.request").touch()
    assert [*run_folder.remove(tmp_path)] == []
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    ("given", "status", "text"),
    [
        ({"run": "ended"}, 404, "ended is not live, so nobody would take the request"),
        ({"run": "empty"}, 404, "empty is no run in "),
        ({"run": "../held0/live"}, 404, "../held0/live is no run in "),
        ({"what": "rm"}, 404, "a run can be asked for checkpoint or stop alone"),
        ({"what": "../x"}, 404, "a run can be asked for checkpoint or stop alone"),
    ],
)
def test_what_cannot_be_asked_is_told(given, status, text, held, url):
    answered, body = ask(url, **given)
    assert (answered, text in json.loads(body)["error"]) == (status, True)
    assert asked(held) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": None},  # no browser's page
        {"Origin": "null"},  # a file, or a frame in a sandbox
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},  # another server of this machine
        {"Origin": "http://evil.example:80", "Host": "evil.example:80"},  # rebound to 127.0.0.1
        {"Origin": None, "Host": ""},
    ],
)
def test_nobody_elses_page_can_ask(headers, held, url):
    status, text = ask(url, **headers)
    assert status == 403
    assert text in {
        "only the page of this very server may ask for that",
        "call it by localhost or 127.0.0.1 or [::1]",
    }
    assert asked(held) == []


def test_only_a_post_asks(held, url):
    assert ask(url, method="GET")[0] == 404
    assert asked(held) == []
    assert ask(url) == (200, "{}")
    assert ask(url) == (200, "{}")  # it has been asked already
    assert asked(held) == ["stop.request"]
    run_folder.drop_requests(held / "live")


def test_with_another_address_only_who_has_the_token_can_ask(held):
    with served(held, "--host=0.0.0.0") as printed:
        url, token = printed.split("?token=")
        port = url.split(":")[2].strip("/")
        for cookie in (None, f"sfrl-{port}=wrong", f"sfrl-{port}="):
            assert ask(url, Cookie=cookie)[0] == 403
        _, headers, _ = request(url, "GET", f"/?token={token}", {})
        cookie = headers["Set-Cookie"].split(";")[0]
        assert "samesite=lax" in headers["Set-Cookie"].lower()
        assert ask(url, Cookie=cookie, Origin="http://evil.example")[0] == 403
        assert asked(held) == []
        assert ask(url, Cookie=cookie) == (200, "{}")
        assert asked(held) == ["stop.request"]
    run_folder.drop_requests(held / "live")


class _Evil(BaseHTTPRequestHandler):
    """A page of somebody else's, in the same browser, that asks and frames."""

    def __init__(self, page, *given):
        self._page = page
        super().__init__(*given)

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self._page.encode())

    def log_message(self, *_):
        pass


def test_a_page_of_somebody_elses_in_the_same_browser_can_neither_ask_nor_frame(browser, held, url):
    target = f"{url}api/ask?run=live&what=stop"
    evil = f"""<iframe src="{url}#/run?run=live"></iframe>
    <form method="post" action="{target}"></form>
    <script>
    const sent = fetch("{target}", {{ method: "POST", mode: "no-cors", credentials: "include" }});
    </script>"""
    server = HTTPServer(("127.0.0.1", 0), partial(_Evil, evil))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.evaluate("sent.then(() => 0)")
        assert page.frames[1].url.startswith("chrome-error:")
        page.evaluate("document.forms[0].submit()")
        page.wait_for_url(target)
        assert page.text_content("body") == "only the page of this very server may ask for that"
    finally:
        page.close()
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked(held) == []


def test_no_script_but_the_pages_own_is_run(browser, url):
    page = browser.new_page()
    page.goto(url)
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.isInjected = true";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="isInjected = 1">');
        }"""
    )
    wait_for(lambda: page.evaluate("document.querySelector('img[src=x]').complete"))
    assert page.evaluate("window.isInjected") is None
    page.close()


# --- beside the training ---


def address_in(text):
    """The URL that a run has told, without what follows the path."""
    [url] = re.findall(r"shown in the browser at (http://\S+)#/run\?run=\.", text)
    return url


def shown_by(process):
    return [p for p in process.children() if " ".join(p.cmdline()).startswith("sfrl web")]


def answers(url):
    try:
        return request(url, "GET", "/", {})[0]
    except ConnectionError:
        return None


def test_a_run_is_shown_beside_its_training_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "FOLDER_LOOK_S", 0.05)
    monkeypatch.setitem(sys.modules, "sfrl.web.server", None)  # not in this process
    run = tmp_path / "live"
    with running(run, web="0") as summaries:
        url = address_in((run / "log.txt").read_text())
        assert url.startswith("http://127.0.0.1:")
        status, _, body = request(url, "GET", "/api/runs", {})
        [told] = json.loads(body)["runs"]
        assert (status, told["path"], told["state"]) == (200, ".", "live")
        [page] = shown_by(psutil.Process())
        assert page.nice() == min(19, os.nice(0) + 10)
        assert ask(url, run=".") == (200, "{}")
        wait_for(lambda: summaries)
    assert not page.is_running()
    assert answers(url) is None
    last = (run / "log.txt").read_text().splitlines()[-1]
    assert last.endswith(f"sfrl web {run} shows it again")
    settings = json.loads((run / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(settings | {"web": "", "seed": 2}))
    assert len(compare([read(run), read(tmp_path / "other")])) == 1


@pytest.fixture
def beside(tmp_path):
    """Begins to show a folder, as a run does."""
    made = []

    def begin(web):
        made.append(Beside(ActorCriticConfig(web=web)))
        made[-1].begin(RunStart(tmp_path, "CartPole-v1", {}, []))
        return made[-1]

    yield begin
    for one in made:
        one.end()


def test_at_another_address_a_token_lets_in_and_the_end_of_the_page_is_told(beside, caplog):
    with caplog.at_level(logging.INFO, "sfrl"):
        page = beside("0.0.0.0:0")
    url, token = address_in(caplog.text).split("?token=")
    assert answers(url) == 403
    assert request(url, "GET", f"/?token={token}", {})[0] == 303
    page.report({})
    assert "any more" not in caplog.text
    [child] = shown_by(psutil.Process())
    child.kill()
    told = "not shown in the browser any more: the process was killed"
    wait_for(lambda: page.report({}) or told in caplog.text)
    page.report({})
    assert caplog.text.count(told) == 1


def test_it_does_not_outlive_its_trainer(tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
from sfrl.callbacks import RunStart
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.web import beside
beside.log.info = lambda *told: print(told[0] % told[1:], flush=True)
page = beside.Beside(ActorCriticConfig(web="0"))
page.begin(RunStart(Path({str(tmp_path)!r}), "x", {{}}, []))
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        url = address_in(process.stdout.readline())
        assert answers(url) == 200
        process.stdin.write("\n")
        process.stdin.close()
    wait_for(lambda: answers(url) is None)


def test_what_cannot_be_shown_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = ["--env=CartPole-v1", f"--web={port}"]
        assert train_command.main(flags, "train.py") == EXIT_USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.py: web={port} cannot be listened on: Address already in use")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'^web=8501 needs .*: pip install "sfrl\[web\]"$'):
        Beside(ActorCriticConfig(web="8501"))


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        (["--web", "--env=Pong"], ("127.0.0.1", 8501)),
        (["--web=0"], ("127.0.0.1", 0)),
        (["--web", "8502"], ("127.0.0.1", 8502)),
        (["--web=0.0.0.0:8503"], ("0.0.0.0", 8503)),
        (["--web=[::1]:8504"], ("::1", 8504)),
    ],
)
def test_web_takes_a_port_or_none_or_an_address(flags, address):
    given = train_command.read_flags(flags)
    assert ActorCriticConfig(web=given["web"]).web_address == address


@pytest.mark.parametrize("web", ["on", "70000", "-1", "0.0.0.0", "localhost:", ":8501", "a b:1"])
def test_what_is_no_port_is_refused(web):
    with pytest.raises(ConfigError, match=f"web={web} must be a port from 0 to 65535"):
        ActorCriticConfig(web=web)


# --- settings, and who has changed them ---


def told_settings(folder, url, run):
    _, _, body = request(url, "GET", f"/api/run?run={run}", {})
    answer = json.loads(body)
    assert all("changed" not in start for start in answer["starts"])
    return {setting["name"]: (setting["default"], setting["by"]) for setting in answer["settings"]}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Pong"])
def test_with_the_environment_and_the_system_alone_nothing_is_changed(env):
    spec, fit = envs.describe(env), []
    for system in SYSTEMS:
        given = {"env": env, "system": system}
        with suppress(ConfigError):  # it is not for such actions
            config = resolve(defaults_for(env, given, spec), spec)
            assert changes(config, config, given, spec) == {}
            fit.append(system)
    assert len(fit) > 3


def test_a_change_names_the_default_of_the_kind_of_environment_and_who_has_made_it(tmp_path):
    given = {"env": "CartPole-v1", "loss": "vtrace", "gamma": 0.5, "run_dir": str(tmp_path / "a")}
    config, spec = settle(given)
    tuned = dataclasses.replace(config, precision="float32", tuned="tuned for 2 cores")
    assert changes(tuned, config, given, spec) == {
        "gamma": {"default": 0.995, "by": "flag"},
        "loss": {"default": "appo", "by": "flag"},
        "epochs": {"default": 4, "by": "other settings"},
        "precision": {"default": "auto", "by": "tuner"},
    }
    checkpoint.save_config(tuned, tmp_path)
    given = {"config": str(tmp_path / "config.json"), "epochs": 3, "run_dir": str(tmp_path / "b")}
    config, spec = settle(given)
    by = {name: change["by"] for name, change in changes(config, config, given, spec).items()}
    assert by == {
        "epochs": "flag",
        **dict.fromkeys(("gamma", "loss", "precision"), "config file"),
    }


def test_the_page_tells_the_changes_of_earlier_starts_too(held, url, tmp_path):
    run = held / "twice"
    train(**SMALL, env="CartPole-v1", run_dir=run, gamma=0.5, train_frames=400)
    first = told_settings(held, url, "twice")
    assert first["gamma"] == ("0.995", "flag")
    assert first["ppo_clip"] == ("0.2", "")  # the class's default is Atari's, 0.1
    train(run_dir=run, resume=True, train_frames=800, learning_rate=1e-5)
    second = told_settings(held, url, "twice")
    assert second["gamma"] == ("0.995", "flag")
    assert second["learning_rate"][1] == "flag"
    assert first["learning_rate"][1] == ""
    path = run / "config.json"
    settings = json.loads(path.read_text())
    for starts in ([], [{"changed": None}], [{"changed": [1]}], [{"changed": {"gamma": 1}}]):
        path.write_text(json.dumps(settings | {"starts": starts}))
        told = told_settings(held, url, "twice")["gamma"]
        assert told == (
            ("0.5", "") if starts and starts[0]["changed"] == {"gamma": 1} else (None,) * 2
        )
