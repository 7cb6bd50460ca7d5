"""benchmarks/operations.py counts what hand arithmetic and published figures say, and the page of models agrees."""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import operations
from sam2_core.config import VARIANTS, PerceiverConfig, RepVitConfig, Sam2Config

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'how-to' / 'choose-a-model.md'
SMALL = Sam2Config(
    RepVitConfig(channels=(4, 8, 8, 8), stages=(1, 1, 1, 1)), d_model=16, memory_attention_layers=1,
    memory_attention_feedforward=8, memory_dim=8, fuser_layers=1, decoder_layers=1, decoder_heads=1,
    decoder_feedforward=8, iou_head_hidden=8, image_size=64, no_object_embedding=False, pointer_time_codes=False,
    perceiver=PerceiverConfig(global_latents=4, grid_side=2, layers=1, feedforward=2))

# Multiplications of SMALL by hand: tokens (or pixels) x channels in x channels out, x 9 or 49 for a kernel's side.
TRUNK = (
    32 ** 2 * 3 * 2 * 9 + 16 ** 2 * 2 * 4 * 9  # stem
    + 256 * 4 * 9 + 2 * 4 * 8 + 2 * 256 * 4 * 8  # stride 4: depthwise convolution, squeeze-and-excitation, feed-forward
    + 256 * 4 * 9 + 2 * 256 * 4 * 8 + 64 * 4 * 9 + 64 * 4 * 8 + 2 * 64 * 8 * 16  # to stride 8
    + 64 * 8 * 9 + 2 * 8 * 8 + 2 * 64 * 8 * 16
    + 64 * 8 * 9 + 2 * 64 * 8 * 16 + 16 * 8 * 9 + 16 * 8 * 8 + 2 * 16 * 8 * 16  # to stride 16
    + 16 * 8 * 9 + 2 * 8 * 8 + 2 * 16 * 8 * 16
    + 16 * 8 * 9 + 2 * 16 * 8 * 16 + 4 * 8 * 9 + 4 * 8 * 8 + 2 * 4 * 8 * 16  # to stride 32
    + 4 * 8 * 9 + 2 * 8 * 8 + 2 * 4 * 8 * 16)
NECK = (4 * 8 * 16 + 16 * 8 * 16  # strides 32 and 16
        + 64 * 8 * 4 + 4 * 16 * 8 + 4 * 16  # stride 8, fused with the decoder's convolution: features, weight, bias
        + 256 * 4 * 2 + 2 * 16 * 4 + 2 * 16)  # stride 4
KEYS = 7 * 8 + 16 * 2  # seven frames of 4 + 4 latents, sixteen pointers of two tokens
SELF_ATTENTION = 4 * 16 * 16 * 16 + 2 * 16 * 16 * 16
QUERY = 16 * 16 * 16
FEED_FORWARD = 2 * 16 * 16 * 8
CROSS_ATTENTION = 2 * KEYS * 8 * 16 + 2 * 16 * KEYS * 16 + 16 * 16 * 16  # keys and values; scores, averages; output
FUSED = 16 * 16 * 8 + 16 * 16  # weight and bias of value and output projection
TOKEN_TO_IMAGE = 8 * 16 * 8 + 2 * 16 * 16 * 8 + 2 * 8 * 16 * 8 + 8 * 8 * 16  # 6 output tokens and 2 of no prompt
IMAGE_TO_TOKEN = 16 * 16 * 8 + 2 * 8 * 16 * 8 + 2 * 16 * 8 * 8 + 16 * 8 * 16
DECODER = (4 * 8 * 16 * 16 + 2 * 8 * 8 * 16 + 2 * TOKEN_TO_IMAGE + IMAGE_TO_TOKEN + 2 * 8 * 16 * 8
           + 16 * 16 * 4 * 4 + 64 * 4 * 2 * 4  # transposed convolutions of 2 x 2
           + 4 * (2 * 16 * 16 + 16 * 2) + 4 * 2 * 256  # hypernetworks, masks
           + 16 * 8 + 8 * 8 + 8 * 4 + 2 * 16 * 16 + 16 + 3 * 16 * 16)  # predicted IoU, object score, pointer
GRID = 16 * 2 * 8  # position of the cells for the decoder, the same for all objects
MASK = 9 * (1024 * 4 + 256 * 4 * 16 + 64 * 16 * 64 + 16 * 64 * 256) + 16 * 256 * 16
FUSER = 16 * 16 * 49 + 2 * 16 * 16 * 64 + 16 * 16 * 8
LATENTS = 4 * 8 * 8 + 4 * 8 * 8 + 2 * 4 * 8 * 16  # query, output and feed-forward of four latents
PERCEIVER = (4 * LATENTS + 2 * (16 + 4) * 8 * 16  # keys and values of memory and latents, for both sets
             + 2 * 4 * 16 * 8 + 2 * 4 * 4 * 8  # global latents attend to all tokens, then to each other
             + 2 * 4 * 4 * 8 + 2 * 4 * 1 * 8)  # each 2-D latent to the four of its window, then to itself


