"""Files are read in the order of their numbers and through links, and images in the orientation of their labels."""
import os
import random
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_core.datasets import BrokenSample, open_recordings
from sam2_core.datasets.exif import orientation, upright
from sam2_core.datasets.image_files import decode_image, read_image, read_labels
from sam2_core.files import (
    OrderError,
    files_in,
    folders_below,
    frames_in_order,
    not_one_sequence,
)
from testing.dataset_files import chunk, davis_clip, indexed_png, jpeg, scene


def ordered(*names):
    return [path.name for path in frames_in_order(map(Path, names))]


# --- order

@given(numbers=st.sets(st.integers(-10 ** 12, 10 ** 12), min_size=1), width=st.integers(0, 8), seed=st.integers(0, 99),
       prefix=st.sampled_from(['', 'frame_', 'a=', 'x ']))
def test_frames_are_in_the_order_of_their_numbers_however_many_digits_they_have(numbers, prefix, width, seed):
    names = [f'{prefix}{number:0{random.Random(seed + number).randint(0, width)}}.jpg' for number in numbers]
    assert ordered(*random.Random(seed).sample(names, len(names))) == [
        name for _, name in sorted(zip(numbers, names, strict=True))]


@pytest.mark.parametrize(('names', 'order'), [
    ('0 1 10 11 2', '0 1 2 10 11'), ('cam2_10 cam2_9 cam10_1', 'cam2_9 cam2_10 cam10_1'), ('-1 -10 0 1', '-10 -1 0 1'),
    ('2024-01-09 2024-01-10 2023-12-31', '2023-12-31 2024-01-09 2024-01-10'), ('b a c', 'a b c'),
    ('Frame2 frame10 FRAME1', 'FRAME1 Frame2 frame10'), ('٣ ١٠ ١', '١ ٣ ١٠'), ('x² x10 x9', 'x9 x10 x²'),
    ('1700000003.25 1700000003.50 1700000002.75', '1700000002.75 1700000003.25 1700000003.50')])
def test_order_of_odd_names(names, order):
    assert ordered(*(f'{name}.png' for name in names.split())) == [f'{name}.png' for name in order.split()]


@pytest.mark.parametrize(('names', 'named'), [
    (('1.jpg', '001.jpg', '2.jpg'), '001.jpg and 1.jpg'), (('00001.jpg', '00001.png'), '00001.jpg and 00001.png'),
    (('a1.jpg', 'A1.JPG'), 'A1.JPG and a1.jpg'), (('1.jpg', '١.jpg'), '1.jpg and ١.jpg'),
    (('5.9.png', '5.10.png'), '5.9.png and 5.10.png: their order depends'),
    (('t1.2.png', 't1.175.png'), 't1.2.png and t1.175')])
def test_files_whose_order_cannot_be_known_are_refused_by_name(names, named):
    with pytest.raises(OrderError, match=named):
        ordered(*names)


@pytest.mark.parametrize(('stems', 'reason'), [
    ('0 1 10', None), ('img_1_a img_2_a', None), ('2024-01-01 2024-02-01', None), ('7', None),
    ('cat dog', 'cat and dog'), ('left_1 left_2 right_1', 'left_2 and right_1'), ('a', None),
    ('cam1_1 cam1_2 cam2_1 cam2_2', 'cam1_1 and cam2_1 each start a series'),
    (' '.join(f'10-{hour:02}-{minute:02}' for hour in (7, 8) for minute in range(60)), None)])
def test_names_show_whether_files_are_one_sequence(stems, reason):
    found = not_one_sequence(stems.split())
    assert found is None if reason is None else reason in found


def test_frames_and_labels_of_few_digits_become_one_clip_in_order(data, skipped):
    davis_clip(data, 'cup', frames=12)
    for folder in ('JPEGImages/cup', 'Annotations/cup'):
        for path in (data / folder).iterdir():
            path.rename(path.with_name(str(int(path.stem)) + path.suffix.upper()))
        (data / folder / '._3.png').write_bytes(b'of another file system')
        (data / folder / '.DS_Store').write_bytes(b'')
    clip, = open_recordings(data, skipped)
    assert [int(image.stem) for image, _ in clip.frames] == list(range(12))
    for frame, masks in zip((2, 10), clip.read([2, 10]).masks, strict=True):
        np.testing.assert_array_equal(masks[0], scene(frame)[1] == 1)
    assert not skipped.all() and not skipped.doubts()


# --- folders

