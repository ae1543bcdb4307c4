"""The documentation as a site: it builds without a warning, and needs nothing but itself."""

import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sfrl.settings.algorithms import user_settings
from tests.runs import ROOT, TIMEOUT_S

CONFIG = "zensical.toml"
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """What an HTML file names: anchors of its own, links, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.add(found["href"])
        elif tag in ("script", "img", "iframe", "source", "object") and "src" in found:
            self.loaded.add(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Its pages, built as `make site` builds them, but in another folder."""
    root = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / CONFIG, root)
    shutil.copytree(DOCS, root / "docs")
    (root / "sfrl").symlink_to(ROOT / "sfrl")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert built.returncode == 0, built.stdout + built.stderr
    return {path: Page(path) for path in (root / "build" / "site").rglob("*.html")}


def test_each_page_of_docs_is_in_the_menu_once():
    nav = tomllib.loads((ROOT / CONFIG).read_text())["project"]["nav"]
    listed = re.findall(r"'([^']+\.md)'", str(nav))
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_every_link_and_picture_of_the_site_leads_somewhere(site):
    broken = []
    for path, page in site.items():
        if path.name == "404.html":  # whose links begin at the server's root
            continue
        for target in page.links | page.loaded:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = site[there].anchors if there in site else set()
            if not there.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append((path.name, target))
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = {target for page in site.values() for target in page.loaded}
    assert any(target.endswith(".css") for target in loaded)
    assert {target for target in loaded if urlsplit(target).netloc} == set()


def test_the_reference_has_the_docstrings(site):
    [reference] = [page for path, page in site.items() if path.name == "reference.html"]
    for name in ("sfrl.train", "sfrl.Summary.run_dir", "sfrl.envs.VecEnv.recv"):
        assert name in reference.anchors


def test_the_page_of_settings_has_all_of_them_and_nothing_else(site):
    [page] = [page for path, page in site.items() if path.name == "settings.html"]
    anchors = {anchor for anchor in page.anchors if anchor.startswith("sfrl.settings.")}
    names = {anchor.rpartition(".")[2] for anchor in anchors}
    assert {name for name in names if not name[0].isupper()} == {*user_settings()}
