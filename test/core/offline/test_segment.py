"""sam2_segment: masks of images from the command line, without ROS."""
import json
import struct

import cv2
import numpy as np
import pytest

from sam2_core import Filters, ImageSegmenter, Prompt
from sam2_core.datasets import SkippedFiles, open_recordings, run_length
from sam2_core.offline.segment import main
from testing.small_edgetam import small_variant

HEIGHT, WIDTH = 240, 320


@pytest.fixture
def photo(scene, tmp_path):
    return save(tmp_path / 'photo.png', scene.image(0))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """Let no published model be cached, so that nano runs."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))


def save(path, rgb, *settings):
    assert cv2.imwrite(str(path), rgb if rgb.ndim == 2 else rgb[..., ::-1], settings)
    return path


def box_of(scene, object_id, frame=0):
    return ','.join(f'{value}' for value in scene.box(object_id, frame))


def run(*arguments):
    return main([str(argument) for argument in arguments])


def result(output, name='photo'):
    return json.loads((output / f'{name}.json').read_text())


def masks(output, name='photo'):
    """Return the masks of a JSON by id, after comparing each with its PNG."""
    found = {}
    for item in result(output, name)['annotations']:
        decoded = run_length.decode(item['segmentation']['counts'], *item['segmentation']['size'])
        stored = cv2.imread(str(output / item['mask']), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == np.uint8 and set(np.unique(stored)) <= {0, 255}
        np.testing.assert_array_equal(decoded, stored == 255)
        assert item['area'] == decoded.sum()
        rows, columns = np.nonzero(decoded)
        assert item['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        found[item['id']] = decoded
    return found


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize('prompts', [['--box', '72,72,208,208'], ['--everything', '--points-per-side', '2',
                                                                  '--min-score', '0', '--min-stability', '0']])
def test_edgetam_segments_with_a_local_file(photo, tmp_path, monkeypatch, prompts):
    out = tmp_path / 'out'
    assert run(photo, *prompts, '--model', 'edgetam', '--checkpoint', small_variant(monkeypatch, tmp_path),
               '--output', out, '--device', 'cpu') == 0
    assert masks(out)


def test_boxes_give_masks_json_and_overlay(scene, photo, tmp_path, capsys):
    output = tmp_path / 'out'
    assert run(photo, '--box', box_of(scene, 1), '--box', box_of(scene, 2), '--output', output) == 0
    found = masks(output)
    assert all(overlap(found[number], scene.truth(number, 0)) > 0.85 for number in (1, 2))
    content = result(output)
    assert content['image'] == {'file_name': 'photo.png', 'height': HEIGHT, 'width': WIDTH}
    assert content['model'] == {'name': 'nano', 'image_size': 256}
    overlay = cv2.imread(str(output / 'photo' / 'overlay.jpg'))
    changed = np.abs(overlay.astype(int) - cv2.imread(str(photo))).sum(2) > 60
    assert changed[found[1] | found[2]].mean() > 0.5 > 0.1 > changed[200:, :100].mean()
    said = capsys.readouterr().err
    assert 'model: nano' in said and 'better masks: --model ' in said
    assert 'photo: 2 masks, score 0.' in said


def test_box_and_points_of_one_id_are_one_prompt(scene, photo, tmp_path, nano):
    x0, y0, x1, y1 = scene.box(1)
    run(photo, '--box', f'7:{x0},{y0},{x1},{y1}', '--points', '7:70,70;100,44,-', '--output', tmp_path / 'out')
    (item,) = result(tmp_path / 'out')['annotations']
    segmenter = ImageSegmenter(nano)
    expected = segmenter.segment(segmenter.encode(scene.image(0)),
                                 Prompt(points=[(70, 70), (100, 44)], labels=[1, 0], box=(x0, y0, x1, y1)))
    assert item['object_id'] == 7
    assert item['predicted_iou'] == pytest.approx(expected.scores[0])
    np.testing.assert_array_equal(masks(tmp_path / 'out')[1], expected.masks[0])


def test_multimask_writes_the_three_masks_of_a_point_best_first(scene, photo, tmp_path, nano):
    assert run(photo, '--points', '70,70', '--multimask', '--output', tmp_path / 'out') == 0
    segmenter = ImageSegmenter(nano)
    expected = segmenter.segment(segmenter.encode(scene.image(0)), Prompt(points=[(70, 70)], labels=[1]), True)
    items = result(tmp_path / 'out')['annotations']
    assert [item['mask'] for item in items] == [f'photo/1_{number}.png' for number in (1, 2, 3)]
    assert [item['predicted_iou'] for item in items] == pytest.approx(sorted(expected.scores.tolist(), reverse=True))
    best = expected.masks[int(expected.scores.argmax())]
    np.testing.assert_array_equal(masks(tmp_path / 'out')[1], best)


def test_everything_in_a_folder_is_found_and_can_be_trained_on(scene, tmp_path, nano):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for frame in (2, 10):
        save(folder / f'{frame}.png', scene.image(frame))
    assert run(folder, '--everything', '--points-per-side', 8, '--min-area', 20, '--output', folder, '--no-masks',
               '--no-overlay') == 0
    assert sorted(path.name for path in folder.iterdir()) == ['10.json', '10.png', '2.json', '2.png']
    recordings = open_recordings(folder, SkippedFiles(tmp_path / 'skipped'))
    assert not (tmp_path / 'skipped').exists()
    for recording, frame in zip(recordings, (2, 10), strict=True):
        read = recording.read([0])
        np.testing.assert_array_equal(read.images[0], scene.image(frame))
        expected = ImageSegmenter(nano).segment_all(scene.image(frame), 8,
                                                    Filters(min_iou=0.6, min_stability=0.6, min_area=20))
        np.testing.assert_array_equal(read.masks[0], np.stack([item.mask for item in expected]))
        assert all(max(overlap(mask, scene.truth(number, frame)) for mask in read.masks[0]) > 0.8 for number in (1, 2))


def test_where_nothing_is_found_the_cure_is_said(photo, tmp_path, capsys):
    assert run(photo, '--everything', '--points-per-side', 2, '--min-score', 0.999, '--output', tmp_path / 'out') == 0
    assert 'photo: 0 masks; lower --min-score' in capsys.readouterr().err
    assert result(tmp_path / 'out')['annotations'] == []


def test_coordinates_and_masks_are_those_of_the_photo_as_shown(scene, photo, tmp_path):
    """Orientation 6: the stored pixels are shown after a quarter turn clockwise."""
    stored = np.ascontiguousarray(np.rot90(scene.image(0)))
    data = save(tmp_path / 'stored.jpg', stored, cv2.IMWRITE_JPEG_QUALITY, 98).read_bytes()
    body = b'Exif\0\0II*\0\x08\0\0\0\x01\0' + struct.pack('<HHIHHI', 0x0112, 3, 1, 6, 0, 0)
    (tmp_path / 'turned.jpg').write_bytes(data[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + data[2:])
    assert run(tmp_path / 'turned.jpg', '--box', box_of(scene, 1), '--output', tmp_path / 'out') == 0
    assert overlap(masks(tmp_path / 'out', 'turned')[1], scene.truth(1, 0)) > 0.85
    (tmp_path / 'turned.jpg').rename(tmp_path / 'out' / 'turned.jpg')
    recording, = open_recordings(tmp_path / 'out', SkippedFiles(tmp_path / 'skipped'))
    np.testing.assert_array_equal(recording.read([0]).masks[0][0], masks(tmp_path / 'out', 'turned')[1])


def test_dark_deep_images_are_segmented_as_their_8_bit_versions(scene, photo, tmp_path, capsys):
    """12-bit values in a 16-bit file: 0 to 4080 become 0 to 255, a division by 16."""
    grey = cv2.cvtColor(scene.image(0), cv2.COLOR_RGB2GRAY)
    save(tmp_path / 'deep.png', grey.astype(np.uint16) * 16)
    save(tmp_path / 'flat.png', grey)
    box = box_of(scene, 1)
    assert run(tmp_path / 'deep.png', '--box', box, '--range', '0,4080', '--output', tmp_path / 'out') == 0
    assert run(tmp_path / 'flat.png', '--box', box, '--output', tmp_path / 'out') == 0
    np.testing.assert_array_equal(masks(tmp_path / 'out', 'deep')[1], masks(tmp_path / 'out', 'flat')[1])
    capsys.readouterr()
    assert run(tmp_path / 'deep.png', '--box', box, '--output', tmp_path / 'own') == 0
    low, high = np.percentile(grey.astype(float) * 16, (0.1, 99.9))
    assert f'values from {low:g} to {high:g} become 0 to 255' in capsys.readouterr().err


def test_each_page_of_a_stack_is_an_image(scene, tmp_path):
    pages = [np.ascontiguousarray(scene.image(frame)[..., 0]) for frame in range(3)]
    assert cv2.imwritemulti(str(tmp_path / 'stack.tif'), pages)
    assert run(tmp_path / 'stack.tif', '--box', f'{box_of(scene, 1, 2)}@2', '--output', tmp_path / 'out') == 0
    assert [path.name for path in (tmp_path / 'out').glob('*.json')] == ['stack_00002.json']
    assert overlap(masks(tmp_path / 'out', 'stack_00002')[1], scene.truth(1, 2)) > 0.8


def test_a_prompt_file_names_objects_and_prompts_several_images(scene, tmp_path, capsys):
    for number in (9, 10, 11):
        save(tmp_path / f'{number}.png', scene.image(number))
    box, other = ([int(value) for value in scene.box(*at)] for at in ((1, 9), (2, 11)))
    prompts = [{'frame': 0, 'id': 4, 'label': 'red', 'box': box}, {'frame': 0, 'id': 4, 'points': [[100, 20, 0]]},
               {'frame': 2, 'box': other}]
    (tmp_path / 'prompts.json').write_text(json.dumps(prompts))
    images = [tmp_path / f'{number}.png' for number in (9, 10, 11)]
    assert run(*images, '--prompts', tmp_path / 'prompts.json', '--output', tmp_path / 'out') == 0
    assert '1 of 3 images have no prompt' in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / 'out').glob('*.json')) == ['11.json', '9.json']
    (item,) = result(tmp_path / 'out', '9')['annotations']
    assert (item['object_id'], item['label']) == (4, 'red')
    assert overlap(masks(tmp_path / 'out', '9')[1], scene.truth(1, 9)) > 0.8
    assert overlap(masks(tmp_path / 'out', '11')[1], scene.truth(2, 11)) > 0.8


def test_one_id_may_be_prompted_in_several_images(scene, tmp_path):
    for number in (0, 6):
        save(tmp_path / f'{number}.png', scene.image(number))
    boxes = [f'5:{box_of(scene, 1, frame)}@{index}' for index, frame in enumerate((0, 6))]
    images = tmp_path / '0.png', tmp_path / '6.png'
    assert run(*images, '--box', boxes[0], '--box', boxes[1], '--output', tmp_path / 'out') == 0
    for name, frame in (('0', 0), ('6', 6)):
        assert [item['object_id'] for item in result(tmp_path / 'out', name)['annotations']] == [5]
        assert overlap(masks(tmp_path / 'out', name)[1], scene.truth(1, frame)) > 0.85


def test_a_mask_alone_needs_another_model_than_nano(scene, photo, tmp_path, capsys):
    save(tmp_path / 'rough.png', scene.truth(1, 0).astype(np.uint8) * 255)
    (tmp_path / 'prompts.json').write_text(json.dumps([{'frame': 0, 'mask': 'rough.png'}]))
    assert run(photo, '--prompts', tmp_path / 'prompts.json', '--output', tmp_path / 'out') == 2
    said = capsys.readouterr().err
    assert 'photo.png: ' in said and 'mask' in said and 'nano' in said
    assert not [*(tmp_path / 'out').iterdir()]


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], 'no prompts: give --box or --points'),
    (['--box', '1,2,30,40', '--everything'], '--box or --points and --everything: give'),
    (['--box', '1,2,30,40', '--min-score', '0.5'], '--min-score without --everything'),
    (['--everything', '--multimask'], '--multimask with --everything'),
    (['--box', '1,2,30,40@1'], 'prompt for image 1: must be 0 to 0'),
    (['--box', '1,2,30,40', '--range', '0,4095'], 'the pictures have 8 bits'),
    (['--box', '1,2,30,40', '--checkpoint', '/no/such.pt'], '/no/such.pt'),
    (['--box', '400,300,500,400'], 'object 1: box (400, 300, 500, 400)'),
    (['--points', '20,20,-'], 'cannot start from points off the object alone')])
def test_what_cannot_be_done_is_refused_with_the_reason(photo, tmp_path, capsys, arguments, message):
    assert run(photo, '--output', tmp_path / 'out', *arguments) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.glob('out/*')]


def test_refusals_for_several_images(scene, photo, tmp_path, capsys):
    (tmp_path / 'other').mkdir()
    save(tmp_path / 'other' / 'photo.jpg', scene.image(3))
    assert run(photo, tmp_path / 'other', '--everything', '--output', tmp_path / 'out') == 2
    assert 'two images are called photo' in capsys.readouterr().err
    save(tmp_path / 'next.png', scene.image(1))
    assert run(photo, tmp_path / 'next.png', '--box', '1,2,30,40', '--output', tmp_path / 'out') == 2
    assert 'which image it is for' in capsys.readouterr().err
    assert run(tmp_path / 'nothing.png', '--everything', '--output', tmp_path / 'out') == 2
    assert 'no such file or folder' in capsys.readouterr().err


def test_a_damaged_image_costs_only_itself(scene, photo, tmp_path, capsys):
    (tmp_path / 'torn.png').write_bytes(photo.read_bytes()[:900])
    box = box_of(scene, 1)
    prompts = '--box', f'{box}@0', '--box', f'{box}@1'
    assert run(tmp_path / 'torn.png', photo, *prompts, '--output', tmp_path / 'out') == 1
    assert f'sam2_segment: {tmp_path / "torn.png"}: ' in capsys.readouterr().err
    assert [*masks(tmp_path / 'out')] == [1]
    assert run(tmp_path / 'torn.png', '--everything', '--output', tmp_path / 'other') == 2
    assert 'torn.png' in capsys.readouterr().err


def test_a_second_run_replaces_the_first(scene, photo, tmp_path):
    output = tmp_path / 'out'
    run(photo, '--box', box_of(scene, 1), '--box', box_of(scene, 2), '--output', output)
    (output / 'photo' / 'notes.txt').write_text("the user's")
    run(photo, '--box', box_of(scene, 2), '--output', output)
    assert sorted(path.name for path in (output / 'photo').iterdir()) == ['1.png', 'notes.txt', 'overlay.jpg']
    assert overlap(masks(output)[1], scene.truth(2, 0)) > 0.8


@pytest.mark.parametrize('content', ['{"shapes": []}', 'no JSON', '[1]',
                                     '{"generator": "sam2_segment", "annotations": [{"mask": "../photo.png"}]}'])
def test_a_json_of_somebody_else_is_not_replaced(scene, photo, tmp_path, capsys, content):
    (tmp_path / 'photo.json').write_text(content)
    assert run(photo, '--box', box_of(scene, 1), '--output', tmp_path) == 2
    assert 'is no result of sam2_segment' in capsys.readouterr().err
    assert (tmp_path / 'photo.json').read_text() == content and photo.exists()


def test_a_low_score_is_told_with_the_cure(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('sam2_core.offline.segment.LOW_SCORE', 1.01)
    assert run(photo, '--points', '70,70', '--output', tmp_path / 'out') == 0
    said = capsys.readouterr().err
    assert 'below 1.01' in said and 'run a better model, --model ' in said
