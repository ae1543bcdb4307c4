"""What `sfrl web` draws of a run's processes: who there is, what flows, and how it looks."""

import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from sfrl import train
from sfrl.experience.slot_inbox import SlotInbox
from sfrl.ipc.topology import make_topology
from sfrl.records import run_folder
from sfrl.runs import reader
from sfrl.runs.figures import figures
from sfrl.settings.algorithms import load_config, make_config
from sfrl.systems import SYSTEMS
from sfrl.web import answers
from sfrl.web.layout import make_layout
from sfrl.workers.learner import Learner
from tests.commands.test_diagnose import SMALL
from tests.runs import TIMEOUT_S
from tests.web.test_web import overflow, page_of, served

USUAL = ["policy", "rollout", "buffer", "learner"]
SHARED = [*USUAL, "block"]
MEMORY = ["policy", "rollout", "buffer", "memory", "learner"]
ROWS = {
    **dict.fromkeys(("appo", "impala", "a2c-sync", "n-step-q"), USUAL),
    **dict.fromkeys(("a3c", "hogwild", "async-qn", "async-q1", "async-sarsa1"), SHARED),
    **dict.fromkeys(("dqn", "sac"), MEMORY),
    "seed": ["rollout", "buffer", "learner", "policy"],
}
FRAMES = {
    "impala": [("3 processes, in each", ["policy", "rollout"])],
    "seed": [("one process", ["learner", "policy"])],
    **{name: [("one process", ["memory", "learner"])] for name in ("dqn", "sac")},
    **{name: [("3 processes, in each", USUAL)] for name, row in ROWS.items() if row is SHARED},
}


def config_of(system, **settings):
    return make_config({**SYSTEMS[system].defaults, "system": system, "num_workers": 3, **settings})


def rate_of(layout):
    return {(flow.sender, flow.receiver): flow.per_s for flow in layout.flows}


def titles(layout):
    return {node.name: node.title for node in layout.nodes}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_systems_workers_stand_in_the_processes_that_it_has(system):
    layout = make_layout(config_of(system), {}, {})
    assert [node.name for node in layout.nodes] == ROWS[system]
    assert [(f.title, [*f.nodes]) for f in layout.frames] == FRAMES.get(system, [])


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_serial_all_workers_stand_in_the_trainers_process(system):
    config = config_of(system, serial=True)
    [frame] = make_layout(config, {}, {}).frames
    assert frame.title == "one process, the trainer's"
    assert {"rollout", "policy", "learner", "buffer"} <= {*frame.nodes} <= {*ROWS[system]}


