"""Images in every encoding, padded or not, against independent references; malformed images are refused by name."""
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rosbags.image import message_to_cvimage
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.depth.matching import to_metres
from sam2_ros.messages.compressed_images import plain_jpeg
from sam2_ros.messages.conversions import ENCODINGS, ImageError, from_pixels, to_duration, to_mask, to_rgb, to_roi

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    """Return a message built byte by byte, independently of from_pixels, with rows padded with 0xAA."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    image = Image(height=height, width=width, encoding=encoding, step=padded.shape[1])
    image.data.frombytes(padded.tobytes())
    return image


def pixels_of(channels: int, sizes=SIZES):
    return sizes.flatmap(lambda size: arrays.arrays(np.uint8, (*size, channels) if channels > 1 else size))


def expected_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    return {'rgb8': lambda: pixels, 'bgr8': lambda: pixels[..., ::-1], 'rgba8': lambda: pixels[..., :3],
            'bgra8': lambda: pixels[..., 2::-1], 'mono8': lambda: np.stack([pixels] * 3, -1),
            '8UC1': lambda: np.stack([pixels] * 3, -1), '8UC3': lambda: pixels[..., ::-1],
            '8UC4': lambda: pixels[..., 2::-1]}[encoding]()


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', '8UC1', '8UC3', '8UC4'])
@given(data=st.data(), padding=st.integers(0, 17))
@settings(max_examples=40)
def test_every_pixel_arrives_whatever_the_padding(encoding, data, padding):
    pixels = data.draw(pixels_of(ENCODINGS[encoding].channels))
    rgb = to_rgb(message(pixels, encoding, padding))
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, expected_rgb(pixels, encoding))


def test_rgb_without_padding_is_not_copied():
    image = message(np.zeros((4, 6, 3), np.uint8), 'rgb8')
    assert np.shares_memory(to_rgb(image), np.asarray(image.data))


def test_byte_order_does_not_matter_to_bytes():
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    image = message(pixels, 'rgb8')
    image.is_bigendian = 1
    np.testing.assert_array_equal(to_rgb(image), pixels)


def test_the_padding_of_the_last_row_may_be_left_out():
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    image = message(pixels, 'rgb8', padding=7)
    del image.data[-7:]
    np.testing.assert_array_equal(to_rgb(image), pixels)


def change(image: Image, **values) -> Image:
    for name, value in values.items():
        setattr(image, name, value)
    return image


@pytest.mark.parametrize(('values', 'reason'), [
    ({'encoding': 'nv24'}, "encoding 'nv24': not supported; publish one of rgb8, bgr8"),
    ({'encoding': '32FC1'}, 'yuv420; scale it to 8 or 16 bits, without a sign'),
    ({'encoding': '16SC1'}, 'yuv420; scale it to 8 or 16 bits, without a sign'),
    ({'encoding': ''}, "encoding ''"),
    ({'height': 0}, 'image of 5 x 0 pixels'),
    ({'width': 0}, 'image of 0 x 4 pixels'),
    ({'step': 14}, 'step 14: a row of 5 pixels rgb8 has 15 bytes; set step to 15'),
    ({'step': 0}, 'step 0'),
    ({'step': 16}, '60 bytes of data: height 4 times step 16 makes 64'),
    ({'height': 5}, '60 bytes of data: height 5 times step 15 makes 75'),
    ({'height': 3}, '60 bytes of data: height 3 times step 15 makes 45'),
    ({'data': b''}, '0 bytes of data'),
    ({'height': 2**31, 'width': 2**31, 'step': 2**32 - 1}, 'step 4294967295'),
    ({'encoding': 'uyvy', 'step': 10, 'data': b'\0' * 40}, 'width 5 with encoding'),
])
def test_malformed_images_are_refused_with_the_value(values, reason):
    image = change(message(np.zeros((4, 5, 3), np.uint8), 'rgb8'), **values)
    with pytest.raises(ImageError) as caught:
        to_rgb(image)
    assert reason in str(caught.value)


# --- compressed

def compressed(extension: str, pixels: np.ndarray) -> CompressedImage:
    done, data = cv2.imencode(extension, pixels)
    assert done
    image = CompressedImage(format=extension[1:])
    image.data.frombytes(data.tobytes())
    return image


PHOTO = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8), (9, 9), 0)


def test_png_is_exact():
    np.testing.assert_array_equal(to_rgb(compressed('.png', PHOTO[..., ::-1])), PHOTO)


def test_jpeg_is_close():
    assert np.abs(to_rgb(compressed('.jpg', PHOTO[..., ::-1])).astype(int) - PHOTO).mean() < 4


def test_grey_png_becomes_rgb():
    np.testing.assert_array_equal(to_rgb(compressed('.png', PHOTO[..., 0])), np.stack([PHOTO[..., 0]] * 3, -1))


def test_grey_jpeg_becomes_rgb():
    rgb = to_rgb(compressed('.jpg', PHOTO[..., 0]))
    assert rgb.shape == (48, 64, 3)
    assert (rgb == rgb[..., :1]).all()


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('kept', [0, 1, 4, 8, 30, -400, -20, -1])
def test_cut_off_images_are_refused(extension, kept):
    image = compressed(extension, PHOTO)
    del image.data[kept:]
    with pytest.raises(ImageError, match='cut off|not supported|broken'):
        to_rgb(image)


def test_frames_padded_with_zeros_are_whole():
    image = compressed('.jpg', PHOTO)
    image.data.frombytes(b'\0' * 1000)
    assert to_rgb(image).shape == PHOTO.shape


@pytest.mark.parametrize('data', [b'not a picture', b'\x00\x00\x00\x01' + b'h264' * 9, b'\xff\xd8\xff\xd9',
                                  b'\x89PNG\r\n\x1a\n' + b'IEND'])
def test_what_is_no_picture_is_refused(data):
    image = CompressedImage(format='h264')
    image.data.frombytes(data)
    with pytest.raises(ImageError, match='h264'):
        to_rgb(image)


GREY = PHOTO[..., 0]
DEEP = GREY.astype(np.uint16) * 16  # a sensor of 12 bits
REDUCED = 'was reduced to 8 bits before compression, which loses dark or bright areas; publish png'


@pytest.mark.parametrize(('extension', 'pixels', 'declared', 'reason'), [
    ('.png', GREY, '32FC1; png compressed ', "encoding '32FC1': not supported; publish one of rgb8"),
    ('.jpg', GREY, 'yuv444; jpeg compressed ', "encoding 'yuv444': not supported; publish one of rgb8"),
    ('.png', DEEP, 'mono8; png compressed ', 'PNG of 1 channel with 16 bits: contradicts mono8, which has 8'),
    ('.png', DEEP, 'bayer_rggb8; png compressed ', 'contradicts bayer_rggb8, which has 8'),
    ('.png', PHOTO.astype(np.uint16), 'rgb8; png compressed bgr8', 'contradicts rgb8, which has 8'),
    ('.jpg', GREY, 'mono16; jpeg compressed ', f'JPEG of 1 channel with 8 bits: mono16 {REDUCED}'),
    ('.png', GREY, '16UC1; png compressed ', f'16UC1 {REDUCED}'),
    ('.jpg', GREY, 'bayer_rggb16; jpeg compressed ', f'bayer_rggb16 {REDUCED}'),
    ('.jpg', PHOTO, 'rgb16; jpeg compressed ', f'JPEG of 3 channels with 8 bits: rgb16 {REDUCED}'),
    ('.jpg', GREY, 'bayer_rggb8; jpeg compressed bgr8', 'does not hold bayer_rggb8, neither as it is nor converted'),
    ('.jpg', PHOTO, 'bayer_rggb8; jpeg compressed ', 'does not hold bayer_rggb8'),
    ('.jpg', GREY, 'nv12; jpeg compressed ', 'does not hold nv12')])
def test_a_file_that_cannot_hold_what_the_format_says_is_refused(extension, pixels, declared, reason):
    image = compressed(extension, pixels)
    image.format = declared
    with pytest.raises(ImageError) as failure:
        to_rgb(image)
    assert str(failure.value).startswith(f'format {declared!r}: ') and reason in str(failure.value)


@pytest.mark.parametrize('declared', ['png', '', 'rgb8; png compressed bgr8', 'bgr8; png compressed bgr8', 'image/png',
                                      'RGB8; png compressed bgr8', 'yuv422; png compressed bgr8', 'PNG',
                                      '8UC3; png compressed ', 'bayer_rggb8; png compressed bgr8',
                                      'nv21; png compressed bgr8'])
def test_colours_are_right_however_the_format_is_spelt(declared):
    image = compressed('.png', PHOTO[..., ::-1])
    image.format = declared
    np.testing.assert_array_equal(to_rgb(image), PHOTO)


@pytest.mark.parametrize(('pixels', 'declared'), [
    (PHOTO, 'rgb8; png compressed rgb8'), (np.dstack([PHOTO, GREY]), 'rgba8; png compressed rgba8')])
def test_channels_stored_in_the_order_of_rgb_are_not_exchanged(pixels, declared):
    """By CompressedImage.msg, COMPRESSED_PIXFMT is the format given to the codec, which takes the channels for BGR."""
    image = compressed('.png', pixels)
    image.format = declared
    np.testing.assert_array_equal(to_rgb(image), PHOTO)


def test_alpha_is_dropped_as_that_of_raw_images():
    pixels = np.dstack([PHOTO[..., ::-1], GREY])
    image = compressed('.png', pixels)
    image.format = 'bgra8; png compressed bgra8'
    np.testing.assert_array_equal(to_rgb(image), to_rgb(message(pixels, 'bgra8')))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, 'big') + kind + body + zlib.crc32(kind + body).to_bytes(4, 'big')


def png(width: int, bits: int, colour: int, line: bytes, *chunks: tuple[bytes, bytes]) -> CompressedImage:
    """Return a PNG with one line of pixels, written by the specification."""
    data = b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack('>IIBBBBB', width, 1, bits, colour, 0, 0, 0))
    for chunk in (*chunks, (b'IDAT', zlib.compress(b'\0' + line)), (b'IEND', b'')):
        data += png_chunk(*chunk)
    return CompressedImage(format='png', data=data)


@pytest.mark.parametrize(('image', 'expected'), [
    (png(3, 8, 3, bytes([2, 0, 1]), (b'PLTE', bytes([255, 0, 0, 0, 255, 0, 1, 2, 3])), (b'tRNS', bytes([0, 9, 99]))),
     [(1, 2, 3), (255, 0, 0), (0, 255, 0)]),
    (png(4, 2, 3, b'\x1b', (b'PLTE', bytes(range(12)))), [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]),
    (png(3, 1, 0, b'\xa0'), [(255,) * 3, (0,) * 3, (255,) * 3]),
    (png(2, 8, 4, bytes([100, 0, 200, 128])), [(100,) * 3, (200,) * 3])])
def test_png_of_every_kind_of_8_bits_and_less_has_its_colours(image, expected):
    np.testing.assert_array_equal(to_rgb(image)[0], expected)


def exif(orientation: int) -> bytes:
    return (b'II*\0' + struct.pack('<IHHHIHH', 8, 1, 0x112, 3, 1, orientation, 0) + bytes(4))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_never_turns_the_image_of_a_camera(orientation):
    """Calibration, depth and ground truth of a camera belong to the pixels as they are stored."""
    plain = compressed('.jpg', PHOTO)
    data = plain.data.tobytes()
    segment = b'Exif\0\0' + exif(orientation)
    turned = CompressedImage(format='jpeg', data=data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment
                             + data[2:])
    np.testing.assert_array_equal(to_rgb(turned), to_rgb(plain))
    line = bytes(range(12))
    np.testing.assert_array_equal(to_rgb(png(4, 8, 2, line, (b'eXIf', exif(orientation))))[0].ravel(), list(line))
    assert plain_jpeg(turned.data.tobytes() + bytes(5), 'jpeg') == data


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('padding', [b'\0' * 1000, b'\xff' * 100, b'garbage' * 50, b'\xff\xda' + b'old frame' * 9])
def test_what_a_camera_appends_to_a_whole_image_is_ignored(extension, padding):
    image = compressed(extension, PHOTO)
    expected = to_rgb(image)
    image.data.frombytes(padding)
    np.testing.assert_array_equal(to_rgb(image), expected)


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_several_images_in_one_message_are_refused(extension):
    image = compressed(extension, PHOTO)
    image.data.frombytes(bytes(3) + compressed(extension, PHOTO).data.tobytes())
    with pytest.raises(ImageError, match='several images in one message: publish a message for each'):
        to_rgb(image)


def test_an_animated_png_is_refused():
    with pytest.raises(ImageError, match=r'several images in one message \(an animated PNG\)'):
        to_rgb(png(1, 8, 0, b'a', (b'acTL', bytes([0, 0, 0, 2, 0, 0, 0, 0]))))


def with_jpeg_size(height: int, width: int, channels: int = 3) -> CompressedImage:
    image = compressed('.jpg', PHOTO)
    data = image.data.tobytes()
    at = data.index(b'\xff\xc0') + 5
    return CompressedImage(format='jpeg', data=data[:at] + struct.pack('>HHB', height, width, channels) + data[at + 5:])


@pytest.mark.parametrize(('image', 'reason'), [

    (with_jpeg_size(65_500, 65_500), 'JPEG of 65500 x 65500 pixels: must have at most 160,000,000'),
    (with_jpeg_size(0, 64), 'JPEG of 64 x 0 pixels: both must be at least 1'),
    (with_jpeg_size(48, 64, 4), r'JPEG of 4 channels \(CMYK\): not supported'),
    (CompressedImage(format='16UC1; compressedDepth png', data=bytes(12) + b'\x89PNG'), 'a depth image: set the image'),
    (CompressedImage(format='webp', data=b'RIFF\x10\0\0\0WEBPVP8 '), r'\(WebP\): not supported; publish jpeg or png'),
    (CompressedImage(format='tiff', data=b'II*\0' + bytes(20)), r'\(TIFF\): not supported; publish jpeg or png'),
    (CompressedImage(format='jpeg'), 'no data: not supported; publish jpeg or png')])
def test_files_that_are_no_image_of_a_camera_are_refused_with_what_they_are(image, reason):
    with pytest.raises(ImageError, match=reason):
        to_rgb(image)


def test_a_small_file_that_claims_to_be_huge_is_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
    data = b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0))
    data += png_chunk(b'IDAT', zlib.compress(bytes(1000))) + png_chunk(b'IEND', b'')
    with pytest.raises(ImageError, match='PNG of 60000 x 60000 pixels: must have at most'):
        to_rgb(CompressedImage(format='png', data=data))


# --- random damage

def damaged_file(rng: np.random.Generator, files: list[tuple[str, bytes]]) -> CompressedImage:
    declared, whole = files[rng.integers(len(files))]
    data = bytearray(whole)
    match rng.integers(6):
        case 0:
            data = data[:rng.integers(len(data))]
        case 1 | 2:
            for _ in range(rng.integers(1, 12)):
                data[rng.integers(len(data))] = rng.integers(256)
        case 3:
            data += rng.integers(0, 256, rng.integers(200), np.uint8).tobytes()
        case 4:
            start = rng.integers(2, len(data))
            del data[start:start + rng.integers(1, 40)]
        case 5:
            data = data[:rng.integers(2, len(data))] + data[-rng.integers(1, 20):]
    if whole.startswith(b'\x89PNG') and rng.random() < 0.7:  # with valid checksums, the decoder must find the damage
        at = 8
        while at + 12 <= len(data):
            stop = at + 12 + int.from_bytes(data[at:at + 4], 'big')
            if stop > len(data):
                break
            data[stop - 4:stop] = zlib.crc32(data[at + 4:stop - 4]).to_bytes(4, 'big')
            at = stop
    if rng.random() < 0.2:
        declared = str(rng.choice(['', ';', 'rgb8', 'mono16; png compressed ', 'bayer_rggb8; jpeg compressed bgr8',
                                   'x;y', '; compressed', 'rgb8; compressed rgb8', 'compressedDepth']))
    return CompressedImage(format=declared, data=bytes(data))


def damaged_image(rng: np.random.Generator) -> Image:
    encoding = str(rng.choice(['mono8', '16UC1', '32FC1'] if rng.random() < 0.3 else [*ENCODINGS, '32FC1', '', 'x']))
    size = ENCODINGS[encoding].size if encoding in ENCODINGS else 4
    height, width = (int(rng.choice([0, 1, 2, 3, 7, 8, 2**31, 2**32 - 1], p=[.05, .15, .2, .2, .2, .18, .01, .01]))
                     for _ in range(2))
    step = min(max(0, width * size + int(rng.choice([0, 0, 0, 3, -1, 2**20]))), 2**32 - 1)
    length = min(max(0, step * height + int(rng.choice([0, 0, 0, -3, 5, -step]))), 4096)
    data = rng.integers(0, 256, length, np.uint8)
    if rng.random() < 0.8:  # a mask
        data = np.where(data > 127, np.uint8(255), np.uint8(0))
    return Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=int(rng.integers(3)),
                 data=data.tobytes())


def outcomes(convert, inputs) -> tuple[int, int]:
    """Return the number of inputs that are converted, and of those that are refused with an ImageError."""
    done = refused = 0
    for item in inputs:
        try:
            assert convert(item).size
            done += 1
        except ImageError as error:
            assert str(error)
            refused += 1
    return done, refused


@pytest.mark.fuzz
def test_damaged_files_are_decoded_or_refused(rounds):
    small = cv2.resize(PHOTO, (20, 14))
    files = [('rgb8; jpeg compressed bgr8', compressed('.jpg', small)), ('png', compressed('.png', small)),
             ('mono8; jpeg compressed ', compressed('.jpg', small[..., 0])), ('png', compressed('.png', small[..., 0])),
             ('png', png(3, 8, 3, bytes([2, 0, 1]), (b'PLTE', bytes(9)), (b'eXIf', exif(6))))]
    files = [(declared, image.data.tobytes()) for declared, image in files]
    deep, mosaic = small.astype(np.uint16) * 200, small[..., 1]
    files += [(declared, compressed('.png', pixels).data.tobytes()) for declared, pixels in (
        ('mono16; png compressed ', deep[..., 0]), ('png', deep), ('bayer_rggb16; png compressed ', deep[..., 1]),
        ('bayer_grbg8; png compressed ', mosaic))]
    files.append(('jpeg', cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()))
    rng, count = np.random.default_rng(5), rounds(2_000, 200_000)
    done, refused = outcomes(to_rgb, (damaged_file(rng, files) for _ in range(count)))
    assert done + refused == count and min(done, refused) > count / 10


@pytest.mark.fuzz
@pytest.mark.parametrize('convert', [to_rgb, to_mask, lambda image: to_metres(image, 0.1, 10.0)[0]],
                         ids=['to_rgb', 'to_mask', 'to_metres'])
def test_damaged_messages_are_converted_or_refused(rounds, convert):
    rng, count = np.random.default_rng(6), rounds(2_000, 200_000)
    done, refused = outcomes(convert, (damaged_image(rng) for _ in range(count)))
    assert done + refused == count and min(done, refused) > count / 50


# --- outgoing

@pytest.mark.parametrize(('encoding', 'dtype', 'channels'), [('rgb8', np.uint8, 3), ('mono8', np.uint8, 1),
                                                             ('mono16', np.uint16, 1)])
@given(data=st.data())
@settings(max_examples=30)
def test_what_we_write_others_read(encoding, dtype, channels, data):
    shape = data.draw(SIZES)
    pixels = data.draw(arrays.arrays(dtype, (*shape, channels) if channels > 1 else shape))
    header = Header(frame_id='camera')
    image = from_pixels(pixels, encoding, header)
    assert (image.height, image.width, image.step) == (*shape, shape[1] * pixels.itemsize * channels)
    assert image.header == header and image.is_bigendian == (sys.byteorder == 'big')
    np.testing.assert_array_equal(message_to_cvimage(image), pixels)


def test_a_cut_out_is_written_without_its_surroundings():
    whole = np.arange(100, dtype=np.uint8).reshape(10, 10)
    image = from_pixels(whole[2:5, 3:7], 'mono8', Header())
    np.testing.assert_array_equal(np.asarray(image.data).reshape(3, 4), whole[2:5, 3:7])


@given(pixels=pixels_of(3))
@settings(max_examples=30)
def test_round_trip(pixels):
    np.testing.assert_array_equal(to_rgb(from_pixels(pixels, 'rgb8', Header())), pixels)


@pytest.mark.parametrize('high', [1, 255])
def test_a_mask_has_zero_and_one_other_value(high):
    pixels = np.array([[0, high, high], [high, 0, 0]], np.uint8)
    np.testing.assert_array_equal(to_mask(message(pixels, 'mono8', padding=2)), [[False, True, True],
                                                                                [True, False, False]])


@pytest.mark.parametrize('pixels', [[[0, 1, 255]], [[0, 2, 0]], [[0, 9, 9]], [[1, 254, 255]]])
def test_a_mask_of_other_values_is_refused_with_them(pixels):
    with pytest.raises(ImageError, match='mask with the values .*threshold it'):
        to_mask(message(np.array(pixels, np.uint8), 'mono8', padding=2))


def test_a_mask_in_colours_is_refused():
    with pytest.raises(ImageError, match="mask with encoding 'rgb8': must be mono8"):
        to_mask(message(np.zeros((2, 2, 3), np.uint8), 'rgb8'))


def test_boxes():
    assert to_roi((3, 4, 10, 6)) == RegionOfInterest(x_offset=3, y_offset=4, width=7, height=2)
    assert to_roi(None).width == 0


@given(st.integers(-2**62, 2**62))
def test_durations_keep_their_length(nanoseconds):
    duration = to_duration(nanoseconds)
    limit = (2**31 - 1) * 10**9
    if abs(nanoseconds) <= limit:
        assert duration.sec * 10**9 + duration.nanosec == nanoseconds
    assert 0 <= duration.nanosec < 10**9
