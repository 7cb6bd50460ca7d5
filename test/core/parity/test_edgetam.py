"""Parity of EdgeTAM with the official implementation: stages and streams, stored by tools/edgetam_fixture.py."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sam2_core import VARIANTS, ImageSegmenter, Sam2Model, StreamTracker
from sam2_core.nn.position import sine_grid
from sam2_core.tensors import ImageFeatures, Memory
from testing import comparisons, edgetam_cases, reference
from testing.drawn_weights import VISIBLE, drawn_weights
from testing.edgetam_cases import sample

STAGE_LIMIT = 1e-4
STREAM_LIMIT = 0.03  # mask logits, whose standard deviation is about 3


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    with comparisons.one_thread(), torch.inference_mode():
        yield


@pytest.fixture(scope='module')
def official():
    """Return the stored results of the official implementation, by name."""
    return load_file(edgetam_cases.FIXTURE)


@pytest.fixture(scope='module')
def model():
    model = Sam2Model(replace(VARIANTS['edgetam'], image_size=edgetam_cases.IMAGE_SIZE), 'edgetam').eval()
    model.load_state_dict(drawn_weights(model.state_dict()))
    return model.requires_grad_(False)


@pytest.fixture(scope='module')
def pixels():
    return reference.pixel_values(edgetam_cases.scene()[0])


@pytest.fixture(scope='module')
def image(model, pixels):
    return model.encode_image(pixels)


@pytest.fixture(scope='module')
def decoded(model, image):
    """Return three masks of a click."""
    return model.decode_masks(model.without_memory(image), image, torch.tensor([[comparisons.CLICK]]),
                              torch.tensor([[1]]), multimask=True)


def assert_alike(official, name, ours, limit=STAGE_LIMIT):
    assert comparisons.error(sample(name, ours), official[name]) < limit


@pytest.mark.parametrize('level', range(4))
def test_trunk_level(official, model, pixels, level):
    assert_alike(official, f'trunk.{level}', model.image_encoder.trunk(pixels)[level])


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_encoder_level(official, image, stride):
    assert_alike(official, f'level.stride{stride}', getattr(image, f'stride{stride}_bchw'))


def test_masks_of_a_click(official, model, decoded):
    assert_alike(official, 'prompt.logits', decoded.logits[0])
    assert_alike(official, 'prompt.iou', decoded.iou[0])
    assert_alike(official, 'prompt.object_score', decoded.object_score)
    assert_alike(official, 'prompt.pointer', model.choose_masks(decoded).pointers[0])


def test_memory_of_a_mask(official, model, image, decoded):
    mask = torch.nn.functional.interpolate(model.choose_masks(decoded).logits[:, None], scale_factor=4.0,
                                           mode='bilinear').sigmoid() * 20 - 10
    encoded = model.memory_encoder(image.stride16_bchw, mask)
    assert_alike(official, 'memory.encoded', encoded)
    assert_alike(official, 'memory.compressed', compressed(model, encoded)[0])
    assert_alike(official, 'memory.position', model.memory_position)


@pytest.mark.parametrize('side', [16, 32, 64])
def test_perceiver_compresses_a_grid_of_any_size(official, model, side):
    assert_alike(official, f'perceiver.{side}', compressed(model, edgetam_cases.memory_map(side))[0])


def test_perceiver_compresses_a_batch_as_one_by_one(model):
    maps = torch.cat([edgetam_cases.memory_map(32), edgetam_cases.memory_map(32).flip(2, 3)])
    assert comparisons.error(compressed(model, maps), torch.cat([compressed(model, one[None]) for one in maps])) < 1e-5


def test_memory_attention(official, model):
    inputs = edgetam_cases.attention_inputs()
    features = inputs.features_chw[None]
    attended = model.attend_memory(ImageFeatures(features, features, features), Memory(
        inputs.frames[None], torch.tensor([inputs.slots]), inputs.pointers[None], torch.zeros(1, 3, dtype=torch.long)))
    assert_alike(official, 'attention', attended[0])


@pytest.fixture(scope='module')
def frames(model):
    """Return the frames of all streams, encoded."""
    segmenter = ImageSegmenter(model)
    return [segmenter.encode(image) for image in edgetam_cases.scene()]


@pytest.fixture(scope='module')
def tracked(model, frames):
    """Return logits and object scores of each stream by frame; the four visible objects are tracked as one batch."""
    streams = edgetam_cases.streams()
    absent = {1: streams.pop(edgetam_cases.ABSENT)}
    together = {int(name): prompts for name, prompts in streams.items()}
    results = {f'{object_id}.{time}': result for (object_id, time), result in run(model, frames, together).items()}
    bias = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    invisible = edgetam_cases.ABSENT_FRAMES
    alone = run(model, frames, absent, lambda time: bias.fill_(-30.0 if time in invisible else VISIBLE))
    return results | {f'{edgetam_cases.ABSENT}.{time}': result for (_, time), result in alone.items()}


@pytest.mark.parametrize('stream', ['1', '2', '3', '4', edgetam_cases.ABSENT])
def test_stream_of_ten_frames(official, tracked, stream):
    """Click; box with click, corrected at frame 5; box at frame 3; mask at frame 1; absent in frames 2 and 3."""
    frames = [name for name in official if name.startswith(f'stream.{stream}.') and not name.endswith('score')]
    assert len(frames) == {'3': 7, '4': 9}.get(stream, 10)
    for name in frames:
        logits, score = tracked[name.removeprefix('stream.')]
        assert_alike(official, name, logits, STREAM_LIMIT)
        assert abs(score - float(official[f'{name}.score'])) < STREAM_LIMIT


def test_stored_streams_are_worth_comparing_with(official):
    absent = [f'stream.{edgetam_cases.ABSENT}.{time}' for time in edgetam_cases.ABSENT_FRAMES]
    assert all((official[name] == -1024).all() for name in absent)
    for name, logits in official.items():
        if name.startswith('stream.') and not name.endswith('score') and name not in absent:
            assert 2 < logits.std() < 30
            assert 0.03 < (logits > 0).float().mean() < 0.97
    # masks of one image depend on the object's own memory
    assert all((official[f'stream.1.{time}'] - official[f'stream.4.{time}']).abs().max() > 10 * STREAM_LIMIT
               for time in range(1, 10))


def test_sixteen_objects_in_a_batch_are_tracked_as_alone(model, frames, monkeypatch):
    """Stored as float32, since bfloat16 rounds the float noise of a batch to neighbouring numbers."""
    monkeypatch.setattr('sam2_core.memory.MEMORY_DTYPE', torch.float32)
    monkeypatch.setattr(model, 'memory_dtype', torch.float32)
    clicks = [(60.0 + 40 * (i % 4), 60.0 + 40 * (i // 4)) for i in range(16)]
    script = {1 + i: {0: comparisons.Given((click,), (1,))} for i, click in enumerate(clicks)}
    together = run(model, frames[:3], script)
    assert len(together) == 16 * 3
    for object_id in (1, 6, 11, 16):
        for key, (logits, score) in run(model, frames[:3], {object_id: script[object_id]}).items():
            assert comparisons.error(together[key][0], logits) < STAGE_LIMIT
            assert abs(together[key][1] - score) < STAGE_LIMIT


def compressed(model, maps_bchw):
    position = sine_grid(maps_bchw.shape[1], *maps_bchw.shape[2:]).flatten(1).T
    return model.spatial_perceiver(maps_bchw.flatten(2).transpose(1, 2), position)


def run(model, frames, script, before=lambda time: None):
    """Track objects in one tracker; return logits and object scores by object and frame."""
    tracker, results = StreamTracker(model), {}
    for time, frame in enumerate(frames):
        before(time)
        prompts = [given[time].to_ours(object_id) for object_id, given in script.items() if time in given]
        for object_id, one in tracker.step(frame, prompts).objects.items():
            results[object_id, time] = torch.as_tensor(one.logits), one.object_score
    return results
