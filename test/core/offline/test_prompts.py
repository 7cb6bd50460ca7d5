"""Prompts on frames of a video: which act in which direction, and which cannot be used."""
import json
import sys

import numpy as np
import pytest

from sam2_core import Prompt, PromptError, VideoPrompt
from sam2_core.offline.prompts import check_prompts, plan_prompts, read_video_prompts

COUNT = 100


def box(frame, object_id=1, action='set'):
    return VideoPrompt(frame, Prompt(object_id, box=(1, 1, 9, 9)), action)


def remove(frame, object_id=1):
    return VideoPrompt(frame, Prompt(object_id), 'remove')


CLEAR = VideoPrompt(60, Prompt(), 'clear')


def acts(schedule):
    """Return what happens in a schedule: frame -> (removed objects, prompted objects)."""
    return {frame: (sorted(schedule.removals.get(frame, [])),
                    [item.object_id for item in schedule.prompts.get(frame, [])])
            for frame in sorted({*schedule.removals, *schedule.prompts})}


def sources(plan, object_id=1):
    """Return a letter per frame: from which pass the object comes; a dot where it is absent."""
    letters = ''
    for frame in range(plan.start, plan.end):
        behind, ahead = plan.sources(frame)
        assert not behind & ahead
        letters += 'b' if object_id in behind else 'f' if object_id in ahead else '.'
    return letters


def test_an_object_is_followed_from_its_prompt_in_both_directions():
    plan = plan_prompts([box(40)], COUNT)
    assert (plan.forwards.frames, plan.backwards.frames) == (range(40, 100), range(40, -1, -1))
    assert acts(plan.forwards) == acts(plan.backwards) == {40: ([], [1])}
    assert sources(plan) == 40 * 'b' + 60 * 'f'


def test_nothing_goes_backwards_from_the_first_frame():
    plan = plan_prompts([box(0), box(0, 2)], COUNT)
    assert plan.backwards.frames == range(0)
    assert acts(plan.backwards) == {}
    assert sources(plan) == 100 * 'f'


def test_a_correction_acts_in_the_pass_that_meets_it():
    plan = plan_prompts([box(40), box(70, action='refine'), box(20, action='refine'), box(40, action='refine')], COUNT)
    assert acts(plan.forwards) == {40: ([], [1, 1]), 70: ([], [1])}
    assert acts(plan.backwards) == {20: ([], [1]), 40: ([], [1, 1])}


def test_a_second_set_starts_the_object_again_forwards_only():
    plan = plan_prompts([box(40), box(70)], COUNT)
    assert acts(plan.forwards) == {40: ([], [1]), 70: ([1], [1])}
    assert acts(plan.backwards) == {40: ([], [1])}
    assert sources(plan) == 40 * 'b' + 60 * 'f'


def test_a_removed_object_is_absent_and_may_come_again():
    plan = plan_prompts([box(20), remove(50), box(80)], COUNT)
    assert acts(plan.forwards) == {20: ([], [1]), 50: ([1], []), 80: ([], [1])}
    assert acts(plan.backwards) == {20: ([], [1]), 50: ([1], []), 80: ([], [1])}
    assert sources(plan) == 20 * 'b' + 30 * 'f' + '.' + 29 * 'b' + 20 * 'f'


def test_a_remove_before_the_first_prompt_ends_the_way_back():
    plan = plan_prompts([remove(30), box(60)], COUNT)
    assert acts(plan.backwards) == {30: ([1], []), 60: ([], [1])}
    assert plan.backwards.frames == range(60, 30, -1)
    assert sources(plan) == 31 * '.' + 29 * 'b' + 40 * 'f'


def test_an_object_may_be_removed_and_set_in_one_frame():
    plan = plan_prompts([box(20), remove(60), box(60)], COUNT)
    assert acts(plan.forwards) == {20: ([], [1]), 60: ([1], [1])}
    assert acts(plan.backwards) == {20: ([], [1])}
    assert sources(plan) == 20 * 'b' + 80 * 'f'


