"""Folders of pictures and TIFF stacks as frames."""
import cv2
import numpy as np
import pytest

from sam2_core.offline import pictures
from sam2_core.offline.frames import FrameError, UnreadableFrame
from sam2_core.offline.sources import open_frames
from testing.dataset_files import jpeg, scene

VALUES = [np.linspace(500 * page, 500 * page + 4000, 24 * 32).reshape(24, 32).astype(np.uint16) for page in range(5)]


def write(path, image):
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def test_pictures_are_frames_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100, 1):
        write(tmp_path / f'img{number}.png', scene(number)[0])
    (tmp_path / 'notes.txt').write_text('no frame')
    (tmp_path / '.hidden.png').write_bytes(b'')
    source = open_frames(tmp_path)
    assert [source.frame_name(frame) for frame in range(len(source))] == ['img1', 'img9', 'img10', 'img100']
    for frames in (range(4), range(3, -1, -1), range(2, 0, -1)):
        read = list(source.read(frames))
        assert [frame for frame, _ in read] == list(frames)
        for frame, image in read:
            np.testing.assert_array_equal(image, scene((1, 9, 10, 100)[frame])[0])


def test_photos_are_rotated_as_viewers_show_them(tmp_path):
    image = scene(0)[0]
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'  # orientation 6
    data = jpeg(image)
    (tmp_path / '0.jpg').write_bytes(data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:])
    (_, found), = open_frames(tmp_path).read(range(1))
    viewed = cv2.imread(str(tmp_path / '0.jpg'))[..., ::-1]  # OpenCV rotates as viewers do
    assert found.shape == (image.shape[1], image.shape[0], 3)
    np.testing.assert_array_equal(found, viewed)


def scaled(values, low, high):
    return np.floor(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 + 0.5)


@pytest.mark.parametrize('suffix', ['.tif', '.png'])
def test_slices_of_16_bits_are_scaled_by_one_range(tmp_path, suffix):
    for page, values in enumerate(VALUES):
        write(tmp_path / f'{page}{suffix}', values)
    lines = []
    source = open_frames(tmp_path, notice=lines.append)
    low, high = np.percentile(np.stack(VALUES), (0.1, 99.9))
    for page, image in source.read(range(5)):
        assert np.abs(image.astype(float) - scaled(VALUES[page], low, high)[..., None]).max() <= 1
        assert (image == image[..., :1]).all()
    assert len(lines) == 1
    assert f'values from {low:g} to {high:g} become 0 to 255' in lines[0]


def test_a_given_range_is_used(tmp_path):
    for page, values in enumerate(VALUES):
        write(tmp_path / f'{page}.tif', values)
    for page, image in open_frames(tmp_path, (1000, 3000)).read(range(5)):
        np.testing.assert_allclose(image[..., 0], scaled(VALUES[page], 1000, 3000), atol=1)


@pytest.mark.parametrize('in_folder', [False, True])
@pytest.mark.parametrize('block_bytes', [1, 2 * VALUES[0].nbytes, 1 << 20])
def test_pages_of_a_stack_are_frames(tmp_path, in_folder, block_bytes, monkeypatch):
    monkeypatch.setattr(pictures, 'BLOCK_BYTES', block_bytes)
    path = tmp_path / 'stack.tif'
    cv2.imwritemulti(str(path), VALUES)
    expected = list(VALUES)
    if in_folder:
        write(tmp_path / 'stack2.tif', VALUES[0] + 7)
        expected.append(VALUES[0] + 7)
    source = open_frames(tmp_path if in_folder else path, (0, 6500))
    assert len(source) == len(expected)
    for frames in (range(len(expected)), range(len(expected) - 1, -1, -1), range(1, 4), range(3, 0, -1)):
        read = list(source.read(frames))
        assert [frame for frame, _ in read] == list(frames)
        for frame, image in read:
            np.testing.assert_allclose(image[..., 0], scaled(expected[frame], 0, 6500), atol=1)
    assert source.frame_name(1) == ('stack_00001' if in_folder else '00001')


def test_values_that_are_not_numbers_are_black(tmp_path):
    values = np.linspace(-1, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    values[3, 4], values[5, 6] = np.nan, np.inf
    write(tmp_path / '0.tif', values)
    (_, image), = open_frames(tmp_path, (-1, 1)).read(range(1))
    assert (image[3, 4, 0], image[5, 6, 0], image[-1, -1, 0]) == (0, 255, 255)


def test_a_constant_stack_is_black(tmp_path):
    write(tmp_path / '0.tif', np.full((24, 32), 700, np.uint16))
    assert not next(iter(open_frames(tmp_path).read(range(1))))[1].any()


def test_a_picture_that_cannot_be_read_keeps_its_number(tmp_path):
    for number in range(4):
        (tmp_path / f'{number}.jpg').write_bytes(jpeg(scene(number)[0]))
    (tmp_path / '1.jpg').write_bytes((tmp_path / '1.jpg').read_bytes()[:500])
    read = dict(open_frames(tmp_path).read(range(4)))
    assert isinstance(read[1], UnreadableFrame)
    assert str(read[1]) == 'frame 1: 1.jpg: JPEG is cut off'
    assert sum(isinstance(image, np.ndarray) for image in read.values()) == 3


def test_pictures_of_other_kinds_are_named(tmp_path):
    write(tmp_path / '0.png', scene(0)[0])
    write(tmp_path / '1.png', VALUES[0])
    read = dict(open_frames(tmp_path).read(range(2)))
    assert 'pixels of type uint16, but the first picture has 8 bits' in str(read[1])


@pytest.mark.parametrize('names, reason', [
    ((), 'no JPEG, PNG or TIFF in it; give the folder'),
    (('1.png', '001.png'), '001.png and 1.png are two files for one frame'),
])
def test_a_folder_that_is_no_sequence_is_refused(tmp_path, names, reason):
    for name in names:
        write(tmp_path / name, scene(0)[0])
    with pytest.raises(FrameError, match=reason):
        open_frames(tmp_path)


def test_two_frames_of_one_name_are_refused(tmp_path):
    cv2.imwritemulti(str(tmp_path / 'stack.tif'), VALUES)
    write(tmp_path / 'stack_00001.tif', VALUES[0])
    with pytest.raises(FrameError, match='2 frames would be called stack_00001 in the results; rename a file'):
        open_frames(tmp_path)


def test_a_folder_of_damaged_pictures_and_a_range_for_8_bits_are_refused(tmp_path):
    (tmp_path / '0.png').write_bytes(b'no picture')
    with pytest.raises(FrameError, match='not one of 1 pictures can be read; the first: frame 0: 0.png: not an image'):
        open_frames(tmp_path)
    write(tmp_path / '0.png', scene(0)[0])
    with pytest.raises(FrameError, match='range 0,9: the pictures have 8 bits'):
        open_frames(tmp_path, (0, 9))
    (tmp_path / 'x.tif').write_bytes(b'no picture')
    with pytest.raises(FrameError, match='x.tif: not a TIFF that can be decoded'):
        open_frames(tmp_path / 'x.tif')
