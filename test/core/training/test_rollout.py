"""A training step uses the model as the tracker does."""

import pytest
import torch

from sam2_core.memory import MemoryBank, stack_memories
from sam2_core.model import ImageFeatures, ObjectMasks
from sam2_core.nn.mask_decoder import DecodedMasks
from sam2_core.training import rollout
from sam2_core.training.data import SyntheticClips
from sam2_core.training.initialise import new_model
from sam2_core.training.rollout import ForegroundHead, Knobs, Step, correction_plan, shares, step_losses
from sam2_core.training.row_memory import RowMemory
from testing.training_runs import TINY


@pytest.fixture
def model():
    torch.manual_seed(0)
    return new_model(TINY)


def test_shares_lose_no_row():
    for rows in (1, 2, 7, 100):
        runs = [run for _, run in shares(rows, (('a', 0.35), ('b', 0.1), ('c', 0.55)))]
        assert [row for run in runs for row in range(rows)[run]] == list(range(rows))


@pytest.mark.parametrize('frames', [5, 10, 20])
def test_rows_remember_what_a_memory_bank_remembers(model, frames):
    rows = 2
    memory = RowMemory(model, rows, {})
    memory.first_age = torch.zeros(rows)
    bank = MemoryBank(model.config, 4, model.device, model.dtype)
    side = model.grid
    torch.manual_seed(1)
    image = ImageFeatures(torch.randn(rows, 32, side, side), torch.randn(rows, 8, 2 * side, 2 * side),
                          torch.randn(rows, 4, 4 * side, 4 * side))
    with torch.no_grad():
        for t in range(frames):
            masks = ObjectMasks(torch.randn(rows, 16, 16), torch.rand(rows), torch.randn(rows), torch.randn(rows, 32))
            memory.write(t, image, masks)
            prompted = torch.full((rows,), t == 0)
            bank.write(model.encode_memory(image, masks, prompted)[0], masks.pointers[0], t == 0)
        mine, expected = memory.read(frames), stack_memories([bank])
    assert mine.frames.shape[1] == expected.frames.shape[1]
    order, wanted = mine.time_slots[0].argsort(), expected.time_slots[0].argsort()
    assert torch.equal(mine.time_slots[0][order], expected.time_slots[0][wanted])
    assert torch.equal(mine.frames[0][order], expected.frames[0][wanted])
    order, wanted = mine.pointer_ages[0].argsort(), expected.pointer_ages[0].argsort()
    assert torch.equal(mine.pointer_ages[0][order], expected.pointer_ages[0][wanted].float())
    assert torch.equal(mine.pointers[0][order], expected.pointers[0][wanted])


def test_corrected_rows_get_a_conditioning_frame_where_they_are_corrected(model):
    plan = correction_plan(8, 16)
    memory = RowMemory(model, 16, plan)
    corrected = {frame: memory._flags(frame).nonzero().flatten().tolist() for frame in plan}
    assert corrected == {2: [0, 8], 4: [1, 2, 9, 10], 6: [3, 11]}


def test_gradients_reach_every_trained_parameter(model):
    head = ForegroundHead(32)
    model.no_mem_pos_enc.requires_grad_(False)
    model.sam_mask_decoder.stability_threshold = -1.0
    knobs = Knobs.on(torch.device('cpu'))
    knobs.foreground.fill_(0.1)
    knobs.true_presence.fill_(1.0)  # a new model may call objects absent, whose path has no gradient
    loss, figures = step_losses(model, head, SyntheticClips(1, 8, 64, 4, textures=10)[0], Step(8), knobs)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert torch.isfinite(loss)
    assert {'image_box_j', 'video_tracked_j', 'video_corrected_j'} <= figures.keys()


def test_masks_and_tokens_enter_the_memory_without_gradients(model):
    """Otherwise gradients grow with every frame they flow through. The layers of the pointer still learn."""
    logits, tokens = torch.randn(2, 3, 16, 16, requires_grad=True), torch.randn(2, 3, 32, requires_grad=True)
    chosen = rollout._choose(model, DecodedMasks(logits, torch.rand(2, 3), tokens, torch.tensor([1.0, 2.0])))
    assert not chosen.logits.requires_grad
    chosen.pointers.sum().backward()
    assert tokens.grad is None
    assert model.obj_ptr_proj.layers[0].weight.grad.abs().sum() > 0


def test_gradients_in_bfloat16_on_a_cpu_are_near_those_in_float32(model):
    def gradient(half):
        model.zero_grad()
        torch.manual_seed(2)
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss, _ = step_losses(model, None, clips, Step(4), Knobs.on(torch.device('cpu')))
        loss.backward()
        return loss.detach(), {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}

    model.sam_mask_decoder.stability_threshold = -1.0
    clips = SyntheticClips(1, 4, 64, 2, textures=10)[0]
    (exact_loss, exact), (half_loss, half) = gradient(False), gradient(True)
    assert float(half_loss) == pytest.approx(float(exact_loss), rel=0.02)
    assert exact.keys() == half.keys() and all(torch.isfinite(part).all() for part in half.values())
    for part in ('image_encoder', 'memory_attention', 'memory_encoder', 'sam_mask_decoder'):
        a, b = (torch.cat([g for name, g in grads.items() if name.startswith(part)]) for grads in (exact, half))
        assert torch.cosine_similarity(a, b, dim=0) > 0.98, part
        assert float(b.norm()) == pytest.approx(float(a.norm()), rel=0.1), part
        assert not torch.equal(a, b), part