def test_linked_folders_are_entered_once_and_circles_end(tmp_path):
    (tmp_path / 'real' / 'deep').mkdir(parents=True)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / '.hidden').mkdir()
    os.symlink(tmp_path / 'real', tmp_path / 'data' / 'link')
    os.symlink(tmp_path / 'real', tmp_path / 'data' / 'link2')
    os.symlink('..', tmp_path / 'real' / 'deep' / 'circle')
    os.symlink('nowhere', tmp_path / 'data' / 'gone')
    noticed = {}
    found = [str(path.relative_to(tmp_path)) for path in folders_below(
        tmp_path / 'data', lambda path, reason: noticed.setdefault(path.name, reason))]
    assert found == ['data', 'data/link', 'data/link/deep']
    assert set(noticed) == {'link2', 'gone'}
    assert 'link to nowhere' in noticed['gone'] and 'the same folder as' in noticed['link2']
    (tmp_path / 'real' / 'a.JPG').touch()
    (tmp_path / 'real' / 'b.jpg').mkdir()
    assert [path.name for path in files_in(tmp_path / 'real', {'.jpg'})] == ['a.JPG']


# --- orientation

def tiff(value, order='<', kind=3, before=1):
    """Return a TIFF structure whose first directory has an orientation after other tags."""
    tags = [struct.pack(f'{order}HHII', 0x0100 + i, 4, 1, 7) for i in range(before)]
    number = struct.pack(order + ('I' if kind == 4 else 'HH'), *((value,) if kind == 4 else (value, 0)))
    tags.append(struct.pack(f'{order}HHI', 0x0112, kind, 1) + number)
    return struct.pack(f'{order}2sHIH', b'II' if order == '<' else b'MM', 42, 8, len(tags)) + b''.join(tags) + bytes(4)


def jpeg_with(blob, image):
    data, body = jpeg(image), b'Exif\0\0' + blob
    other = b'\xff\xe1' + struct.pack('>H', 22) + b'http://ns.adobe.com/'  # XMP has the same kind of segment
    return data[:2] + other + b'\xff\xe1' + struct.pack('>H', 2 + len(body)) + body + data[2:]


def png_with(blob, image):
    data = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
    return data[:33] + chunk(b'eXIf', blob) + data[33:]


def webp_with(blob, image):
    data = cv2.imencode('.webp', image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    exif = b'EXIF' + struct.pack('<I', len(blob)) + blob + bytes(len(blob) & 1)
    return b'RIFF' + struct.pack('<I', len(data) - 8 + len(exif)) + data[8:] + exif


@pytest.mark.parametrize('make', [jpeg_with, png_with])
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('value', range(1, 9))
def test_images_are_rotated_as_opencv_rotates_them(make, order, value):
    data = make(tiff(value, order), scene(0)[0])
    assert orientation(data) == value
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(upright(decode_image(data, 'x'), value), shown)
    assert orientation(webp_with(tiff(value, order), scene(0)[0])) == value


@pytest.mark.parametrize('blob', [tiff(0), tiff(9), tiff(3, kind=2), b'', b'II*\0', tiff(6)[:20], b'JJ' + tiff(6)[2:],
                                  struct.pack('<2sHI', b'II', 42, 2 ** 32 - 1)])
def test_an_invalid_orientation_counts_as_none(blob):
    for make in (jpeg_with, png_with, webp_with):
        assert orientation(make(blob, scene(0)[0])) == 1


@pytest.mark.fuzz
def test_damaged_headers_give_a_valid_orientation(rounds):
    rng = random.Random(0)
    image = scene(0, 16, 24)[0]
    whole = [make(tiff(6, order, kind), image)[:400] for make in (jpeg_with, png_with, webp_with) for order in '<>'
             for kind in (3, 4)] + [tiff(6), tiff(6, '>')]
    seen = set()
    for _ in range(rounds(2000, 200_000)):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(0, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 6, 0xff, rng.randrange(256)))
        seen.add(orientation(bytes(data[:rng.choice((len(data), rng.randrange(len(data) + 1)))])))
    assert {1, 6} <= seen <= set(range(1, 9))


def photo(folder, value, labels_like, side=None):
    """Write a photo with an orientation, and labels that were drawn on it as stored or as shown."""
    image, labels = scene(0, *((side, side) if side else ()))
    if labels_like == 'shown':
        labels = upright(labels, value)
    davis_clip(folder, 'clip', frames=1)
    (folder / 'JPEGImages' / 'clip' / '00000.jpg').write_bytes(jpeg_with(tiff(value), image))
    (folder / 'Annotations' / 'clip' / '00000.png').write_bytes(indexed_png(labels))
    return image, labels