@pytest.mark.parametrize("is_serial", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_numbers_of_workers_are_those_of_the_topology(system, is_serial):
    config = config_of(system, serial=is_serial)
    layout = make_layout(config, {}, {})
    number = Counter()
    for node in layout.nodes:
        [frame, *_] = [f.title for f in layout.frames if node.name in f.nodes] or [""]
        processes = 3 if frame.startswith("3 processes") else 1
        [first, *_] = node.title.split()
        number[node.name] = processes * (int(first) if first.isdigit() else 1)
        if node.name == "buffer":
            slots = processes * int(node.lines[1].text.split()[0])
            assert slots == len(make_topology(config).slots.split)
    workers = {kind: number[kind] for kind in make_topology(config).counts}
    assert workers == make_topology(config).counts


@pytest.mark.parametrize("system", SYSTEMS)
def test_flows_join_all_there_is_and_weights_reach_who_acts(system):
    layout = make_layout(config_of(system), {}, {})
    names = {node.name for node in layout.nodes}
    ends = [{flow.sender for flow in layout.flows}, {flow.receiver for flow in layout.flows}]
    assert ends == [names, names]
    assert {("learner", "policy"), ("policy", "rollout"), ("rollout", "policy")} <= {
        *rate_of(layout)
    }
    assert {*rate_of(layout).values()} == {None}  # nothing is recorded yet
    assert layout.interval_s is None


def test_several_workers_are_one_box_with_their_number():
    config = make_config({"num_workers": 15, "envs_per_worker": 32, "num_policy_workers": 2})
    layout = make_layout(config, {}, {})
    assert titles(layout)["rollout"] == "15 rollout workers"
    assert titles(layout)["policy"] == "2 policy workers"
    assert layout.nodes[1].lines[0].text == "32 environments each"


# --- real runs ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def trained(folder):
    """Trains a system serially, unless it has been; what its learner published and gave back."""
    made = {}

    def of(system):
        if system not in made:
            counts = Counter()
            with pytest.MonkeyPatch.context() as patch:
                count(patch, Learner, "publish", lambda: counts.update(published=1))
                count(patch, SlotInbox, "give_back", lambda s: counts.update(slots=len(s)))
                own = {"learning_starts": 100} if system == "dqn" else {}
                fixed = {*SYSTEMS[system].fixed, *(("minibatches", "epochs") if own else ())}
                if system == "a3c":
                    fixed.add("batch_size")
                small = {name: value for name, value in SMALL.items() if name not in fixed}
                where = {"run_dir": folder / system, "train_frames": 600}
                train(**small, **own, **where, system=system, env="CartPole-v1")
            made[system] = counts
        return reader.read(folder / system), made[system]

    return of


def count(patch, cls, name, note):
    method = getattr(cls, name)

    def counted(self, *args):
        note(*args)
        return method(self, *args)

    patch.setattr(cls, name, counted)


@pytest.mark.parametrize("system", ["appo", "a3c", "dqn"])
def test_rates_are_those_of_the_records(trained, system):
    run, counts = trained(system)
    config = replace(load_config(run.folder / "config.json"), serial=False)
    before, record = run.interval
    layout = make_layout(config, before, record)
    rates, seconds = rate_of(layout), record["time_s"] - before.get("time_s", 0)
    # CartPole has a frame for each decision. Times are rounded to milliseconds in a record.
    decisions = pytest.approx(record["frames_per_s"], rel=0.05)
    updates = (record["learner_steps"] - before.get("learner_steps", 0)) / seconds
    assert layout.interval_s == seconds
    assert rates["policy", "rollout"] == rates["rollout", "policy"] == decisions
    assert rates["rollout", "buffer"] == decisions
    lines = {line.text: line.number for node in layout.nodes for line in node.lines}
    assert lines["{} updates/s"] == updates
    assert lines["{} frames/s"] == decisions
    assert lines.get("policy lag {} updates") == record["policy_lag_mean"]
    busy = {node.name: node.busy for node in layout.nodes if not node.is_store}
    assert busy == {kind: record[f"{kind}/working"] for kind in busy}

    # Of the whole run, against what was counted at the learner.
    rates = rate_of(make_layout(config, {}, run.last))
    number = {ends: rate and rate * run.last["time_s"] for ends, rate in rates.items()}
    steps = pytest.approx(run.last["learner_steps"])
    assert run.last["learner_steps"] > 0
    if system == "dqn":
        assert rates["buffer", "memory"] == rates["rollout", "buffer"]
        assert number["memory", "learner"] == steps
        assert rates["learner", "policy"] is None
        return
    trajectories = counts["slots"] * config.envs_per_split
    assert number["buffer", "learner"] == pytest.approx(trajectories)
    assert number["learner", "buffer"] == pytest.approx(counts["slots"])
    if system == "a3c":
        assert number["learner", "block"] == steps
        assert rates["learner", "policy"] is None  # each process acts with its own
    else:
        first = 1  # before anything is learned
        assert number["learner", "policy"] == pytest.approx(counts["published"] - first)


def test_what_limits_the_run_is_marked(trained):
    run, _ = trained("appo")
    config = load_config(run.folder / "config.json")
    shares = {"rollout/working": 0.4, "policy/working": 0.2, "learner/working": 0.95}
    layout = make_layout(config, {}, run.last | shares)
    assert [node.name for node in layout.nodes if node.limits] == ["learner"]


def records(folder, times):
    lines = [json.dumps({"time_s": t, "env_frames": 10 * t, "learner_steps": t}) for t in times]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return reader.read(folder)


@pytest.mark.parametrize(
    ("times", "interval"),
    [
        ([5, 10, 15], (10, 15)),
        ([5, 10, 15, 15.5], (10, 15)),  # it has stopped
        ([5, 5.5], (None, 5)),
        ([5], (None, 5)),
        ([], (None, None)),
        ([*range(5, 50_000, 5), 49_996], (49_990, 49_995)),  # not all are read
    ],
)
def test_the_interval_is_the_newest_whole_one(tmp_path, times, interval):
    before, record = records(tmp_path / "run", times).interval
    assert (before.get("time_s"), record.get("time_s")) == interval


def test_the_last_checkpoint_does_not_limit_a_run(tmp_path):
    whole = {f"{kind}/working": 0.5 for kind in ("policy", "learner")} | {"rollout/working": 0.9}
    run = records(tmp_path / "run", [5, 10, 10.5])
    shares = [whole, whole, whole | {"rollout/working": 0.1, "learner/working": 1.0}]
    for record, own in zip(run.records, shares, strict=True):
        record.update(own)
    assert figures(run)["limit"] == "limited by the environments"
    assert figures(run)["shares"] == whole


def test_settings_of_another_version_are_not_drawn(trained, folder):
    run, _ = trained("appo")
    other = folder / "other"
    shutil.copytree(run.folder, other)
    assert answers.one_run(folder, "other")["topology"]["nodes"]
    (other / "config.json").write_text(json.dumps({"env": "CartPole-v1", "unheard_of": 1}))
    assert answers.one_run(folder, "other")["topology"] is None


# --- in a browser ---

# Of a drawing: texts that stick out of it, and pairs of texts that touch each other.
FAULTS = """([layout, width]) => import("/topology.js").then(async ({ Topology }) => {
  const digits = { maximumSignificantDigits: 4 };
  const topology = new Topology((n) => n.toLocaleString("en", digits), (n) => `${100 * n}%`);
  topology.node.style.width = `${width}px`;
  document.body.append(topology.node);
  topology.show(layout, "limited by the workers' wait for actions");
  const svg = topology.node.querySelector("svg");
  const all = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent)
    .map((text) => [text.textContent, text.getBoundingClientRect()]);
  const faults = texts.filter(([, t]) =>
    t.left < all.left || t.right > all.right || t.top < all.top || t.bottom > all.bottom);
  texts.forEach(([one, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
    const isApart = a.right <= b.left || b.right <= a.left ||
      a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
    if (!isApart) faults.push([one, other]);
  }));
  topology.node.remove();
  return [texts.length, faults.map(([one, other]) => `${one}: ${JSON.stringify(other)}`)];
})"""
BUSY = {
    **{f"{kind}/working": 0.9 for kind in ("rollout", "policy", "learner")},
    **dict.fromkeys(("env_frames", "env_steps", "learner_steps"), 123_456_789),
    "time_s": 111.0,
    "skipped_steps": 0,
    "policy_lag_mean": 1234.5,
    "policy_lag_max": 99_999,
}


def test_every_systems_drawing_has_room_for_its_words(browser, folder):
    configs = [config_of(system, serial=serial) for system in SYSTEMS for serial in (False, True)]
    layouts = {}  # one for each arrangement
    for config in configs:
        layout = make_layout(config, {}, BUSY)
        layouts[str([layout.frames, [node.name for node in layout.nodes]])] = asdict(layout)
    with served(folder) as url, page_of(browser, 1200) as page:
        page.goto(url)
        for layout in layouts.values():
            for width in (320, 1000):  # the least of a column and of a row
                number, faults = page.evaluate(FAULTS, [layout, width])
                assert number > 20
                assert faults == [], width


def test_the_drawing_is_read_resized_and_goes_on_with_the_run(browser, trained, folder):
    run, _ = trained("appo")
    live = folder / "live"
    shutil.copytree(run.folder, live)
    lock = run_folder.lock(live)  # as its trainer has it
    record = run.last
    step = {"time_s": record["time_s"] + 100, "env_steps": record["env_steps"] + 77_000}
    with served(folder) as url, page_of(browser, 1200, "dark") as page:
        page.clock.install()  # of the page alone: it need not be waited for
        page.goto(f"{url}#/run?{urlencode({'run': 'live'})}")
        drawing = page.locator(".topology svg")
        drawing.wait_for()
        assert drawing.get_attribute("role") == "img"
        limit = answers.one_run(folder, "live")["limit"]
        assert f"This run is {limit}." in drawing.get_attribute("aria-label")
        assert limit in " ".join(drawing.locator(".limit").all_text_contents())
        flows = page.locator(".topology li").all_text_contents()
        assert any(text.startswith("rollout worker to policy worker: observ") for text in flows)
        with (live / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record | step) + "\n")
        page.clock.fast_forward("00:05")
        drawing.get_by_text("770/s").first.wait_for()
        page.set_viewport_size({"width": 360, "height": 800})
        expect(drawing).to_have_attribute("width", re.compile(r"3\d\d"), timeout=1000 * TIMEOUT_S)
        assert drawing.bounding_box()["height"] > 500  # from top to bottom now
        assert overflow(page) <= 0
    run_folder.unlock(lock)