def test_clear_removes_every_object():
    plan = plan_prompts([box(20), box(40, 2), CLEAR, box(90, 2)], COUNT)
    assert acts(plan.forwards)[60] == ([1, 2], [])
    assert sources(plan, 1) == 20 * 'b' + 40 * 'f' + 40 * '.'
    assert sources(plan, 2) == 40 * 'b' + 20 * 'f' + '.' + 29 * 'b' + 10 * 'f'


def test_objects_keep_the_order_and_the_last_label_of_their_prompts():
    prompts = [box(50, 7), box(10, 2), VideoPrompt(60, Prompt(7, points=[(1, 1)], labels=[0]), 'refine', 'cup')]
    plan = plan_prompts(prompts, COUNT)
    assert plan.objects == {7: 'cup', 2: ''}
    assert list(plan.objects) == [7, 2]


@pytest.mark.parametrize('direction, letters, forwards, backwards', [
    ('forward', 40 * '.' + 60 * 'f', range(40, 100), range(0)),
    ('backward', 41 * 'b' + 59 * '.', range(0), range(40, -1, -1)),
])
def test_one_direction_leaves_the_other_frames_without_the_object(direction, letters, forwards, backwards):
    plan = plan_prompts([box(40)], COUNT, direction)
    assert sources(plan) == letters
    assert (plan.forwards.frames, plan.backwards.frames) == (forwards, backwards)


def test_a_part_of_the_video_has_its_own_ends():
    plan = plan_prompts([box(40)], COUNT, start=30, end=45)
    assert (plan.forwards.frames, plan.backwards.frames) == (range(40, 45), range(40, 29, -1))


@pytest.mark.parametrize('prompts, options, reason', [
    ([], {}, 'no prompt that starts an object: give at least one box'),
    ([remove(5)], {}, 'no prompt that starts an object'),
    ([box(5), remove(7, 2)], {}, 'object 2, frame 7: remove, but no prompt starts the object before or after'),
    ([box(5), box(7, 2, 'refine')], {}, 'object 2, frame 7: refine, but no prompt starts the object; set it first'),
    ([box(5), remove(9), box(12, action='refine')], {}, 'object 1, frame 12: refine, but no prompt starts'),
    ([box(5), remove(5)], {}, 'object 1, frame 5: set and then remove in the same frame'),
    ([box(5), box(2, action='refine')], {'direction': 'forward'}, 'frame 2: before its origin, frame 5, and direction'),
    ([box(5), box(9, action='refine')], {'direction': 'backward'}, 'frame 9: after its origin, frame 5, and direction'),
    ([box(100)], {}, 'prompt on frame 100: must be on frames 0 to 99'),
    ([box(5)], {'start': 10}, 'prompt on frame 5: must be on frames 10 to 99, which are tracked'),
    ([box(5.0)], {}, 'frame 5.0: must be an integer'),
    ([box(True)], {}, 'frame True: must be an integer'),
    ([box(5, 0)], {}, 'object_id 0: must be an integer from 1 to 65535'),
    ([box(5, 70000)], {}, 'object_id 70000: must be an integer from 1 to 65535'),
    ([box(5, action='add')], {}, "action 'add': must be one of set, refine, remove, clear"),
    ([Prompt(1, box=(1, 1, 9, 9))], {}, 'prompt of type Prompt: must be a VideoPrompt'),
])
def test_prompts_that_cannot_be_used_are_named(prompts, options, reason):
    with pytest.raises(PromptError, match=reason):
        plan_prompts(prompts, COUNT, **options)


@pytest.mark.parametrize('options, reason', [
    ({'start': 100}, 'start 100: must be 0 to 99, the video has 100 frames'),
    ({'start': 50, 'end': 50}, 'end 50: must be 51 to 100'),
    ({'end': 101}, 'end 101: must be 1 to 100'),
    ({'direction': 'up'}, "direction 'up': must be one of both, forward, backward"),
])
def test_frames_that_are_not_there_are_named(options, reason):
    with pytest.raises(ValueError, match=reason):
        plan_prompts([box(60)], COUNT, **options)


