import itertools
import multiprocessing
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest
import torch
from torch import nn

from sfrl.ipc.shared_memory import StopFlag, Stopped
from sfrl.parameters.weights import OlderWeights, Weights, WeightsReader


@pytest.fixture
def weights() -> Iterator[Weights]:
    weights = Weights()
    yield weights
    weights.unlink()


def _filled(value: float, size: int = 10) -> nn.Module:
    model = nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size))  # parameters and buffers
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def test_a_reader_gets_what_was_published_with_its_version(weights):
    weights.publish(_filled(3.0), version=17)
    reader, model = WeightsReader(weights), _filled(0.0)
    assert reader.version == -1
    assert reader.refresh(model)
    assert reader.version == 17
    assert all((t == 3).all() for t in model.state_dict().values())


def test_nothing_new_is_not_read_again(weights):
    weights.publish(_filled(3.0), version=0)
    reader, model = WeightsReader(weights), _filled(0.0)
    assert reader.refresh(model)
    assert not reader.refresh(model)
    weights.publish(_filled(4.0), version=8)
    assert reader.refresh(model)
    assert reader.version == 8


def test_a_bfloat16_model_reads_float32_weights(weights):
    weights.publish(_filled(1.5), version=1)
    model = _filled(0.0).to(torch.bfloat16)
    WeightsReader(weights).refresh(model)
    assert model[0].weight.dtype == torch.bfloat16
    assert (model[0].weight == 1.5).all()


def test_older_weights_are_the_newest_of_those_that_are_old_enough(weights):
    reader, model = OlderWeights(WeightsReader(weights), steps=10), _filled(-1.0)
    served = []
    for version in (0, 4, 8, 12, 13, 22, 40):
        weights.publish(_filled(float(version)), version)
        is_new = reader.refresh(model)
        assert all((t == reader.version).all() for t in model.state_dict().values())
        served.append((reader.version, is_new))
    # Until there are some as old as that, the first ones.
    expected = [0, 0, 0, 0, 0, 12, 22]
    assert [version for version, _ in served] == expected
    assert [is_new for _, is_new in served] == [
        True,
        *(a != b for a, b in itertools.pairwise(expected)),
    ]
    assert not reader.refresh(model)


def test_waiting_for_the_first_weights_ends_when_the_run_stops(weights):
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        WeightsReader(weights).wait_for_first(stop)
    weights.publish(_filled(0.0), version=0)
    WeightsReader(weights).wait_for_first(stop)
    stop.unlink()


def _publish_for_ever(weights: Weights, ended: Event) -> None:
    torch.set_num_threads(1)
    model = _filled(0.0, size=700)  # 2 MB: long enough to be caught half written
    version = 0
    while not ended.is_set():
        version += 1
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(version)
        weights.publish(model, version)


def test_no_reader_ever_sees_a_torn_copy(weights):
    """A writer at full speed, a reader at full speed: every copy is of one version throughout."""
    context = multiprocessing.get_context("spawn")
    ended = context.Event()
    writer = context.Process(target=_publish_for_ever, args=(weights, ended))
    writer.start()
    try:
        reader, model = WeightsReader(weights), _filled(0.0, size=700)
        stop = StopFlag()
        reader.wait_for_first(stop)
        stop.unlink()
        versions = []
        while len(versions) < 60:
            if reader.refresh(model):
                values = torch.cat([t.flatten() for t in model.state_dict().values()]).unique()
                assert values.tolist() == [reader.version]
                versions.append(reader.version)
        assert versions == sorted(set(versions))
    finally:
        ended.set()
        writer.join(10)
        writer.kill()
