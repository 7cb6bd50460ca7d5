"""Operations of the stages of a model, counted by PyTorch while they run."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

STAGES = {'encode_image': 'encode_image', 'attend_memory': 'attend_memory', 'decode_masks': 'decode_masks',
          'choose_masks': 'decode_masks', 'encode_memory': 'encode_memory'}  # method of the model -> stage
TRACK = 'attend_memory and decode_masks'
COMPILED_STAGES = {'encode_image': 'encode_image', 'track_objects': TRACK, 'track_candidates': TRACK,
                   'encode_memory': 'encode_memory'}


class _NoModules:
    """Stand-in for the tracker of modules in PyTorch's counter, whose hooks would turn the model's fast paths off."""

    parents = ('Global',)

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep nothing."""


def fused_on_cpu(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Count the fused attention of the CPU, which PyTorch's counter does not know. The arguments are shapes."""
    return sdpa_flop_count(query, key, value)


def added_in_place(_: Any, first: Any, second: Any, *, out_shape: Any = None, **__: Any) -> int:
    """Count a matrix product that is added in place, which PyTorch's counter does not know either."""
    return 2 * first[0] * first[1] * second[1]


def flop_counter() -> FlopCounterMode:
    """Return a counter that counts 2 for each multiply-add in matrix products, convolutions and attention."""
    counter = FlopCounterMode(display=False, custom_mapping={
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused_on_cpu,
        torch.ops.aten.addmm_: added_in_place})
    counter.mod_tracker = _NoModules()
    return counter


@contextmanager
def around_stages(model: nn.Module, around: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Replace the methods of the model that a tracker calls by ``around(stage, method)`` within this context."""
    owner, stages = (model, STAGES) if model.compiled is None else (model.compiled, COMPILED_STAGES)
    try:
        for name, stage in stages.items():
            method = getattr(owner, name)
            setattr(owner, name, functools.wraps(method)(around(stage, method)))
        yield
    finally:
        for name in stages:
            owner.__dict__.pop(name, None)  # restores the method of the class


def count_flop(model: nn.Module, frame: Callable[[], object]) -> dict[str, int]:
    """Return the operations of one frame of sam2_core, not compiled: {stage: FLOP, 'all': FLOP}."""
    counted = dict.fromkeys(STAGES.values(), 0)

    def around(stage: str, method: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            before = counter.get_total_flops()
            result = method(*arguments, **options)
            counted[stage] += counter.get_total_flops() - before
            return result
        return run

    with around_stages(model, around), flop_counter() as counter:
        frame()
    return counted | {TRACK: counted['attend_memory'] + counted['decode_masks'], 'all': counter.get_total_flops()}
