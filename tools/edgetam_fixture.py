"""Write the results of the official EdgeTAM with drawn weights: test/core/parity/edgetam.safetensors.

Run by hand in an environment of its own (CONTRIBUTING.md, section "The fixture of EdgeTAM"):

    PYTHONPATH=. python tools/edgetam_fixture.py
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import sam2.modeling.backbones.timm
import sam2.sam2_video_predictor
import timm
import torch
from safetensors.torch import save_file
from sam2.build_sam import build_sam2_video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from testing import edgetam_cases, reference
from testing.comparisons import CLICK, Given
from testing.drawn_weights import VISIBLE, drawn_weights

INVISIBLE = -30.0


def official_model() -> SAM2VideoPredictor:
    """Return the official model for small images, with drawn weights."""
    grid = edgetam_cases.IMAGE_SIZE // 16
    with mock.patch.object(sam2.modeling.backbones.timm, 'create_model', _without_download):
        model = build_sam2_video_predictor('configs/edgetam.yaml', device='cpu', hydra_overrides_extra=[
            f'++model.image_size={edgetam_cases.IMAGE_SIZE}',
            f'++model.memory_attention.layer.cross_attention.q_sizes=[{grid},{grid}]',
            '++model.add_all_frames_to_correct_as_cond=true'])
    model.fill_hole_area = 0  # shown masks only
    model.load_state_dict(drawn_weights(model.state_dict()))
    return model.requires_grad_(False)


def _without_download(name: str, pretrained: bool, **options: object) -> torch.nn.Module:
    return timm.create_model(name, pretrained=False, **options)


def stages(model: SAM2VideoPredictor) -> Iterator[tuple[str, Tensor]]:
    """Yield the outputs of all parts for one image, by name."""
    pixels = reference.pixel_values(edgetam_cases.scene()[0])
    for i, level in enumerate(model.image_encoder.trunk(pixels)):
        yield f'trunk.{i}', level
    *high, features = model.forward_image(pixels)['backbone_fpn']
    for stride, level in zip((4, 8, 16), (*high, features), strict=True):
        yield f'level.stride{stride}', level
    points = {'point_coords': torch.tensor([[CLICK]]), 'point_labels': torch.ones(1, 1, dtype=torch.int32)}
    decoded = model._forward_sam_heads(features + model.no_mem_embed[0, 0, :, None, None], points,
                                       high_res_features=high, multimask_output=True)
    yield 'prompt.logits', decoded[0][0]
    yield 'prompt.iou', decoded[2][0]
    yield 'prompt.pointer', decoded[5][0]
    yield 'prompt.object_score', decoded[6][0]
    logits = torch.nn.functional.interpolate(decoded[3], scale_factor=4.0, mode='bilinear')
    encoded = model.memory_encoder(features, logits.sigmoid() * 20 - 10, skip_mask_sigmoid=True)
    yield 'memory.encoded', encoded['vision_features']
    memory, position = model.spatial_perceiver(encoded['vision_features'], encoded['vision_pos_enc'][0])
    yield 'memory.compressed', memory[0]
    yield 'memory.position', position[0]
    for side in (16, 32, 64):
        maps = edgetam_cases.memory_map(side)
        sine = model.memory_encoder.position_encoding(maps)
        memory, position = model.spatial_perceiver(maps, sine)
        yield f'perceiver.{side}', memory[0]
    yield 'attention', attended(model, position)


def attended(model: SAM2VideoPredictor, position: Tensor) -> Tensor:
    """Return the output of memory attention, (256, h, w)."""
    inputs = edgetam_cases.attention_inputs()
    pointers = inputs.pointers.reshape(-1, 64)
    positions = [position[0] + model.maskmem_tpos_enc[slot, 0] for slot in inputs.slots]
    sine = model.image_encoder.neck.position_encoding(inputs.features_chw[None])
    out = model.memory_attention(
        inputs.features_chw.flatten(1).T[:, None], torch.cat((*inputs.frames, pointers))[:, None],
        sine.flatten(2).permute(2, 0, 1), torch.cat((*positions, torch.zeros_like(pointers)))[:, None],
        num_obj_ptr_tokens=len(pointers), num_spatial_mem=len(inputs.frames))
    return out[:, 0].T.unflatten(1, inputs.features_chw.shape[1:])


def stream(model: SAM2VideoPredictor, frames: list[np.ndarray], prompts: Mapping[int, Given],
           absent: bool) -> Iterator[tuple[int, Tensor, float]]:
    """Track one object with the official predictor; yield frame number, logits (S / 4, S / 4) and object score."""
    images = torch.cat([reference.pixel_values(frame) for frame in frames])
    with mock.patch.object(sam2.sam2_video_predictor, 'load_video_frames',
                           lambda **options: (images, edgetam_cases.IMAGE_SIZE, edgetam_cases.IMAGE_SIZE)):
        state = model.init_state('')
    times = sorted(prompts)
    outputs = state['output_dict']
    for time, following in zip(times, [*times[1:], len(frames)], strict=True):
        given = prompts[time]
        if given.mask is not None:
            model.add_new_mask(state, time, 1, given.mask)
        else:
            model.add_new_points_or_box(state, time, 1, given.points or None, given.labels or None, box=given.box)
        tracking = model.propagate_in_video(state, time, following - time)
        for now in range(time, min(following + 1, len(frames))):
            invisible = absent and now in edgetam_cases.ABSENT_FRAMES
            model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(INVISIBLE if invisible else VISIBLE)
            assert next(tracking)[0] == now
    for now in range(times[0], len(frames)):
        kind = 'cond_frame_outputs' if now in outputs['cond_frame_outputs'] else 'non_cond_frame_outputs'
        yield now, outputs[kind][now]['pred_masks'][0, 0], float(outputs[kind][now]['object_score_logits'])


def main() -> None:
    """Run everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=edgetam_cases.FIXTURE, metavar='FILE',
                        help='file to write (default: the fixture of the tests)')
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = official_model()
    results = {}
    with torch.inference_mode():
        for name, values in stages(model):
            results[name] = edgetam_cases.sample(name, values)
            print(f'{name} {tuple(values.shape)}: deviation {values.std():.3g}')
        for name, prompts in edgetam_cases.streams().items():
            for time, logits, score in stream(model, edgetam_cases.scene(), prompts, name == edgetam_cases.ABSENT):
                key = f'stream.{name}.{time}'
                results[key] = edgetam_cases.sample(key, logits)
                results[f'{key}.score'] = torch.tensor([score])
                print(f'{key}: deviation {logits.std():.3g}, foreground {(logits > 0).float().mean():.2f}, '
                      f'score {score:.2f}')
    save_file(results, options.output)


if __name__ == '__main__':
    main()
