"""The time for an image is that of the network alone, by a clock of the test's own; memory has the system's unit."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anomalib_cxr.pipelines.cross_validation import cost


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes 0.2 s for each image."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.clock.now += 0.2 * len(images)
        return images


def test_time_is_counted_in_the_network_alone_while_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timer = Clock(), cost.ImageTimer()
    monkeypatch.setattr(cost, "time", clock)
    network = Slow(clock)
    assert timer.milliseconds() is None
    network(torch.zeros(7, 1, 2, 2))
    with timer.watch(network):
        for size in (3, 5):
            clock.now += 50  # reading
            network(torch.zeros(size, 1, 2, 2))
    network(torch.zeros(9, 1, 2, 2))
    assert timer.images == 8
    assert timer.seconds == pytest.approx(1.6)
    assert timer.milliseconds() == pytest.approx(200)


def test_a_pass_that_fails_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timer = Clock(), cost.ImageTimer()
    monkeypatch.setattr(cost, "time", clock)
    network = Slow(clock)
    with timer.watch(network):
        with pytest.raises(TypeError):
            network(3)
        clock.now += 50
        network(torch.zeros(2, 1, 2, 2))
    assert timer.milliseconds() == pytest.approx(200)
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


@pytest.mark.parametrize(("system", "reported"), [("linux", 3 * 2**20), ("darwin", 3 * 2**30)])
def test_memory_is_in_gib_whatever_the_system_counts_in(
    monkeypatch: pytest.MonkeyPatch, system: str, reported: int
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(cost.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=reported))
    monkeypatch.setattr(cost.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cost.torch.cuda, "max_memory_allocated", lambda index: 2 ** (29 + index))
    assert cost.peak_gib() == 3 + 0.5 + 1
