"""compressedDepth against an encoder written from the format, hand-made streams, and damage."""
import struct
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from std_msgs.msg import Header

from sam2_ros.messages.compressed_depth import decode_depth_file, read_depth_file
from sam2_ros.messages.encodings import ImageError
from sam2_ros.messages.rvl import decode_rvl
from testing.depth_codec import DEPTH_MAX, QUANTIZATION, compressed_depth, rvl, words

CODECS = ['png', 'rvl']
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
SPARSE = st.one_of(st.just(0), st.just(0), st.integers(1, 65535), st.integers(990, 1010))


def decode(data: bytes, declared: str) -> np.ndarray:
    return decode_depth_file(read_depth_file(data, declared))


def scene() -> np.ndarray:
    """Return millimetres with holes, edges and noise, uint16 (40, 50)."""
    rows, columns = np.indices((40, 50))
    random = np.random.default_rng(4)
    depth = 900 + 10 * rows + random.integers(-3, 4, (40, 50))
    depth[10:25, 20:40] = 600 + random.integers(-2, 3, (15, 20))
    depth[random.random((40, 50)) < 0.1] = 0
    depth[30:, :9] = 0
    return depth.astype(np.uint16)


# --- round trips

@pytest.mark.parametrize('codec', CODECS)
@given(depth=SIZES.flatmap(lambda size: arrays.arrays(np.uint16, size, elements=SPARSE)))
@settings(max_examples=60)
def test_millimetres_arrive_unchanged(codec, depth):
    message = compressed_depth(depth, Header(), codec)
    np.testing.assert_array_equal(decode(message.data.tobytes(), message.format), depth)


@pytest.mark.parametrize('codec', CODECS)
def test_metres_arrive_within_a_step_of_the_inverse_depth(codec):
    metres = scene().astype(np.float32) / 1000
    metres[metres == 0] = np.nan
    metres[0, 0] = 12.0  # beyond the limit
    message = compressed_depth(metres, Header(), codec)
    found = decode(message.data.tobytes(), message.format)
    assert found.dtype == np.float32
    known = np.isfinite(metres) & (metres < DEPTH_MAX)
    np.testing.assert_array_equal(np.isfinite(found), known)
    # a / z is rounded down to a whole number: z grows by less than z² / a
    step = metres[known] ** 2 / (QUANTIZATION * (QUANTIZATION + 1))
    error = found[known] - metres[known]
    assert (error > -1e-5).all() and (error < 1.01 * step + 1e-5).all()


@pytest.mark.parametrize('codec', CODECS)
def test_the_formula_of_the_quantisation(codec):
    """The parameters 10 and -4 and the values 1, 6 and 16 stand for 10 / 5, 10 / 10 and 10 / 20 metres."""
    values = np.array([[0, 1, 6, 16]], np.uint16)
    body = (struct.pack('<II', 4, 1) + rvl([0, 1, 6, 16]) if codec == 'rvl'
            else cv2.imencode('.png', values)[1].tobytes())
    found = decode(struct.pack('<iff', 0, 10.0, -4.0) + body, f'32FC1; compressedDepth {codec}')
    np.testing.assert_array_equal(found, np.array([[np.nan, 2, 1, 0.5]], np.float32))


def test_values_for_which_the_formula_has_no_depth_are_none():
    body = cv2.imencode('.png', np.array([[3, 5, 6]], np.uint16))[1].tobytes()
    found = decode(struct.pack('<iff', 0, 10.0, 5.0) + body, '32FC1; compressedDepth png')
    np.testing.assert_array_equal(found, np.array([[np.nan, np.nan, 10.0]], np.float32))


@pytest.mark.parametrize('declared', ['16UC1; compressedDepth', '16UC1', 'mono16; compressedDepth png',
                                      '16UC1; compressedDepth png ', '16UC1;compressedDepth png'])
def test_formats_of_older_publishers_are_png(declared):
    message = compressed_depth(scene(), Header())
    np.testing.assert_array_equal(decode(message.data.tobytes(), declared), scene())


def test_a_png_of_millimetres_without_a_header_is_read_too():
    data = cv2.imencode('.png', scene())[1].tobytes()
    np.testing.assert_array_equal(decode(data + bytes(9), '16UC1; png compressed '), scene())


# --- streams by hand

@pytest.mark.parametrize(('nibbles', 'pixels'), [
    # two zeros, one value: +5 is 10 in zigzag code, 2 with more to come and 1
    ([2, 1, 0xa, 1], [0, 0, 5]),
    # no zeros, three values: +1 (2), +1 (2), -2 (3): there is no 0 within values
    ([0, 3, 2, 0xc, 0, 1], [1, 3, 2]),
    # nine zeros are 1 with more to come and 1; no value
    ([9, 1, 0], [0] * 9),
    # a value, a zero, and a value that is coded against the last value, not against the zero
    ([0, 1, 6, 1, 1, 1], [3, 0, 2])])
def test_a_stream_by_hand(nibbles, pixels):
    assert decode_rvl(words(nibbles), len(pixels)).tolist() == pixels


def test_the_first_nibble_is_the_highest_of_a_little_endian_word():
    """0x21a10000: two zeros, one value, and 10 in two nibbles, which is +5."""
    assert decode_rvl(bytes.fromhex('0000a121'), 3).tolist() == [0, 0, 5]