@pytest.mark.parametrize('value', [5, 6, 7, 8])
@pytest.mark.parametrize('labels_like', ['stored', 'shown'])
def test_a_photo_is_rotated_if_its_labels_fit_only_then(data, skipped, value, labels_like):
    image, labels = photo(data, value, labels_like)
    clip, = open_recordings(data, skipped)
    read = clip.read([0])
    expected = upright(image, value) if labels_like == 'shown' else image
    assert np.median(np.abs(read.images[0].astype(int) - expected)) <= 4
    np.testing.assert_array_equal(read.masks[0][0], labels == 1)
    assert read.images[0][labels == 1].mean(axis=0)[0] > 200  # the disc is red


@pytest.mark.parametrize(('value', 'side'), [(2, None), (3, None), (4, None), (6, 96), (8, 96), (3, 96)])
def test_a_photo_whose_labels_fit_both_ways_is_refused(data, skipped, value, side):
    photo(data, value, 'shown', side)
    clip, = open_recordings(data, skipped)
    with pytest.raises(BrokenSample, match=f'00000.jpg: EXIF orientation {value}: .*cannot be known'):
        clip.read([0])


# --- pixels

def encoded(suffix, pixels):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def cmyk(data):
    """Return a JPEG with four components in its frame header."""
    at = data.index(b'\xff\xc0')
    return data[:at + 9] + b'\4' + data[at + 10:]


GREY = scene(0)[0][..., 0]
CLEAR = np.dstack([scene(0)[0], np.where(GREY > 100, 255, 90).astype(np.uint8)])


@pytest.mark.parametrize(('data', 'reason'), [
    (encoded('.png', GREY.astype(np.uint16) * 16), 'image of 16 bits per channel.*np.clip'),
    (encoded('.png', scene(0)[0].astype(np.uint16)), 'image of 16 bits per channel'),
    (encoded('.tiff', GREY.astype(np.uint16)), 'image of 16 bits per channel'),
    (encoded('.tiff', GREY.astype(np.float32)), 'image of 32 bits per channel'),
    (encoded('.png', CLEAR), 'transparent pixels'), (cmyk(jpeg(scene(0)[0])), 'CMYK'),
    (b'\0\0\0\x18ftypheic' + bytes(40), 'HEIF or AVIF'), (tiff(6), 'TIFF with orientation 6')])
def test_images_whose_pixels_would_change_are_refused(tmp_path, data, reason):
    (tmp_path / 'x').write_bytes(data)
    with pytest.raises(BrokenSample, match=f'x: .*{reason}'):
        read_image(tmp_path / 'x')


@pytest.mark.parametrize('data', [
    encoded('.png', scene(0)[0][..., ::-1]), encoded('.bmp', scene(0)[0][..., ::-1]),
    encoded('.tiff', scene(0)[0][..., ::-1]), encoded('.png', np.dstack([scene(0)[0][..., ::-1], GREY * 0 + 255])),
    encoded('.webp', scene(0)[0][..., ::-1]), jpeg(scene(0)[0]) + b'\xff\xda motion photo' + bytes(100)])
def test_images_of_eight_bits_are_read_from_any_format_and_with_data_behind_the_file(tmp_path, data):
    (tmp_path / 'x').write_bytes(data)
    assert np.median(np.abs(read_image(tmp_path / 'x').astype(int) - scene(0)[0])) <= 4


def test_grey_images_are_read(tmp_path):
    (tmp_path / 'x').write_bytes(encoded('.tiff', GREY))
    np.testing.assert_array_equal(read_image(tmp_path / 'x'), np.repeat(GREY[..., None], 3, axis=2))


def soft():
    edge = cv2.GaussianBlur((scene(0)[1] == 1).astype(np.uint8) * 255, (5, 5), 0)
    return encoded('.png', edge)


@pytest.mark.parametrize(('data', 'reason'), [
    (indexed_png(np.where(scene(0)[1] == 1, 255, 0).astype(np.uint8)), 'no index but 255.*object or void'),
    (soft(), 'soft edges'), (encoded('.png', CLEAR), 'colour PNG with transparency'),
    (jpeg(scene(0)[0]), 'not a PNG')])
def test_ambiguous_labels_are_refused(tmp_path, data, reason):
    (tmp_path / 'x.png').write_bytes(data)
    with pytest.raises(BrokenSample, match=f'x.png: .*{reason}'):
        read_labels(tmp_path / 'x.png')


def test_transparency_does_not_change_grey_labels(tmp_path):
    data = encoded('.png', scene(0)[1])
    (tmp_path / 'x.png').write_bytes(data[:33] + chunk(b'tRNS', b'\0\3') + data[33:])
    np.testing.assert_array_equal(read_labels(tmp_path / 'x.png'), scene(0)[1])
