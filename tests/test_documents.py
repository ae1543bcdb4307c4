"""README and docs: their size, their links, and the example that README shows."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from sfrl import envs
from sfrl.commands.enjoy import Args
from sfrl.settings import synonyms
from sfrl.settings.algorithms import user_settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
# Seven or more hexadecimal digits in a row that are no setting, and no part of a name.
HASH = re.compile(r"(?<![\w=./-])(?=[a-f]*\d)[0-9a-f]{7,40}(?!\w)")


def links(page: Path) -> set[Path]:
    """The files and folders that its links and pictures name."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / t).resolve() for t in targets if "://" not in t}


def test_readme_has_at_most_120_lines():
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_fits_into_100_columns_and_names_no_commits_in_its_text(page):
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []
    assert [line for line in lines if not line.startswith("|") and HASH.search(line)] == []


def test_a_commit_is_told_from_other_numbers():
    assert all(HASH.search(text) for text in ("at 2b9dbbb,", "(6204184)", "(3214da1; 98"))
    assert not any(HASH.search(t) for t in ("=1000000", "2,460,800", "defaced", "nature14236"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    assert [path for path in links(page) if not path.exists()] == []


def test_every_file_of_docs_is_reached_from_the_index():
    reached, new = set(), {DOCS / "README.md"}
    while new:
        reached |= new
        new = {path for page in new if page.suffix == ".md" for path in links(page)} - reached
    files = {path for path in DOCS.rglob("*") if path.is_file()}
    assert {path for path in files if not {path, path.parent} & reached} == set()


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_code():
    code = "".join(path.read_text() for path in sorted((ROOT / "sfrl").rglob("*.py")))
    code += "".join(path.read_text() for path in sorted((ROOT / "envs").rglob("*.py")))
    joined = re.sub(r'"\n\s*f?"', "", code)  # a text over several lines
    quoted = re.findall(r"^- \*\*`([^`]+)`\*\*", (DOCS / "troubleshooting.md").read_text(), re.M)
    assert len(quoted) > 15
    assert [text for text in quoted if text not in joined] == []


def test_moving_says_what_a_wrong_flag_is_answered_with():
    text, of_train, of_enjoy = (DOCS / "moving.md").read_text(), user_settings(), fields(Args)
    functions = text.partition("### Around it")[2]  # their names are no flags
    rows = re.findall(r"^\| (`.*?) \| (.*?) ?\|", text, re.M)
    assert len(rows) > 90
    for theirs, ours in rows:
        flags = {name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)`", ours)}
        plays = "of `enjoy.py`" in ours
        assert flags <= ({field.name for field in of_enjoy} if plays else {*of_train}), theirs
        answers = synonyms.OF_ENJOY if plays else synonyms.OF_TRAIN
        for name in re.findall(r"`(\w+)`", theirs):
            is_ours = name in of_train or name in flags
            if not flags or is_ours or (theirs in functions and name not in answers):
                continue
            answered = {
                flag.replace("-", "_") for flag in re.findall("--([a-z-]+)", answers.get(name, ""))
            }
            assert flags & answered, (name, flags, answers.get(name))


def test_every_extra_of_environments_has_a_page_that_shows_what_is_learned():
    index = (DOCS / "environments" / "README.md").read_text()
    rows = re.findall(r"^\| \[.*?\]\((\S+)\).* \|(?: `(\S+)`)? \| `", index, re.M)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {extra for _, extra in rows if extra} == {*extras["optional-dependencies"]} - {
        "plots",
        "trackio",
        "wandb",
        "prometheus",
        "export",
        "web",
    }
    for page, extra in rows:
        text = (DOCS / "environments" / page).read_text()
        assert not extra or f'"sfrl[{extra}]"' in text, page
        if page != "latency.md":  # a task made for measuring
            assert re.search(r"## What is learned\n.*\]\(\.\./img/", text, re.S), page


def test_the_environment_of_the_readme_is_found_and_steps(tmp_path, monkeypatch):
    [example] = re.findall(
        r"```python\n(# (\w+)\.py;.*?--env=(\S+).*?)```", README.read_text(), re.S
    )
    text, module, name = example
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    env = envs.make_vec_env(name, 1, seed=0)
    assert env.reset()["obs"].shape == (1, 1)
    env.send(np.zeros(1, np.int64))
    assert env.recv().terminated[0]
    env.close()
