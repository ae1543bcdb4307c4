"""What figures were measured on: told wherever the package lies, git or no git."""

import subprocess
from importlib.metadata import PackageNotFoundError

from sfrl.settings import machine as module
from sfrl.settings.machine import machine
from tests.runs import ROOT


def test_the_commit_and_the_versions_are_told():
    told = machine()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    if (ROOT / ".git").exists():
        commit = str(told["commit"]).removesuffix("-dirty")
        assert head.stdout.startswith(commit)
        assert len(commit) >= 7
    else:
        assert told["commit"] is None
    assert "unknown" not in told["versions"].values()


def test_without_git_and_package_metadata_they_are_unknown(monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(module.importlib.metadata, "version", version)
    module._commit.cache_clear()
    told = machine()
    module._commit.cache_clear()
    assert told["commit"] is None
    assert told["versions"]["sfrl"] == "unknown"
