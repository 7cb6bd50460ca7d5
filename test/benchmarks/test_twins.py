"""Tests of the twins benchmark: its clips, its figures, and the command."""
import io
import json
import re
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from rich.console import Console

from benchmarks import twins
from benchmarks.lib.anchor_conditions import Conditions, Watched, conditions_table
from benchmarks.lib.twins import KINDS, judge, returns, twin_clip
from sam2_core.memory_policy import Kind, MemorySizes, Past, Row
from sam2_core.training.clips import Clip

FRAMES, SIZE = 30, 64


@pytest.fixture
def clip():
    """Return two squares side by side; the target, on the left, is hidden in the frames 8 to 12 and from 24 on."""
    masks = np.zeros((FRAMES, 2, SIZE, SIZE), bool)
    masks[:, 0, 20:40, 6:26] = masks[:, 1, 20:40, 36:56] = True
    masks[8:13, 0] = masks[24:, 0] = False
    frames = np.where(masks.any(axis=1)[..., None], np.uint8(220), np.uint8(30)) * np.ones(3, np.uint8)
    return Clip(frames, masks, masks.any(axis=(2, 3)), np.zeros(2, int))


def test_the_truth_is_without_a_mistake(clip):
    figures = judge(clip, clip.masks[:, 0], clip.visible[:, 0])
    assert {name: set(values) for name, values in figures.items()} == {
        'J': {1.0}, 'F': {1.0}, 'J&F': {1.0}, 'J_visible': {1.0}, 'found_again': {1.0}, 'on_twin': {0.0},
        'twin_swapped': {0.0}, 'ends_on_twin': {0.0}, 'hidden_called_present': {0.0}}
    assert len(figures['J']) == 29 and len(figures['J_visible']) == 18 and len(figures['hidden_called_present']) == 11


def test_masks_of_the_twin_are_swaps_in_all_frames(clip):
    figures = judge(clip, clip.masks[:, 1], clip.visible[:, 1])
    assert figures['on_twin'] == [1.0] * 29 and figures['J&F'] == [0.0] * 29
    assert figures['twin_swapped'] == figures['ends_on_twin'] == [1.0]
    assert figures['found_again'] == [0.0] and figures['hidden_called_present'] == [1.0] * 11


def test_frames_without_a_twin_cannot_be_swaps(clip):
    clip.masks[10:, 1] = clip.visible[10:, 1] = False
    assert judge(clip, clip.masks[:, 0], clip.visible[:, 0])['on_twin'] == [0.0] * 9


@pytest.mark.parametrize(('frames', 'swapped'), [(4, 0.0), (5, 1.0)])
def test_a_swap_lasts_five_frames(clip, frames, swapped):
    masks = clip.masks[:, 0].copy()
    masks[15:15 + frames] = clip.masks[15:15 + frames, 1]
    figures = judge(clip, masks, clip.visible[:, 0])
    assert figures['twin_swapped'] == [swapped] and sum(figures['on_twin']) == frames
    assert figures['ends_on_twin'] == [0.0]


@pytest.mark.parametrize(('frame', 'found'), [(12, 0.0), (22, 1.0), (23, 1.0), (24, 0.0)])
def test_an_object_is_found_again_while_it_is_visible(clip, frame, found):
    masks = np.zeros_like(clip.masks[:, 0])
    masks[frame] = clip.masks[0, 0]
    assert judge(clip, masks, masks.any(axis=(1, 2)))['found_again'] == [found]


def test_an_object_found_late_is_not_found_again(monkeypatch, clip):
    monkeypatch.setattr('benchmarks.lib.twins.RECOVERY_FRAMES', 5)
    masks = np.zeros_like(clip.masks[:, 0])
    masks[18] = clip.masks[0, 0]
    assert judge(clip, masks, clip.visible[:, 0])['found_again'] == [0.0]
    masks[17] = clip.masks[0, 0]
    assert judge(clip, masks, clip.visible[:, 0])['found_again'] == [1.0]


def test_an_absence_of_one_frame_is_no_return():
    assert returns(np.array([1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1], bool)) == [range(5, 7), range(10, 11)]


@pytest.mark.parametrize('number', range(len(KINDS)))
def test_a_clip_follows_from_its_number_and_shows_its_kind(number):
    clip = twin_clip(number, frames=40)
    assert all(np.array_equal(one, other) for one, other in zip(clip, twin_clip(number, frames=40), strict=True))
    assert clip.visible[0].all() and clip.visible.shape[1] in (2, 3)
    assert not (clip.masks.sum(axis=1) > 1).any()  # visible parts do not overlap
    if KINDS[number] == 'cross':
        assert (clip.masks.sum(axis=(2, 3)) < 0.5 * clip.masks[0].sum(axis=(1, 2))).any()
    else:
        assert returns(clip.visible[:, 0])


