"""Tensors derived from weights are cached, and computed again when the weights change."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sam2_core import Prompt, StreamTracker
from sam2_core.nn.derived import Derived
from testing import comparisons, reference


class Doubled(nn.Module):
    """Module with a derived tensor, twice its weight times a number, that counts computations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.derived = Derived()
        self.made = 0

    def _make(self, number):
        self.made += 1
        return self.weight * 2 * number

    def forward(self, number=1):
        return self.derived.get((self.weight,), self._make, number)


def change_in_place(module):
    module.weight.add_(1)


def load_a_checkpoint(module):
    module.load_state_dict({'weight': torch.tensor([5.0, 6.0])})


def take_other_memory(module):
    module.load_state_dict({'weight': torch.tensor([5.0, 6.0])}, assign=True)


def take_a_step(module):
    with torch.inference_mode(False), torch.enable_grad():
        (module.weight ** 2).sum().backward()
        torch.optim.SGD([module.weight], lr=0.1).step()


def write_through_data(module):
    """Averaged weights and merged adapters write to ``parameter.data``, which PyTorch does not count as a change."""
    module.weight.data.copy_(torch.tensor([5.0, 6.0]))


@pytest.fixture
def doubled():
    return Doubled()


@torch.inference_mode()
def test_is_made_once_while_weights_stay(doubled):
    assert all(doubled().tolist() == [2, 4] for _ in range(3))
    assert doubled.made == 1


@torch.inference_mode()
@pytest.mark.parametrize('change', [change_in_place, load_a_checkpoint, take_other_memory, take_a_step,
                                    write_through_data])
def test_follows_every_change_of_the_weights(doubled, change):
    doubled()
    change(doubled)
    assert torch.equal(doubled(), doubled.weight * 2)
    assert doubled.weight.tolist() != [1, 2]


@torch.inference_mode()
def test_new_weights_at_the_address_of_old_ones_are_noticed(doubled):
    for number in range(200):  # the allocator reuses freed memory
        with torch.inference_mode(False):
            doubled.weight = nn.Parameter(torch.full((2,), float(number)))
        assert doubled().tolist() == [2 * number] * 2


@torch.inference_mode()
def test_follows_its_arguments(doubled):
    assert [doubled(number)[0].item() for number in (1, 3, 1)] == [2, 6, 2]


def test_gradients_flow_through_it_where_they_are_wanted(doubled):
    with torch.inference_mode():
        doubled()
    doubled().sum().backward()
    assert doubled.weight.grad.tolist() == [2, 2]


@torch.inference_mode()
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_makes_its_own(doubled, copied):
    doubled()
    other = copied(doubled)
    other.weight.zero_()
    assert other().tolist() == [0, 0]
    assert doubled().tolist() == [2, 4]


def test_tensors_cached_in_inference_mode_work_outside_it(doubled):
    with torch.inference_mode():
        doubled()
        kept = doubled()
    assert kept.requires_grad_().is_leaf  # an ordinary tensor
    assert doubled.made == 1


def test_validation_in_a_training_loop_makes_it_each_time(doubled):
    """A CUDA graph changes weights without counting a version."""
    with torch.no_grad():
        doubled()
        doubled.weight.data.fill_(3)
        assert doubled().tolist() == [6, 6]


@torch.inference_mode()
def test_autocast_keeps_nothing(doubled):
    with torch.autocast('cpu', torch.bfloat16):
        doubled(), doubled()
    assert doubled.made == 2
    doubled()
    assert doubled.made == 3


def test_weights_loaded_under_inference_mode_are_followed_too():
    with torch.inference_mode():
        module = Doubled()
        module()
        module.weight.add_(1)
        assert module().tolist() == [4, 6]


@pytest.fixture(scope='module')
def model():
    return comparisons.make_pair('nano').ours


def masks_of(model, frames):
    tracker = StreamTracker(model)
    results = [tracker.step(frame, [Prompt(1, box=(30, 30, 120, 120))] if i == 0 else [])
               for i, frame in enumerate(frames)]
    return torch.stack([torch.as_tensor(result.objects[1].logits) for result in results])


def test_a_tracker_follows_weights_that_change_under_it(model):
    """All cached tables: positions of the trunk and the decoder, and codes of pointers."""
    frames = list(reference.moving_scene(4))
    changed = copy.deepcopy(model)
    before, generator = masks_of(changed, frames), torch.Generator().manual_seed(0)
    for name in ('image_encoder.trunk.pos_embed', 'obj_ptr_tpos_proj.weight',
                 'sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix'):
        weights = dict(changed.state_dict())
        weights[name] = weights[name] + 0.5 * torch.randn(weights[name].shape, generator=generator)
        changed.load_state_dict(weights)
        after = masks_of(changed, frames)
        assert not torch.equal(after, before), name
        assert torch.equal(after, masks_of(copy.deepcopy(changed), frames)), name
        before = after
