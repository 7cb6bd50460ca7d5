"""Every encoding against arithmetic written from its definition, in both byte orders, padded or not, and compressed.

docs/reference/node.md states the largest differences that these tests permit.
"""
import sys
import types

import cv2
import numpy as np
import pytest
from rosbags.image import message_to_cvimage
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.messages import bridge
from sam2_ros.messages.conversions import ImageError, to_rgb
from sam2_ros.messages.encodings import ENCODINGS, PLANAR_YUV
from sam2_ros.messages.intensity import FULL_RANGE, IntensityRange
from testing.encoded_images import mosaic_of

HEIGHT, WIDTH = 24, 36
RANDOM = np.random.default_rng(3)
BAYER = [f'bayer_{order}' for order in ('rggb', 'bggr', 'gbrg', 'grbg')]


def raw(rows: np.ndarray, encoding: str, height: int, width: int, padding: int = 0, big: bool = False) -> Image:
    """Return a message from rows of bytes or 16-bit values, padded with 0xAA."""
    if rows.dtype == np.uint16:
        rows = rows.astype('>u2' if big else '<u2')
    rows = np.ascontiguousarray(rows.reshape(len(rows), -1)).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1], is_bigendian=int(big))
    message.data.frombytes(rows.tobytes())
    return message


def image(pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False) -> Image:
    return raw(pixels, encoding, *pixels.shape[:2], padding, big)


def png(pixels: np.ndarray, declared: str) -> CompressedImage:
    return CompressedImage(format=declared, data=cv2.imencode('.png', pixels)[1].tobytes())


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.dtype == np.uint8 and a.shape == b.shape
    return np.abs(a.astype(float) - b).max()


def deep(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 65536, (HEIGHT, WIDTH, *shape), np.uint16)


# --- 16 bits

COLOURS = {'rgb16': [0, 1, 2], 'bgr16': [2, 1, 0], 'rgba16': [0, 1, 2], 'bgra16': [2, 1, 0], '16UC3': [2, 1, 0],
           '16UC4': [2, 1, 0]}


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('encoding', COLOURS)
def test_16_bit_colour_is_scaled_by_its_full_range(encoding, big):
    pixels = deep(ENCODINGS[encoding].channels)
    expected = np.rint(pixels[..., COLOURS[encoding]] / 257.0)
    assert largest_difference(to_rgb(image(pixels, encoding, padding=6, big=big)), expected) == 0


def test_all_65536_values_are_rounded_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257.0)
    assert largest_difference(to_rgb(image(values, 'mono16'), FULL_RANGE)[..., 0], expected) == 0


@pytest.mark.parametrize('given', [(0, 4095), (100, 101), (21_000, 24_500), (65_534, 65_535), (1, 65_535)])
@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
def test_a_given_range_becomes_black_to_white(encoding, big, given):
    low, high = given
    values = np.concatenate([RANDOM.integers(0, 65536, 900), RANDOM.integers(low, high + 1, 900)]).astype(np.uint16)
    expected = np.clip((values.astype(float) - low) * 255 / (high - low), 0, 255).reshape(45, 40)
    rgb = to_rgb(image(values.reshape(45, 40), encoding, 4, big), IntensityRange(low, high))
    assert (rgb == rgb[..., :1]).all()
    assert np.abs(rgb[..., 0] - expected).max() <= 0.501


def test_a_given_range_holds_for_colour_and_bayer_too():
    """Sensors of 12 bits often publish 0 to 4095."""
    for encoding, channels in (('rgb16', 3), ('bayer_rggb16', 1)):
        pixels = np.full((HEIGHT, WIDTH, channels), 2048, np.uint16)
        assert (to_rgb(image(pixels, encoding), IntensityRange(0, 4095)) == 128).all()
        assert (to_rgb(image(pixels, encoding)) == 8).all()


def test_without_a_range_a_grey_image_has_contrast_whatever_its_values():
    values = RANDOM.normal(22_000, 300, (HEIGHT, WIDTH)).clip(0, 65535).astype(np.uint16)
    grey = to_rgb(image(values, 'mono16'))[..., 0].astype(int)
    assert grey.min() < 50 and grey.max() > 205
    order = np.argsort(values.ravel(), kind='stable')
    assert (np.diff(grey.ravel()[order]) >= 0).all()


