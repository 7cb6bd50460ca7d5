"""Compiled stages: static shapes, the same results, and no recompilation when objects come and go."""
import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from sam2_core import VARIANTS, Prompt, Sam2Model, StreamTracker, encode_images, load_model
from sam2_core.compiled import CompiledStages, batch_size
from sam2_core.memory import MemoryBank, stack_memories
from sam2_core.tensors import Memory, ObjectMasks
from sam2_core.tracking import encode_memories
from testing.plain_tracker import tiny_edgetam


@pytest.fixture(autouse=True, scope='module')
def traces():
    """Reset Dynamo: its traces contain tensors without storage, which break other tests."""
    yield
    torch._dynamo.reset()


def remembering(model, conditioning):
    """Return a bank with one frame of noise per flag."""
    bank = MemoryBank(model.config, 4, model.device, model.dtype)
    generator = torch.Generator().manual_seed(len(conditioning))
    for flag in conditioning:
        bank.write(torch.randn(model.config.memory_tokens, model.config.memory_dim, generator=generator),
                   torch.randn(model.config.d_model, generator=generator), flag)
    return bank


@torch.no_grad()
def test_padded_memory_gives_the_same_result_as_alone(nano):
    """Objects of different age share a batch of the maximum length, and filler rows have no effect."""
    banks = [remembering(nano, flags) for flags in ([True], [True, False, False], [True] * 3 + [False] * 20)]
    features = nano.encode_image(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    together = stack_memories(banks, length=(10, 19))
    assert together.frames.shape[:2] == (3, 10) and together.pointers.shape[:2] == (3, 19)
    filler = ~together.frames_exist
    assert filler.sum() == 9 + 7 + 1
    together.frames[filler] = 1000.0
    together.pointers[~together.pointers_exist] = -1000.0
    for row, bank in enumerate(banks):
        alone = nano.attend_memory(features, stack_memories([bank]))[0]
        torch.testing.assert_close(nano.attend_memory(features, together)[row], alone, atol=1e-4, rtol=0)


def test_objects_with_room_for_one_conditioning_frame_run_in_static_shapes(nano, scene):
    """With one conditioning frame, the maximum length is the complete one, to which young objects are padded."""
    static = copy.deepcopy(nano)
    shapes = []

    def track_objects(image, memory):
        shapes.append((len(memory.frames), *memory.frames.shape[1:2], *memory.pointers.shape[1:2]))
        return static.track_objects(image, memory)
    static.compiled = SimpleNamespace(encode_image=static.encode_image, track_objects=track_objects,
                                      encode_memory=static.encode_memory)
    trackers = [StreamTracker(model, max_conditioning_frames=1) for model in (nano, static)]
    for frame in range(20):
        prompts = {0: [Prompt(1, box=scene.box(1, 0))], 17: [Prompt(2, box=scene.box(2, 17))]}.get(frame, [])
        expected, result = (tracker.step(scene.image(frame), prompts) for tracker in trackers)
        for object_id, item in result.objects.items():
            torch.testing.assert_close(item.logits, expected.objects[object_id].logits, atol=0.05, rtol=0.01)
    assert set(shapes) == {(1, 7, 16)} and len(shapes) == 19 + 2  # from frame 18 on, one batch per object


def test_batches_have_few_sizes():
    assert [batch_size(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33)] == [1, 2, 4, 4, 8, 8, 16, 16, 32, 32, 48]


def test_unknown_backend_is_refused_with_a_list_of_known_ones():
    with pytest.raises(ValueError, match="compile 'inductr'.*inductor"):
        load_model('nano', compile='inductr')


def few_layers():
    """Return a model with random weights that Dynamo traces in little time."""
    torch.manual_seed(0)
    trunk = replace(VARIANTS['nano'].trunk, stages=(1, 1, 1, 1), global_attention_blocks=(2,))
    return Sam2Model(replace(VARIANTS['nano'], trunk=trunk, image_size=64, memory_attention_layers=1,
                             decoder_layers=1)).eval().requires_grad_(False)


@pytest.mark.slow
def test_objects_come_go_and_are_corrected_without_compiling_again():
    """Dynamo traces and guards as for a GPU, and PyTorch runs the result; few layers save time in tracing."""
    plain = few_layers()
    compiled = copy.deepcopy(plain)
    compiled.compiled = CompiledStages(compiled, 'eager')
    told = []
    compiled.compiled.warm_up(3, show=told.append)
    assert told == ['image encoder', 'batches of 1', 'batches of 2', 'batches of 4']
    compiled.compiled.warm_up(1, recent_frames=(3,))
    made = counters['stats']['unique_graphs']
    assert made
    trackers = [StreamTracker(plain), StreamTracker(compiled)]
    generator = np.random.default_rng(0)
    for frame in range(24):
        image = np.kron(generator.integers(0, 255, (6, 8, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        prompts = {0: [Prompt(1, box=(5, 5, 40, 40))], 2: [Prompt(2, box=(30, 10, 70, 50))],
                   4: [Prompt(1, points=[(20, 20)], labels=[1])], 19: [Prompt(3, points=[(60, 30)], labels=[1])],
                   20: [Prompt(2, points=[(40, 20)], labels=[0])]}.get(frame, [])
        expected, result = (tracker.step(image, prompts) for tracker in trackers)
        assert list(result.objects) == list(expected.objects)
        for object_id, item in result.objects.items():
            torch.testing.assert_close(item.logits, expected.objects[object_id].logits, atol=0.05, rtol=0.01)
        for tracker in trackers:
            if frame == 21:
                tracker.remove(1)
            if frame == 22:
                tracker.remove(3)
                tracker.recent_frames = 3
    assert counters['stats']['unique_graphs'] == made


@pytest.mark.slow
def test_a_memory_policy_that_asks_for_candidates_does_not_compile_again_either():
    plain = few_layers()
    compiled = copy.deepcopy(plain)
    compiled.compiled = CompiledStages(compiled, 'eager')
    compiled.compiled.warm_up(1, memory_policy='distractor_aware')
    made = counters['stats']['unique_graphs']
    trackers = [StreamTracker(model, memory_policy='distractor_aware') for model in (plain, compiled)]
    generator = np.random.default_rng(0)
    for frame in range(40):
        image = np.kron(generator.integers(0, 255, (6, 8, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        prompts = {0: [Prompt(1, box=(5, 5, 40, 40))], 7: [Prompt(1, points=[(20, 20)], labels=[1])]}.get(frame, [])
        expected, result = (tracker.step(image, prompts) for tracker in trackers)
        torch.testing.assert_close(result.objects[1].logits, expected.objects[1].logits, atol=0.05, rtol=0.01)
    assert trackers[1]._banks[1].length()[1] > 2, 'tracked frames were written'
    assert counters['stats']['unique_graphs'] == made


@pytest.mark.slow
@torch.inference_mode()
def test_edgetam_is_traced_as_a_whole_and_once_for_all_numbers_of_objects():
    """Its merged trunk, its memory encoder with the perceiver, and its memory attention; the decoder is as above."""
    model = tiny_edgetam(Sam2Model)
    size, dim = model.image_size, model.config.d_model
    parts = {name: torch.compile(getattr(model, name), fullgraph=True, dynamic=name != 'encode_image', backend='eager')
             for name in ('encode_image', 'encode_memory', 'attend_memory')}
    generator = torch.Generator().manual_seed(0)
    before = counters['stats']['unique_graphs']
    picture = torch.randn(1, 3, size, size, generator=generator)
    image = model.encode_image(picture)
    torch.testing.assert_close(parts['encode_image'](picture), image)
    for objects in (13, 2, 3):  # the first equals no other size, which would be taken for the same
        logits = torch.randn(objects, size // 4, size // 4, generator=generator)
        pointers = torch.randn(objects, dim, generator=generator)
        inputs = image, ObjectMasks(logits, logits[:, 0, 0], logits[:, 0, 0], pointers), logits[:, 0, 0] > 0
        frames = model.encode_memory(*inputs)
        torch.testing.assert_close(parts['encode_memory'](*inputs), frames)
        memory = Memory(frames[:, None].repeat(1, 4, 1, 1), torch.tensor([[6, 1, 0, 0]] * objects),
                        pointers[:, None].repeat(1, 5, 1), torch.tensor([[9, 4, 3, 2, 1]] * objects),
                        torch.tensor([[True, True, True, False]] * objects), torch.tensor([[True] * 5] * objects))
        torch.testing.assert_close(parts['attend_memory'](image, memory), model.attend_memory(image, memory))
    assert counters['stats']['unique_graphs'] == before + 3


@torch.inference_mode()
def test_memory_of_absent_objects_is_made_once(nano, scene, monkeypatch):
    """Of four objects two are absent, one is visible, and one is absent but prompted, so its memory differs."""
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [Prompt(k, box=scene.box(1 + k % 2, 0)) for k in (1, 2, 3, 4)])
    image = encode_images(nano, [scene.image(1)])[0].features
    masks = tracker._track(image)[1]
    together = type(masks[1])(*(torch.stack(parts) for parts in zip(*masks.values(), strict=True)))
    together = together._replace(object_score=torch.tensor([-3.0, 2.0, -8.0, -1.0]),
                                 logits=together.logits.clone())
    together.logits[[0, 2, 3]] = -1024.0
    flags = [False, False, False, True]
    expected = nano.encode_memory(image, together, torch.tensor(flags))
    rows = []
    encode = nano.encode_memory
    monkeypatch.setattr(nano, 'encode_memory', lambda *inputs: rows.append(len(inputs[2])) or encode(*inputs))
    assert torch.equal(encode_memories(nano, image, together, flags), expected)
    assert rows == [3]
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_a_step_waits_for_the_gpu_once(scene):
    """A step synchronises the GPU only at its end."""
    model = load_model('nano', device='cuda')
    tracker = StreamTracker(model)
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1, 0)), Prompt(2, box=scene.box(2, 0))])
    for frame in range(1, 4):
        tracker.step(scene.image(frame))
    waits = []
    synchronize = torch.cuda.Stream.synchronize
    torch.cuda.set_sync_debug_mode('error')
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda.Stream, 'synchronize', lambda stream: waits.append(1) or synchronize(stream))
            tracker.step(scene.image(4))
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert waits == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_graphs_give_the_masks_of_the_plain_model(scene):
    plain, compiled = (load_model('nano', device='cuda', compile=flag) for flag in (False, True))
    compiled.compiled.warm_up(2)
    trackers = [StreamTracker(plain), StreamTracker(compiled)]
    for frame in range(20):
        prompts = [Prompt(1, box=scene.box(1, 0)), Prompt(2, box=scene.box(2, 0))] if frame == 0 else []
        expected, result = (tracker.step(scene.image(frame), prompts) for tracker in trackers)
        for object_id, item in result.objects.items():
            assert (item.mask ^ expected.objects[object_id].mask).mean() < 1e-3
    allocated = []
    for frame in range(20, 30):
        trackers[1].step(scene.image(frame))
        allocated.append(torch.cuda.memory_stats()['allocated_bytes.all.current'])
    assert max(allocated) == min(allocated)
