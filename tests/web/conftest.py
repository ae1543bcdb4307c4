"""A browser, for all tests of the page."""

import json
import shutil

import pytest
from playwright.sync_api import sync_playwright

from sfrl import train
from tests.commands.test_diagnose import SMALL

CHROMIUM = shutil.which("chromium")
SECOND = "sweep/slow <b>second"


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """With a run, two seeds of another kind deeper in it, a link, and what is no run."""
    folder = tmp_path_factory.mktemp("shown")
    train(**SMALL, env="CartPole-v1", train_frames=1200, run_dir=folder / "first")
    config = json.loads((folder / "first/config.json").read_text())
    config["starts"][-1]["changed"]["gamma"] = {"default": 0.99, "by": "flag"}
    for seed, name in enumerate((SECOND, "sweep/third"), start=1):
        shutil.copytree(folder / "first", folder / name)
        own = config | {"gamma": 0.5, "seed": seed}
        (folder / name / "config.json").write_text(json.dumps(own))
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(folder / "first")
    outside = tmp_path_factory.mktemp("outside") / "run"
    shutil.copytree(folder / "first", outside)
    (folder / "sweep/outside").symlink_to(outside)
    return folder


@pytest.fixture(scope="package")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
