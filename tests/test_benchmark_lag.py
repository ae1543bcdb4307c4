"""benchmarks.lag: the cells of the atlas, and a tiny one made for real."""

import json

import numpy as np
import pytest

from benchmarks import lag, learning
from sfrl.commands import train as cli


def test_the_lag_atlas_has_a_cell_for_each_lag_reuse_and_correction(tmp_path, capsys):
    picture = tmp_path / "map.png"
    args = lag.Args(
        lags="0,30",
        reuses="2",
        corrections="PPO and V-trace",
        seeds=1,
        frames=3000,
        out=tmp_path,
        picture=str(picture),
    )
    grid = lag.Grid(args)
    assert [flags.partition("=")[2] for flags in grid.variants()] == [
        f"--loss=appo --optimizer=adam --epochs=2 --forced-lag={steps}" for steps in (0, 30)
    ]
    lag.main(args)
    *_, row, last = capsys.readouterr().out.splitlines()
    areas = np.array(json.loads(last)["areas"]["Catch"])
    assert areas.shape == (1, 1, 2, 1)
    assert row.split()[:3] == ["PPO", "and", "V-trace"]
    assert [float(text) for text in row.split()[3:]] == pytest.approx(areas.ravel(), abs=1e-3)
    assert picture.stat().st_size > 1000


def test_cells_of_the_atlas_are_in_their_places():
    grid = lag.Grid(lag.Args(lags="0,7", reuses="1,4", corrections="none,V-trace"))
    jobs = learning.make_jobs(
        learning.Args(variants=tuple(grid.variants()), tasks="Catch", seeds=2)
    )
    assert len({job.variant for job in jobs}) == len(grid.cells) == 8
    commands = [" ".join(job.command) for job in jobs if job.seed == 1]
    for cell, command in zip(grid.cells, commands, strict=True):
        assert f"--epochs={cell[0]} --forced-lag={cell[2]}" in command
        assert ("--correction=none" in command) == (cell[1] == "none")


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_corrections_of_a_game_have_one_network_and_optimizer(optimizer):
    names = ("PPO", "PPO and V-trace", "decoupled", "IMPACT", "filter")
    args = lag.Args(lags="5", reuses="1", corrections=",".join(names), optimizer=optimizer)
    variants = learning.parse_variants(lag.Grid(args).variants())
    settled = [cli.parse(["--env=Pong", "--run-dir=x", *flags]) for flags in variants.values()]
    alike = ("model", "optimizer", "lr_schedule", "learning_rate", "epochs", "value_encoder")
    for name in alike:
        assert len({getattr(config, name) for config in settled}) == 1, name
    assert settled[0].optimizer == optimizer


@pytest.mark.parametrize("numbers", [{"lags": "0,x"}, {"lags": "-1"}, {"reuses": "0"}])
def test_what_are_no_numbers_is_refused_by_name(numbers):
    [(name, text)] = numbers.items()
    with pytest.raises(ValueError, match=f"{name}={text} must be whole numbers from"):
        lag.Grid(lag.Args(**numbers))


def test_an_unknown_correction_is_refused():
    with pytest.raises(ValueError, match="corrections=VACO must be among none, epsilon, "):
        lag.Grid(lag.Args(corrections="none,VACO"))
