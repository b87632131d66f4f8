"""The one trainer of every network on phantoms: AdamW, a one-cycle learning rate, clipped gradients.

It takes a network of ours, which gives logits (B, K) and phase_logits (B, P, K), or any that gives logits (B, K) alone.
What is trained on, how long and what for is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from fourphase.runtime.errors import SelfCheckFailed

__all__ = ["Outputs", "Updater", "fit", "logits_of", "made_ahead", "multi_task_loss", "reproducible"]

T = TypeVar("T")
#: What a network gives: logits (B, K), or (logits, phase_logits (B, P, K)).
Outputs = Tensor | tuple[Tensor, Tensor]

_AUXILIARY_WEIGHT = 0.3
_CLIP_NORM = 1.0
_WEIGHT_DECAY = 0.02


class Updater:
    """AdamW with a one-cycle learning rate and clipped gradients, over a fixed number of steps.

    Args:
        rate: the peak of the learning rate.
        steps: how often it will be called, at most.
    """

    def __init__(self, parameters: list[nn.Parameter], rate: float, steps: int) -> None:
        self._parameters = parameters
        self._optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=_WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, rate, total_steps=steps)

    def __call__(self, loss: Tensor) -> float:
        """One step down this loss; returns it as a number."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _CLIP_NORM)
        self._optimizer.step()
        self._schedule.step()
        return float(loss.detach())


def fit(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], rate: float, steps: int) -> Iterator[float]:
    """Trains a network, in training mode, on (studies (B, P, T, C, H, W), classes (B,)); yields the loss of each step.

    Args:
        batches: at most `steps` of them.

    Raises: SelfCheckFailed (23, training_diverged) at the first loss that is not finite.
    """
    update = Updater(list(network.parameters()), rate, steps)
    network.train()
    for step, (studies, truth) in enumerate(batches, start=1):
        loss = update(multi_task_loss(network(studies), truth))
        if not math.isfinite(loss):
            raise SelfCheckFailed(
                f"training diverged: the loss is {loss} at step {step} of {steps} with a learning rate of {rate:g}",
                "take another seed or a lower learning rate",
                key="training_diverged",
            )
        yield loss


def multi_task_loss(outputs: Outputs, truth: Tensor) -> Tensor:
    """Cross-entropy of the logits and, with less weight, of each phase's own where there are some (the paper's)."""
    fused = nn.functional.cross_entropy(logits_of(outputs), truth)
    if isinstance(outputs, Tensor):
        return fused
    _, phase_logits = outputs
    each = nn.functional.cross_entropy(phase_logits.flatten(0, 1), truth.repeat_interleave(phase_logits.shape[1]))
    return fused + _AUXILIARY_WEIGHT * each


def logits_of(outputs: Outputs) -> Tensor:
    """The logits (B, K) among what a network gives."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def made_ahead(make: Callable[[int], T], count: int) -> Iterator[T]:
    """make(0) to make(count - 1); the next one is made on a second core while the caller works on the last."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(make, 0)
        for number in range(count):
            made = coming.result()
            if number + 1 < count:
                coming = worker.submit(make, number + 1)
            yield made


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds torch and asks it for deterministic algorithms on one thread; puts all of that back afterwards.

    One thread, because the second core renders, and because the layers are so small that on a busy machine two threads
    wait for each other ten times longer than they work.
    """
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
