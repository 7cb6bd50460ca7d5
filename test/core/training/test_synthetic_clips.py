"""Synthetic clips are exact and reproducible, and show what a tracker must learn."""
import itertools
import os
import time

import numpy as np
import pytest
import torch

from sam2_core.datasets.recordings import VISIBLE_PIXELS
from sam2_core.training.clips import Clip, pack, split
from sam2_core.training.data import Augmentation, SyntheticClips, batches
from sam2_core.training.synthetic.scenes import make_clip
from sam2_core.training.synthetic.sprites import ClutterBank
from sam2_core.training.synthetic.textures import TextureBank
from testing.waiting import PATIENCE

SIZE = 96


@pytest.fixture(scope='module')
def clutter():
    return ClutterBank(TextureBank(7, 12), 8)


@pytest.fixture(scope='module')
def clips(clutter):
    return [make_clip((7, number), clutter, 12, SIZE) for number in range(12)]


def test_a_seed_makes_the_same_clip_in_another_bank_of_that_seed(clips):
    again = make_clip((7, 3), ClutterBank(TextureBank(7, 12), 8), 12, SIZE)
    for mine, other in zip(clips[3], again, strict=True):
        assert np.array_equal(mine, other)


def test_seeds_make_different_clips(clips):
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_an_object_is_either_visible_enough_or_not_labelled(clips):
    for clip in clips:
        pixels = clip.masks.sum(axis=(2, 3))
        assert np.array_equal(clip.visible, pixels > 0)
        assert (pixels[clip.visible] >= VISIBLE_PIXELS).all()


def test_every_object_can_be_prompted_in_the_first_frame(clips):
    assert all(clip.visible[0].all() for clip in clips)
    assert sum(clip.visible.shape[1] for clip in clips) > len(clips)


def test_no_pixel_shows_two_objects(clips):
    assert all((clip.masks.sum(axis=1) <= 1).all() for clip in clips)


def test_objects_disappear_and_return(clips):
    hidden = [~clip.visible[1:-1] for clip in clips]
    returns = [(~clip.visible[:-1] & clip.visible[1:]).sum() for clip in clips]
    assert sum(part.sum() for part in hidden) > 0
    assert sum(returns) > 0


def test_objects_of_one_kind_look_alike(clutter):
    """Their colours are nearer to each other than to those of other things, also after a rotation."""
    alike, unlike = [], []
    for number in range(40):
        clip = make_clip((7, number), clutter, 2, SIZE)
        colours = [clip.frames[0][mask].mean(axis=0) for mask in clip.masks[0]]
        for a, b in itertools.combinations(range(len(colours)), 2):
            distances = alike if clip.kinds[a] == clip.kinds[b] else unlike
            distances.append(np.linalg.norm(colours[a] - colours[b]))
    assert len(alike) > 5 and len(unlike) > 20
    assert np.median(alike) < 0.3 * np.median(unlike)


def test_masks_follow_what_is_drawn(clips):
    """Pixels of an object differ from the same place without it, so labels are not shifted against the image."""
    inside, outside = [], []
    for clip in clips:
        grey = clip.frames.astype(float).mean(axis=3)
        step = np.abs(grey[1:] - grey[:-1])
        changed = clip.masks.any(axis=1)[1:] ^ clip.masks.any(axis=1)[:-1]
        inside.append(step[changed].mean() if changed.any() else np.nan)
        outside.append(step[~changed].mean())
    assert np.nanmean(inside) > 1.5 * np.nanmean(outside)


def test_packing_keeps_overlapping_objects_apart():
    masks = np.zeros((1, 3, 4, 4), bool)
    masks[0, 0, :2], masks[0, 1, 1:3], masks[0, 2, 3, 3] = True, True, True
    visible = np.array([[True, True, False]])
    packed = pack([Clip(np.zeros((1, 4, 4, 3), np.uint8), masks, visible)]).masks[0, 0]
    assert packed[:, 0].tolist() == [1, 3, 2, 0]
    assert packed[3, 3] == 0  # an object that is not visible has no pixels


def test_the_source_packs_what_make_clip_makes():
    source = SyntheticClips(7, 4, SIZE, chunk=2, textures=12)
    clips = [make_clip((7, 2 + i), source.clutter, 4, SIZE) for i in range(2)]
    for mine, expected in zip(source[1], pack(clips), strict=True):
        assert torch.equal(mine, expected)


def test_split_keeps_the_order_of_frames():
    clip = pack([Clip(np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, 3),
                      np.zeros((6, 1, 1, 1), bool), np.zeros((6, 1), bool))])
    assert split(clip, 2).frames[:, :, 0, 0, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match='6 frames do not split into clips of 4'):
        split(clip, 4)


def test_augmentation_moves_frames_and_masks_alike():
    frames = np.random.default_rng(0).integers(0, 255, (8, 6, 6, 3), np.uint8)
    clip = pack([Clip(frames, (frames[:, None, ..., 0] > 99), np.ones((8, 1), bool))])
    for seed in range(12):
        change = Augmentation(np.random.default_rng(seed), 8, 4)
        changed = change(clip)
        red = int((change.channels == 0).nonzero())
        assert torch.equal(changed.frames[..., red] > 99, changed.masks > 0)
        steps = change.order.view(-1, 4).diff(dim=1)
        assert (steps == steps[0, 0]).all()  # one pace and one direction throughout
        assert sorted(change.order.tolist()) == list(range(8))


class _Numbered:
    def __getitem__(self, number):
        return [Clip(np.full((1, 1, 1, 3), number, np.uint8), np.zeros((1, 1, 1, 1), bool), np.zeros((1, 1), bool))]


def _numbers(stream, steps):
    return [[int(chunk.frames[0, 0, 0, 0, 0]) for chunk in next(stream)] for _ in range(steps)]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_later_start_reads_what_an_earlier_one_would_have(workers):
    whole = _numbers(batches(_Numbered(), 4, 0, workers, echo=2), 5)
    assert whole[:2] == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert _numbers(batches(_Numbered(), 4, 3, workers, echo=2), 2) == whole[3:]


class _Logged(_Numbered):
    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, number):
        (self.folder / str(number)).write_text(str(os.getpid()))
        return super().__getitem__(number)


def test_other_processes_make_the_next_clips_while_a_step_is_computed(tmp_path):
    stream = batches(_Logged(tmp_path), 1, 0, workers=2)
    next(stream)  # nothing is asked for from here on: a step is being computed
    deadline = time.monotonic() + PATIENCE
    while len(ahead := [path for path in tmp_path.iterdir() if path.name != '0' and path.read_text()]) < 6:
        assert time.monotonic() < deadline, ahead
        time.sleep(0.01)
    assert len({path.read_text() for path in ahead} - {str(os.getpid())}) == 2


def test_processes_divide_the_clips():
    read = [_numbers(batches(_Numbered(), 2, 0, 0, rank, 3), 2) for rank in range(3)]
    assert sorted(number for part in read for step in part for number in step) == list(range(12))
