"""Images in every encoding, padded or not, against references of their own; what is malformed is refused by name."""
import sys
import types

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rosbags.image import message_to_cvimage
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros import conversions
from sam2_ros.conversions import CHANNELS, ImageError, from_pixels, to_duration, to_mask, to_rgb, to_roi

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    """Built byte by byte, not with our own writer; rows are padded with 0xAA."""
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
    pixels = data.draw(pixels_of(CHANNELS[encoding]))
    rgb = to_rgb(message(pixels, encoding, padding))
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, expected_rgb(pixels, encoding))


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'yuv422', 'uyvy', 'yuyv',
                                      'yuv422_yuy2'])
def test_agrees_with_rosbags_image(encoding):
    shape = (24, 36) if CHANNELS[encoding] == 1 else (24, 36, CHANNELS[encoding])
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(to_rgb(message(pixels, encoding, padding=5)),
                                  message_to_cvimage(message(pixels, encoding), 'rgb8'))


@pytest.mark.parametrize(('encoding', 'luma', 'blue', 'red'), [
    ('yuv422', 1, 0, 2), ('uyvy', 1, 0, 2), ('yuyv', 0, 1, 3), ('yuv422_yuy2', 0, 1, 3)])
@given(data=st.data(), padding=st.integers(0, 6))
@settings(max_examples=25)
def test_yuv_follows_the_formula_of_bt601(encoding, luma, blue, red, data, padding):
    pixels = data.draw(pixels_of(2, st.tuples(st.integers(1, 12), st.integers(1, 12).map(lambda w: 2 * w))))
    pairs = pixels.reshape(pixels.shape[0], -1, 4).astype(float)  # two pixels each
    y = np.stack([pairs[..., luma], pairs[..., luma + 2]], -1).reshape(pixels.shape[:2])
    u, v = (np.repeat(pairs[..., which], 2, axis=1) - 128 for which in (blue, red))
    scaled = 1.164 * (y - 16)
    expected = np.stack([scaled + 1.596 * v, scaled - 0.392 * u - 0.813 * v, scaled + 2.017 * u], -1).clip(0, 255)
    rgb = to_rgb(message(pixels, encoding, padding)).astype(float)
    # black and darker may be cut off before or after the colour is added
    bright = y >= 16
    assert np.abs(rgb - expected)[bright].max(initial=0) <= 3


def yuv_image() -> Image:
    return message(np.full((2, 4, 2), 128, np.uint8), 'yuv422')


@pytest.fixture
def choose_decoder_again():
    conversions._yuv_decoder.cache_clear()
    yield
    conversions._yuv_decoder.cache_clear()


def test_a_cv_bridge_built_for_another_numpy_is_passed_over(monkeypatch, choose_decoder_again):
    class CvBridge:
        def imgmsg_to_cv2(self, *_):
            raise AttributeError('_ARRAY_API not found')
    monkeypatch.setitem(sys.modules, 'cv_bridge', types.SimpleNamespace(CvBridge=CvBridge))
    assert (to_rgb(yuv_image()) == 130).all()


def test_without_any_decoder_yuv_is_refused_with_the_cure(monkeypatch, choose_decoder_again):
    for name in ('cv_bridge', 'rosbags.image'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImageError, match='need cv_bridge .* or rosbags-image'):
        to_rgb(yuv_image())


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
    ({'encoding': 'mono16'}, "encoding 'mono16': not supported; publish one of rgb8, bgr8"),
    ({'encoding': 'bayer_rggb8'}, "encoding 'bayer_rggb8'"),
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


@pytest.mark.parametrize('pixels', [PHOTO[..., 0], PHOTO[..., 0].astype(np.uint16) * 257])
def test_grey_png_of_either_depth_becomes_rgb(pixels):
    np.testing.assert_array_equal(to_rgb(compressed('.png', pixels)), np.stack([PHOTO[..., 0]] * 3, -1))


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


def test_a_mask_is_what_is_not_zero():
    pixels = np.array([[0, 1, 255], [2, 0, 0]], np.uint8)
    np.testing.assert_array_equal(to_mask(message(pixels, 'mono8', padding=2)), [[False, True, True],
                                                                                [True, False, False]])
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
