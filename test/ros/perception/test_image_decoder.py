"""16-bit images of a camera: the model, late prompts and queries see the same picture."""
import numpy as np
import pytest

from sam2_ros.messages.intensity import IntensityRange, range_of, to_8_bits
from sam2_ros.perception.image_decoder import ImageDecoder
from sam2_ros.runtime.parameters import Parameters
from testing.camera_images import header, image_message


class Log(list):
    def info(self, text: str, **_) -> None:
        self.append(text)

    warning = error = info


def infrared(seconds: float, ambient: int = 20_000):
    values = np.random.default_rng(round(1000 * seconds)).normal(ambient, 300, (30, 40)).astype(np.uint16)
    return image_message(values, header(seconds), 'mono16')


def pixels(message) -> np.ndarray:
    return np.frombuffer(message.data, np.uint16).reshape(message.height, message.width)


def shown(message, values: IntensityRange) -> np.ndarray:
    return np.repeat(to_8_bits(pixels(message), values)[..., None], 3, 2)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def decoder(log):
    return ImageDecoder('/camera/image', log)


def test_images_of_the_history_are_what_the_model_saw(decoder):
    """The scene becomes warmer, and the range follows it."""
    images = [infrared(1 + index / 10, 20_000 + 60 * index) for index in range(100)]
    seen = [decoder.next(message, Parameters()) for message in images]
    assert len({image.tobytes() for image in map(decoder.past, images)}) == 100
    for message, image in zip(images, seen, strict=True):
        np.testing.assert_array_equal(decoder.past(message), image)
    between = infrared(1 + 45.5 / 10, 22_000)  # skipped by the worker: it would have been shown as the one before
    low_of_before = shown(between, IntensityRange(*map(int, decoder.description.split(',')[0].split(' to '))))
    assert not np.array_equal(decoder.past(between), low_of_before), 'not in the range of now'


def test_parameters_that_change_do_not_change_the_past(decoder):
    first, second = infrared(1), infrared(2)
    given = Parameters(intensity_min=19_000, intensity_max=21_000)
    before = decoder.next(first, Parameters())
    after = decoder.next(second, given)
    np.testing.assert_array_equal(before, shown(first, range_of(pixels(first))))
    np.testing.assert_array_equal(after, shown(second, IntensityRange(19_000, 21_000)))
    np.testing.assert_array_equal(decoder.past(first), before)
    np.testing.assert_array_equal(decoder.past(second), after)


def test_images_of_a_request_do_not_disturb_those_of_the_camera(decoder):
    decoder.next(infrared(1), Parameters())
    before = decoder.description
    other = infrared(50, 5000)
    np.testing.assert_array_equal(decoder.other(other), shown(other, range_of(pixels(other))))
    assert decoder.description == before
    decoder.next(infrared(2), Parameters(intensity_max=4095))
    np.testing.assert_array_equal(decoder.other(other), shown(other, IntensityRange(0, 4095)))


def test_a_damaged_image_changes_no_range(decoder):
    decoder.next(infrared(1), Parameters())
    before = decoder.description
    damaged = infrared(2, 50_000)
    del damaged.data[-1:]
    with pytest.raises(ValueError, match='bytes of data'):
        decoder.next(damaged, Parameters())
    assert decoder.description == before


def test_the_range_is_logged_once(decoder, log):
    for seconds in range(1, 9):
        decoder.next(infrared(seconds), Parameters())
    text, = log
    assert text.startswith('/camera/image: 16-bit images are shown in the range 1') and 'intensity_max' in text


def test_8_bit_images_have_no_range(decoder, log):
    colour = image_message(np.zeros((4, 4, 3), np.uint8), header(1))
    for parameters in (Parameters(), Parameters(intensity_max=4095)):
        assert np.shares_memory(decoder.next(colour, parameters), np.asarray(colour.data))
    assert decoder.description == '' and not log


def test_a_clock_that_jumps_back_begins_anew(decoder):
    late = decoder.next(infrared(1000, 20_000), Parameters())
    early = infrared(1, 20_100)
    seen = decoder.next(early, Parameters(intensity_max=40_000))
    np.testing.assert_array_equal(decoder.past(early), seen)
    assert not np.array_equal(late, seen)