def test_data_behind_the_last_pixel_are_ignored():
    assert decode_rvl(rvl([0, 7, 8]) + b'\xff' * 40, 3).tolist() == [0, 7, 8]


@pytest.mark.parametrize(('data', 'count', 'reason'), [
    (b'', 4, 'ends after 0 of 4 pixels: cut off; send it whole'),
    (rvl([0, 7, 8, 9])[:2], 4, 'cut off'),
    (words([0, 5, 2]), 6, 'ends after 5 of 6'),
    (words([0, 7, 2, 2]), 7, 'ends 1 values before the last pixel: cut off'),
    (words([5, 0]), 4, 'runs of 5 pixels in an image of 4: the stream is damaged'),
    (words([0, 2, 1, 2]), 2, 'the values leave the range'),  # -1
    (words([0, 2, 2, 1]), 2, 'the values leave the range'),  # 1, then 0
    (words([8] * 20 + [1]), 4, 'a number has more than 11 groups of bits')])
def test_damaged_streams_are_refused(data, count, reason):
    with pytest.raises(ImageError, match=reason):
        decode_rvl(data, count)


# --- headers

GOOD = compressed_depth(scene(), Header()).data.tobytes()
METRES = compressed_depth(np.full((4, 4), 2, np.float32), Header()).data.tobytes()
GREY = cv2.imencode('.png', np.zeros((4, 4), np.uint8))[1].tobytes()


@pytest.mark.parametrize(('data', 'declared', 'reason'), [
    (GOOD, '8UC1; compressedDepth png', "encoding '8UC1': must be 16UC1"),
    (GOOD, 'jpeg', "encoding 'jpeg': must be 16UC1"),
    (GOOD, '', "encoding ''"),
    (GOOD, '16UC1; compressedDepth zstd', "codec 'zstd': must be png or rvl"),
    (GOOD[:5], '16UC1; compressedDepth png', '5 bytes: cut off'),
    (GOOD[:12], '16UC1; compressedDepth png', 'no data'),
    (GOOD[:-30], '16UC1; compressedDepth png', 'PNG of .* bytes: cut off'),
    (GOOD[12:], '16UC1; compressedDepth png', 'starts with a PNG: the 12 bytes of the header .* are missing'),
    (GOOD[:12] + GREY, '16UC1; compressedDepth png', 'PNG with 8 bits and 1 channels: must be a grey PNG with 16 bits'),
    (GREY, '16UC1; png compressed ', 'must be a grey PNG with 16 bits; JPEG and 8 bits lose depth'),
    (GOOD[12:], '32FC1; png compressed ', 'a file without parameters'),
    (struct.pack('<iff', 0, 0, 1) + METRES[12:], '32FC1; compressedDepth png', 'parameters 0 and 1: the first must be'),
    (struct.pack('<iff', 0, float('nan'), 1) + METRES[12:], '32FC1; compressedDepth png', 'parameters nan and 1'),
    (struct.pack('<iff', 0, 9, float('inf')) + METRES[12:], '32FC1; compressedDepth png', 'parameters 9 and inf'),
    (GOOD[:16], '16UC1; compressedDepth rvl', '16 bytes: cut off'),
    (GOOD[:12] + struct.pack('<II', 0, 5), '16UC1; compressedDepth rvl', 'RVL of 0 x 5 pixels'),
    (GOOD[:12] + struct.pack('<II', 2**32 - 1, 2**32 - 1), '16UC1; compressedDepth rvl', 'must have 1 to 160,000,000')])
def test_wrong_headers_are_refused_with_the_value(data, declared, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data, declared)
    assert f'depth with format {declared!r}: ' in str(caught.value)


@pytest.mark.parametrize('size', [(12_000, 13_000), (2, 80_000_000)])
def test_a_size_that_lies_takes_no_memory(size):
    data = struct.pack('<iffII', 0, 0, 0, *size) + rvl([0, 7, 8, 9])
    tracemalloc.start()
    with pytest.raises(ImageError, match=f'depth in RVL of {size[0]} x {size[1]} pixels: .*cut off'):
        decode(data, '16UC1; compressedDepth rvl')
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.fuzz
@pytest.mark.parametrize('codec', CODECS)
@pytest.mark.parametrize('kind', [np.uint16, np.float32])
def test_random_damage_is_refused_or_decoded_in_the_size_of_the_header(rounds, codec, kind):
    depth = scene()[:12, :16].astype(kind) / (1000 if kind is np.float32 else 1)
    message = compressed_depth(depth.astype(kind), Header(), codec)
    whole, rng, count = message.data.tobytes(), np.random.default_rng(7), rounds(1_500, 100_000)
    done = refused = 0
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(20 if codec == 'rvl' and rng.random() < 0.9 else 0, len(data))] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)):]
        try:
            file = read_depth_file(bytes(data), message.format)
            found = decode_depth_file(file)
            assert found.shape == (file.height, file.width) and found.dtype == kind
            done += 1
        except ImageError as error:
            assert str(error)
            refused += 1
    assert done + refused == count and refused > count / 10
    assert codec == 'png' or done > count / 20  # the checksums of PNG find nearly all
