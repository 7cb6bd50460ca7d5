"""The range in which 16-bit images are shown: it follows a scene, not a single image, and does not flicker."""
import numpy as np
import pytest

from sam2_ros.messages.intensity import NARROWEST, TOLERANCE, FollowedRange, range_of, to_8_bits

SECOND = 1_000_000_000
RATES = [5, 30]  # images per second


def thermal(index: int, ambient: int = 21_000, person: int = 23_000) -> np.ndarray:
    """Return a warm disc that walks through a noisy room, uint16 (60, 80)."""
    rows, columns = np.indices((60, 80))
    room = np.random.default_rng(index).normal(ambient, 20, (60, 80)) + 4 * rows
    room[np.hypot(columns - 10 - index % 60, rows - 30) < 9] = person
    return room.clip(0, 65535).astype(np.uint16)


def follow(images, rate: int = 30, followed: FollowedRange | None = None, start: int = 0) -> list:
    followed = followed or FollowedRange()
    return [followed.follow(image, (start + number) * SECOND // rate) for number, image in enumerate(images, 1)]


def test_the_range_of_an_image_leaves_out_a_few_pixels_and_has_a_margin():
    values = np.full((100, 100), 1000, np.uint16)
    values[50:] = 2000
    values[0, :40] = 0  # dead pixels
    values[99, :40] = 65535
    low, high = range_of(values)
    assert (low, high) == (900, 2100)


def test_pixels_without_a_value_do_not_count():
    """A rectified image has black borders, and a hot spot saturates the sensor."""
    image = thermal(0)
    bordered = image.copy()
    bordered[:, :20] = 0
    bordered[:5, 40:] = 65_535
    low, high = range_of(bordered)
    assert abs(low - range_of(image[5:, 20:]).low) < 60 and abs(high - range_of(image[5:, 20:]).high) < 60


@pytest.mark.parametrize('value', [0, 7, 40_000, 65_535])
def test_an_even_image_has_a_range_around_its_value(value):
    low, high = range_of(np.full((8, 8), value, np.uint16))
    assert high - low == NARROWEST and 0 <= low <= value <= high <= 65535


@pytest.mark.parametrize('shape', [(1, 1), (1, 5), (2, 1), (720, 1280)])
def test_images_of_any_size_have_a_range(shape):
    low, high = range_of(np.random.default_rng(0).integers(0, 65536, shape, np.uint16))
    assert 0 <= low < high <= 65535


@pytest.mark.parametrize('rate', RATES)
def test_a_moving_scene_is_shown_in_one_range(rate):
    assert len(set(follow([thermal(index) for index in range(120)], rate))) == 1


@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('odd', [np.full((60, 80), 65_535, np.uint16), np.zeros((60, 80), np.uint16)])
def test_a_single_bright_or_dark_image_changes_nothing(rate, odd):
    images = [thermal(index) for index in range(40)]
    images[20] = odd
    assert len(set(follow(images, rate))) == 1


def test_two_images_in_five_change_nothing_at_a_low_rate():
    images = [thermal(index) if index % 5 not in (2, 3) else np.full((60, 80), 60_000, np.uint16)
              for index in range(40)]
    assert len(set(follow(images, 2))) == 1


@pytest.mark.parametrize('rate', RATES)
def test_a_scene_that_stays_changed_is_followed_slowly(rate):
    """The room is another one, 2000 warmer: after ten seconds it is shown as the first one was."""
    followed = FollowedRange()
    first = follow([thermal(index) for index in range(3 * rate)], rate, followed)[-1]
    later = follow([thermal(index, 23_000, 25_000) for index in range(10 * rate)], rate, followed, 3 * rate)
    assert later[rate // 3] == first, 'not within a third of a second'
    width = first.high - first.low
    steps = np.abs(np.diff(np.array([first, *later]), axis=0)).max()
    assert steps <= 1.1 * 2000 / rate, 'never by more than the time constant of a second allows'
    assert np.abs(np.array(later[-1]) - np.array(first) - 2000).max() <= TOLERANCE * width
    assert len(set(later[-rate:])) == 1, 'and it rests then'


@pytest.mark.parametrize('rate', RATES)
def test_a_scene_that_would_be_all_white_or_black_is_shown_again_with_the_third_image(rate):
    images = [thermal(index) for index in range(20)] + [thermal(index, 30_000, 32_000) for index in range(20)]
    ranges = follow(images, rate)
    assert len(set(ranges[:22])) == 1 and len(set(ranges[22:])) == 1
    wanted = range_of(thermal(0, 30_000, 32_000))
    assert np.abs(np.array(ranges[-1]) - wanted).max() <= TOLERANCE * (wanted.high - wanted.low)


def test_a_camera_that_starts_in_the_dark_is_shown_properly_with_its_first_real_image():
    ranges = follow([np.zeros((60, 80), np.uint16)] * 3 + [thermal(0)])
    assert ranges[-1] == range_of(thermal(0))


def test_a_first_image_that_is_wrong_is_forgotten_within_seconds():
    ranges = follow([thermal(0, 40_000, 60_000)] + [thermal(index) for index in range(300)])
    wanted = range_of(thermal(1))
    assert np.abs(np.array(ranges[-1]) - wanted).max() <= TOLERANCE * (wanted.high - wanted.low)


@pytest.mark.parametrize('stamps', [lambda number: 0, lambda number: -number * SECOND, lambda number: number * 10**15])
def test_unusable_stamps_neither_stop_nor_rush_the_range(stamps):
    followed = FollowedRange()
    first = [followed.follow(thermal(index), stamps(index)) for index in range(20)][-1]
    later = [followed.follow(thermal(index, 30_000, 32_000), stamps(20 + index)) for index in range(200)]
    assert later[0] == first
    assert abs(later[-1].low - range_of(thermal(0, 30_000, 32_000)).low) < 400


def test_the_same_images_make_the_same_ranges():
    images = [thermal(index, 21_000 + 30 * index) for index in range(100)]
    assert follow(images) == follow(images)


def test_values_outside_the_range_are_black_or_white():
    low, high = range_of(thermal(0))
    shown = to_8_bits(np.array([[0, low, (low + high) // 2, high, 65535]], np.uint16), range_of(thermal(0)))
    assert shown[0, [0, 1, 3, 4]].tolist() == [0, 0, 255, 255] and abs(int(shown[0, 2]) - 127) <= 1