def test_a_clip_too_short_for_an_absence_is_refused():
    with pytest.raises(ValueError, match='frames 39: must be at least 40'):
        twin_clip(0, frames=39)


def test_the_difference_is_paired_over_the_clips_with_both_values():
    before, after = np.array([0.1, 0.5, 0.9, np.nan, 0.2]), np.array([0.3, 0.7, 1.1, 0.4, np.nan])
    assert twins.difference(before, after) == pytest.approx({'change': 0.2, 'low': 0.2, 'high': 0.2})
    found = twins.difference(np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0]))
    assert found['change'] == 0.25 and found['low'] == 0.0 and 0.5 <= found['high'] <= 0.75


def test_the_command_compares_the_policies_clip_by_clip(monkeypatch, clip, tmp_path, capsys):
    threads = cv2.getNumThreads()
    monkeypatch.setattr(twins, 'twin_clip', lambda number, seed: clip)
    twins.main(['--clips', '2', '--policies', 'published', 'distractor_aware', '--output', str(tmp_path / 'twins.json'),
                '--pictures', str(tmp_path), '--conditions'])
    cv2.setNumThreads(threads)
    found = json.loads((tmp_path / 'twins.json').read_text())
    assert set(found['summary']) == {'all', 'cross', 'cover'} and found['summary']['all']['clips'] == 2
    assert found['summary']['all']['policies']['published']['J&F']['difference'] == {'change': 0, 'low': 0, 'high': 0}
    values = found['values']['published']
    assert values[0] == values[1]  # the same clip twice
    assert found['summary']['all']['policies']['published']['J&F']['mean'] == pytest.approx(np.mean(values[0]['J&F']))
    assert found['times']['published']['step_ratio'] == 1
    assert len(found['conditions']) == 2 and 'all of them' in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob('*.jpg')} == {'cross_0.jpg', 'cover_1.jpg'}
    height, width = cv2.imread(str(tmp_path / 'cross_0.jpg')).shape[:2]
    assert (height, width) == (3 * 250, 8 * 224)  # truth and two policies, eight frames


class Seen(NamedTuple):
    """One tracked object in a frame: a square with a candidate mask beside it."""

    iou: float
    area: int
    apart: int  # pixels between the square and the candidate
    object_score: float = 5.0

    def masks(self):
        chosen, candidate = np.zeros((2, 64, 64), bool)
        chosen[10:20, 10:20] = True
        candidate[10:20, 20 + self.apart:30 + self.apart] = True
        return chosen, np.stack((chosen, candidate))


@pytest.mark.parametrize(('now', 'seen', 'holds'), [
    (20, Seen(0.81, 100, 10), (True, True, True, True, True)),  # box of 30 x 10 instead of 10 x 10: overlap 1/3
    (20, Seen(0.79, 100, 10), (False, True, True, True, False)),
    (20, Seen(0.81, 130, 10), (True, False, True, True, False)),
    (15, Seen(0.81, 100, 10), (True, True, False, True, False)),
    (20, Seen(0.81, 100, -9), (True, True, True, False, False))])  # box of 11 x 10: overlap 10/11
def test_each_condition_of_an_anchor_is_noted(now, seen, holds):
    rows = [Row(0, 0, Kind.PROMPT), Row(1, 10, Kind.ANCHOR)]
    policy = Watched()
    policy.write(Past(now, rows, rows, [(frame, 100) for frame in range(1, 11)], MemorySizes(4, 7, 16)), seen)
    assert policy.seen == {now: holds}


def test_a_frame_without_a_mask_has_no_conditions():
    policy = Watched()
    policy.write(Past(5, [Row(0, 0, Kind.PROMPT)], [], [], MemorySizes(4, 7, 16)), Seen(0.9, 0, 10))
    assert policy.seen == {}


def test_the_table_counts_the_conditions_that_fail_alone():
    rows = [(True, True, True, True, True), (False, True, True, True, False), (False, True, True, False, False),
            (True, False, True, True, False)]
    text = table_text(conditions_table([[Conditions(*row, 0.9, False) for row in rows], []]))
    assert re.search(r'predicted_iou\D+50.0%\D+25.0%', text) and re.search(r'area\D+75.0%\D+25.0%', text)
    assert re.search(r'distance\D+100.0%\D+0.0%', text) and re.search(r'distractor\D+75.0%\D+0.0%', text)
    assert '4 frames with a mask, 1 anchors in 1 of 2 clips; on the target (IoU above 0.5) 1, on a twin 0' in text


def table_text(table):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return ' '.join(console.export_text().split())


def test_a_policy_given_twice_is_refused(capsys):
    with pytest.raises(SystemExit):
        twins.parse(['--policies', 'published', 'published'])
    assert 'one of them is there twice' in capsys.readouterr().err