def test_a_prompt_is_compared_with_its_frame():
    plan = plan_prompts([VideoPrompt(3, Prompt(1, box=(200, 5, 210, 9)))], COUNT)
    check_prompts(plan, 3, 240, 320)
    with pytest.raises(PromptError, match=r'frame 3, object 1: box .200, 5, 210, 9.: outside the image of 160 x 120'):
        check_prompts(plan, 3, 120, 160)


def test_points_off_an_object_start_it_only_together_with_others():
    off = Prompt(1, points=[(5, 5)], labels=[0])
    with pytest.raises(PromptError, match='frame 3, object 1: .*a new object cannot start'):
        check_prompts(plan_prompts([VideoPrompt(3, off)], COUNT), 3, 120, 160)
    check_prompts(plan_prompts([VideoPrompt(3, off), box(3)], COUNT), 3, 120, 160)


ENTRIES = [{'frame': 3, 'id': 2, 'label': 'cup', 'box': [1.5, 2, 30, 40]},
           {'frame': 5, 'points': [[4, 5, 1], [6, 7, 0]]},
           {'frame': 9, 'id': 2, 'action': 'remove'}, {'frame': 20, 'action': 'clear'}]


@pytest.mark.parametrize('name', ['prompts.json', 'prompts.yaml'])
def test_a_file_is_read_as_json_and_as_yaml(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(ENTRIES))  # which is YAML, too
    boxed, pointed, removed, cleared = read_video_prompts(tmp_path / name, 30)
    assert (boxed.frame, boxed.action, boxed.label, boxed.prompt.object_id) == (3, 'set', 'cup', 2)
    assert boxed.prompt.box == (1.5, 2, 30, 40)
    assert (pointed.prompt.object_id, pointed.prompt.points, pointed.prompt.labels) == (1, [(4, 5), (6, 7)], [1, 0])
    assert (removed.frame, removed.action, removed.prompt.object_id) == (9, 'remove', 2)
    assert (cleared.frame, cleared.action, cleared.prompt.object_id) == (20, 'clear', None)


def test_json_is_read_where_yaml_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'yaml', None)
    (tmp_path / 'prompts.txt').write_text(json.dumps(ENTRIES))
    assert len(read_video_prompts(tmp_path / 'prompts.txt', 30)) == 4
    (tmp_path / 'prompts.yaml').write_text('- {frame: 0, id: 1, box: [1, 1, 9, 9]}')
    with pytest.raises(ValueError, match='prompts.yaml: not JSON, and PyYAML.*pip install pyyaml, or write JSON'):
        read_video_prompts(tmp_path / 'prompts.yaml', 30)


@pytest.mark.parametrize('entry, reason', [
    ({'frame': 30, 'box': [1, 1, 9, 9]}, 'frame 30: must be 0 to 29, the video has 30 images'),
    ({'stamp': 1.5, 'box': [1, 1, 9, 9]}, 'stamp 1.5: frames of a video or folder have no stamps; give frame'),
    ({'frame': 3, 'bax': [1, 1, 9, 9]}, "'bax' is not known"),
    ({'frame': 3, 'mask': 'none.png'}, 'none.png: No such file'),
])
def test_a_wrong_entry_is_named(tmp_path, entry, reason):
    (tmp_path / 'p.json').write_text(json.dumps([ENTRIES[0], entry]))
    with pytest.raises(ValueError, match=f'p.json, entry 2: .*{reason}'):
        read_video_prompts(tmp_path / 'p.json', 30)


def test_masks_of_a_file_lie_beside_it(tmp_path):
    import cv2
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:12] = 255
    cv2.imwrite(str(tmp_path / 'm.png'), mask)
    (tmp_path / 'p.json').write_text(json.dumps([{'frame': 0, 'id': 1, 'mask': 'm.png'}]))
    np.testing.assert_array_equal(read_video_prompts(tmp_path / 'p.json', 1)[0].prompt.mask, mask > 0)