def test_operations_of_a_small_edgetam_are_those_of_hand_arithmetic():
    found = operations.operations(SMALL, torch.bfloat16)
    attention = CROSS_ATTENTION + FEED_FORWARD
    memory = MASK + FUSER + PERCEIVER
    assert halves(found['one_object']) == {
        'encode_image': TRUNK + NECK, 'attend_memory': SELF_ATTENTION + QUERY + attention,
        'decode_masks': DECODER + GRID, 'encode_memory': memory + 16 * 16 * 16,
        'all': TRUNK + NECK + SELF_ATTENTION + QUERY + attention + DECODER + GRID + memory + 16 * 16 * 16}
    assert halves(found['further_object']) == {  # the first layer up to its queries and the image's part are shared
        'encode_image': 0, 'attend_memory': attention, 'decode_masks': DECODER, 'encode_memory': memory,
        'all': attention + DECODER + memory}


def test_a_cpu_in_float32_averages_values_in_their_own_width_whatever_the_number_of_prompted_frames():
    found = halves(operations.operations_of(SMALL, torch.float32, objects=1, prompted=4))
    keys = (4 + 6) * 8 + (4 + 15) * 2
    cross_attention = keys * 8 * 16 + 16 * keys * (16 + 8) + 16 * 8 * 16
    assert found['attend_memory'] == SELF_ATTENTION + QUERY + cross_attention + FUSED + FEED_FORWARD


def halves(operations):
    """Return numbers of multiplications."""
    assert not any(count % 2 for count in operations.values())
    return {stage: count // 2 for stage, count in operations.items()}


def test_operations_of_tiny_are_those_counted_in_the_published_modules():
    found = operations.operations_of(VARIANTS['sam2.1_hiera_tiny'], torch.bfloat16, objects=1)
    assert found['attend_memory'] / 1e9 == pytest.approx(605.6, rel=1e-3)
    assert found['decode_masks'] / 1e9 == pytest.approx(3.64, rel=1e-2)
    assert found['encode_memory'] / 1e9 == pytest.approx(11.6, rel=1e-2)
    trunk, neck, strides_4_and_8 = 284.7, 6.0, 1.61
    assert 0.95 < found['encode_image'] / 1e9 / (trunk + neck + strides_4_and_8) < 1, 'fused, and windows padded later'


def test_sizes_are_those_of_the_published_model():
    found = operations.sizes(VARIANTS['sam2.1_hiera_tiny'])
    assert found['parameters'] / 1e6 == pytest.approx(38.96, abs=0.01)
    assert found['memory_bytes']['published'] == 11 * 4096 * 64 * 2 + 20 * 256 * 4, 'one more row than attended to'
    assert found['memory_bytes']['distractor_aware'] == 8 * 4096 * 64 * 2 + 17 * 256 * 4


def test_the_page_of_models_has_the_counted_operations():
    config = replace(VARIANTS['edgetam'], image_size=512)
    first = [operations.gflop(operations.operations_of(config, dtype, objects=1)['all'])
             for dtype in operations.WAYS.values()]
    row = re.search(r'^\| `edgetam` \| 512 \| (.*) \|$', PAGE.read_text(), re.MULTILINE)
    assert row and row[1].split(' | ')[1::2] == first


def test_the_command_prints_what_it_writes(monkeypatch, tmp_path, capsys):
    def counted(config, dtype, prompted):
        assert (config.image_size, prompted) == (96, 2)
        frame = dict.fromkeys((*operations.STAGES, 'all'), 12_340_000_000 if dtype == torch.float32 else 5_670_000_000)
        return {'one_object': frame, 'further_object': frame}

    monkeypatch.setattr(operations, 'operations', counted)
    monkeypatch.setattr(sys, 'argv', ['operations.py', '--models', 'nano', '--image-sizes', '96', '--prompted-frames',
                                      '2', '--json', str(tmp_path / 'operations.json')])
    operations.main()
    printed = capsys.readouterr().out
    row, = json.loads((tmp_path / 'operations.json').read_text())['rows']
    assert row['plain']['one_object']['all'] == 5_670_000_000 and printed.count('5.67') == 6
    assert row['cpu_float32']['further_object']['all'] == 12_340_000_000 and printed.count('12.3') == 2
    assert all(f'{size / 2 ** 20:.2f}' in printed for size in row['memory_bytes'].values())


@pytest.mark.parametrize(('option', 'value', 'rule'), [('--image-sizes', '100', 'multiple of 32'),
                                                       ('--prompted-frames', '5', 'must be 1 to 4')])
def test_values_that_no_tracker_has_are_refused(option, value, rule, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['operations.py', '--models', 'edgetam', option, value])
    with pytest.raises(SystemExit, match='2'):
        operations.main()
    assert rule in capsys.readouterr().err