# --- Bayer

def colour_of(order: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the channel, 0 to 2, that the sensor sees at each pixel."""
    return np.array(['rgb'.index(letter) for letter in order])[2 * (rows % 2) + columns % 2]


def bilinear(mosaic: np.ndarray, order: str) -> np.ndarray:
    """Return the mean of the nearest pixels of each colour, of a mosaic that is mirrored at its edges; float."""
    height, width = mosaic.shape
    rows, columns = np.indices((height + 2, width + 2)) - 1
    colours = colour_of(order, rows, columns)
    mirrored = np.pad(mosaic.astype(float), 1, 'reflect')
    result = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            values, found = mirrored[y:y + 3, x:x + 3], colours[y:y + 3, x:x + 3]
            for channel in range(3):
                if found[1, 1] == channel:
                    result[y, x, channel] = values[1, 1]
                    continue
                near = [(1, 0), (1, 2), (0, 1), (2, 1)]  # neighbours in the row and the column, else the corners
                chosen = [values[at] for at in near if found[at] == channel] or [
                    values[at] for at in ((0, 0), (0, 2), (2, 0), (2, 2))]
                result[y, x, channel] = np.mean(chosen)
    return result


@pytest.mark.parametrize('size', [(14, 18), (15, 17), (2, 2), (3, 2)])
@pytest.mark.parametrize('name', BAYER)
def test_bayer_is_bilinear_up_to_the_edges(name, size):
    mosaic = RANDOM.integers(0, 256, size, np.uint8)
    expected = np.floor(bilinear(mosaic, name[-4:]) + 0.5)
    assert largest_difference(to_rgb(image(mosaic, f'{name}8', padding=3)), expected) == 0


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('name', BAYER)
def test_bayer_of_16_bits_is_bilinear_within_one_level(name, big):
    mosaic = RANDOM.integers(0, 65536, (14, 18), np.uint16)
    expected = bilinear(mosaic, name[-4:]) * 255 / 65535
    assert largest_difference(to_rgb(image(mosaic, f'{name}16', 2, big)), expected) <= 1


@pytest.mark.parametrize('name', BAYER)
def test_a_scene_of_linear_colours_is_recovered(name):
    """Bilinear interpolation is exact on a slope, in the inner pixels."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    truth = np.stack([20 + 4 * columns, 200 - 6 * rows, 60 + 2 * rows + 2 * columns], -1).astype(np.uint8)
    found = to_rgb(image(mosaic_of(truth, name[-4:]), f'{name}8'))
    assert largest_difference(found[1:-1, 1:-1], truth[1:-1, 1:-1]) == 0
    assert largest_difference(found, truth) <= 8  # at the edges the slope is mirrored


def test_a_mosaic_of_one_row_is_refused():
    with pytest.raises(ImageError, match='image of 5 x 1 pixels .*at least 2 x 2'):
        to_rgb(image(np.zeros((1, 5), np.uint8), 'bayer_rggb8'))


# --- YUV

def bt601(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return RGB from ITU-R BT.601: luma 16 to 235, colours 16 to 240 (Kr 0.299, Kb 0.114)."""
    red, blue = 0.299, 0.114
    luma = 255 / 219 * (y.astype(float) - 16)
    u, v = (255 / 224 * (part.astype(float) - 128) for part in (u, v))
    green = -(2 * blue * (1 - blue) * u + 2 * red * (1 - red) * v) / (1 - red - blue)
    return np.stack([luma + 2 * (1 - red) * v, luma + green, luma + 2 * (1 - blue) * u], -1).clip(0, 255)


def planes(height: int, width: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return luma 16 to 235 and colours of which ``rows`` x ``columns`` pixels share one."""
    colours = (height // rows, width // columns)
    return (RANDOM.integers(16, 236, (height, width), np.uint8), RANDOM.integers(16, 241, colours, np.uint8),
            RANDOM.integers(16, 241, colours, np.uint8))


def spread(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return plane.repeat(rows, 0).repeat(columns, 1)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(('encoding', 'order'), [('uyvy', 'uyvy'), ('yuv422', 'uyvy'), ('yuyv', 'yuyv'),
                                                 ('yuv422_yuy2', 'yuyv')])
def test_packed_yuv_follows_bt601(encoding, order, padding):
    y, u, v = planes(HEIGHT, WIDTH, 1, 2)
    parts = {'u': u, 'v': v}
    lumas = iter((y[:, 0::2], y[:, 1::2]))
    halves = [parts[letter] if letter in parts else next(lumas) for letter in order]
    message = raw(np.stack(halves, -1).reshape(HEIGHT, -1), encoding, HEIGHT, WIDTH, padding)
    assert largest_difference(to_rgb(message), bt601(y, spread(u, 1, 2), spread(v, 1, 2))) <= 1


def planar(encoding: str, y: np.ndarray, u: np.ndarray, v: np.ndarray, padding: int = 0) -> Image:
    """Return a message by the definition of the layout; ``padding`` follows each row of luma."""
    height, width = y.shape
    rows = [np.pad(y, ((0, 0), (0, padding)), constant_values=0xAA)]
    if encoding in ('nv12', 'nv21'):
        pair = (u, v) if encoding == 'nv12' else (v, u)
        rows.append(np.pad(np.stack(pair, -1).reshape(height // 2, width), ((0, 0), (0, padding))))
    else:
        rows += [np.pad(part, ((0, 0), (0, padding // 2))) for part in (u, v)]
    message = Image(height=height, width=width, encoding=encoding, step=width + padding)
    message.data.frombytes(b''.join(part.tobytes() for part in rows))
    return message


@pytest.mark.parametrize('padding', [0, 8])
@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'yuv420', 'i420'])
def test_planar_yuv_follows_bt601(encoding, padding):
    y, u, v = planes(HEIGHT, WIDTH, 2, 2)
    message, expected = planar(encoding, y, u, v, padding), bt601(y, spread(u, 2, 2), spread(v, 2, 2))
    assert largest_difference(to_rgb(message), expected) <= 1
    if padding:
        del message.data[-(padding if encoding.startswith('nv') else padding // 2):]
        assert largest_difference(to_rgb(message), expected) <= 1, 'the padding of the last row is optional'


@pytest.mark.parametrize(('change', 'reason'), [
    ({'width': 5}, 'image of 5 x 4 pixels with encoding .*: both must be even, 2 x 2 pixels share a colour; crop'),
    ({'height': 3}, 'image of 6 x 3 pixels .* both must be even'),
    ({'height': 6}, r'36 bytes of data: height 6 times step 6, and half of it .*, makes 54; .* set height'),
    ({'step': 5}, 'step 5: a row of 6 pixels'), ({'height': 0}, 'image of 6 x 0 pixels')])
@pytest.mark.parametrize('encoding', ['nv12', 'i420'])
def test_planar_yuv_of_another_shape_is_refused_with_the_cure(encoding, change, reason):
    message = planar(encoding, *planes(4, 6, 2, 2))
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=reason):
        to_rgb(message)


def test_an_odd_step_of_separate_planes_is_refused():
    with pytest.raises(ImageError, match="step 7 with encoding 'i420': must be even"):
        to_rgb(planar('i420', *planes(4, 6, 2, 2), padding=1))


# --- compressed in the same

@pytest.mark.parametrize(('pixels', 'declared', 'encoding'), [
    *((deep(), declared, 'mono16') for declared in ('mono16; png compressed ', '16UC1; png compressed ', 'png')),
    (deep(3), 'bgr16; png compressed bgr16', 'bgr16'), (deep(3), 'png', 'bgr16'),
    (deep(3), 'rgb16; png compressed rgb16', 'rgb16'), (deep(4), 'rgba16; png compressed bgra16', 'bgra16'),
    *((deep(), f'{name}16; png compressed ', f'{name}16') for name in BAYER),
    *((RANDOM.integers(0, 256, (HEIGHT, WIDTH), np.uint8), f'{name}8; png compressed ', f'{name}8') for name in BAYER)])
def test_a_png_has_the_pixels_of_the_raw_image(pixels, declared, encoding):
    np.testing.assert_array_equal(to_rgb(png(pixels, declared)), to_rgb(image(pixels, encoding)))


@pytest.mark.parametrize('name', ['rgb16', 'bgra16', 'bayer_grbg8', 'bayer_rggb16', 'nv12', 'yuv422', 'yuv420'])
def test_images_that_were_converted_before_compression_are_taken_as_they_are(name):
    bgr = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_array_equal(to_rgb(png(bgr, f'{name}; png compressed bgr8')), bgr[..., ::-1])


def test_a_mosaic_survives_jpeg_in_its_colours():
    truth = np.zeros((64, 64, 3), np.uint8)
    truth[...] = (200, 90, 40)
    data = cv2.imencode('.jpg', mosaic_of(truth, 'rggb'), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    found = to_rgb(CompressedImage(format='bayer_rggb8; jpeg compressed ', data=data))
    assert np.abs(np.median(found, (0, 1)) - (200, 90, 40)).max() <= 4


# --- others' conversions

@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'yuv422', 'uyvy', 'yuyv',
                                      'yuv422_yuy2'])
def test_agrees_with_rosbags_image(encoding):
    pixels = RANDOM.integers(0, 256, (HEIGHT, WIDTH, ENCODINGS[encoding].size), np.uint8)
    np.testing.assert_array_equal(to_rgb(image(pixels, encoding, padding=5)),
                                  message_to_cvimage(image(pixels, encoding), 'rgb8'))


@pytest.mark.parametrize('name', BAYER)
def test_agrees_with_rosbags_image_inside_a_mosaic(name):
    mosaic = RANDOM.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    theirs = message_to_cvimage(image(mosaic, f'{name}8'), 'rgb8')
    np.testing.assert_array_equal(to_rgb(image(mosaic, f'{name}8'))[1:-1, 1:-1], theirs[1:-1, 1:-1])


def test_every_encoding_has_a_conversion():
    for name, encoding in ENCODINGS.items():
        rows = 6 if encoding.kind == PLANAR_YUV else 4
        assert to_rgb(raw(np.zeros((rows, 4 * encoding.size), np.uint8), name, 4, 4)).shape == (4, 4, 3), name


# --- cv_bridge

@pytest.fixture
def with_bridge(monkeypatch):
    """Install a cv_bridge with this imgmsg_to_cv2."""
    def install(imgmsg_to_cv2):
        bridge.bridge_decoder.cache_clear()
        stand_in = type('CvBridge', (), {'imgmsg_to_cv2': lambda self, *arguments: imgmsg_to_cv2(*arguments)})
        monkeypatch.setitem(sys.modules, 'cv_bridge', types.SimpleNamespace(CvBridge=stand_in))
    yield install
    bridge.bridge_decoder.cache_clear()


def unknown() -> Image:
    return image(np.zeros((4, 6, 2), np.uint8), 'nv24')


def test_encodings_of_others_are_left_to_cv_bridge(with_bridge):
    asked = []
    with_bridge(lambda message, wanted: asked.append((message.encoding, wanted)) or np.full(
        (message.height, message.width, 3), 7, np.uint8))
    assert (to_rgb(unknown()) == 7).all() and asked[-1] == ('nv24', 'rgb8')
    del asked[:]
    assert to_rgb(image(np.zeros((4, 6), np.uint8), 'bayer_rggb8')).max() == 0 and not asked, 'ours'
    with pytest.raises(ImageError, match="encoding '32FC1': not supported"):
        to_rgb(image(np.zeros((4, 24), np.uint8), '32FC1'))


def test_an_image_that_cv_bridge_refuses_is_refused_with_its_reason(with_bridge):
    def convert(message, wanted):
        if message.encoding == 'nv24':
            raise RuntimeError('[nv24] is not a color format')
        return np.zeros((1, 1, 3), np.uint8)
    with_bridge(convert)
    with pytest.raises(ImageError, match=r"encoding 'nv24': cv_bridge cannot .*\[nv24\] is not a color format"):
        to_rgb(unknown())


def test_a_cv_bridge_that_returns_another_size_is_not_believed(with_bridge):
    with_bridge(lambda message, wanted: np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ImageError, match=r'returns uint8 of shape \(1, 1, 3\) for 6 x 4 pixels'):
        to_rgb(unknown())


def test_a_cv_bridge_built_for_another_numpy_is_passed_over(with_bridge):
    def convert(message, wanted):
        raise AttributeError('_ARRAY_API not found')
    with_bridge(convert)
    with pytest.raises(ImageError, match="encoding 'nv24': not supported; publish one of"):
        to_rgb(unknown())
