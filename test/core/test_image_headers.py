"""The header of a JPEG or PNG is read to the end of the file, and a file that is not whole is refused."""
import subprocess
import sys

import cv2
import numpy as np
import pytest

from sam2_core.image_headers import PALETTE, DamagedImage, read_image_header
from testing.dataset_files import indexed_png, jpeg

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
PNG = cv2.imencode('.png', IMAGE)[1].tobytes()


@pytest.mark.parametrize('data', [jpeg(IMAGE), PNG])
def test_header_states_size_and_end(data):
    header = read_image_header(data + bytes(100))
    assert (header.height, header.width, header.bits, header.channels) == (24, 32, 8, 3)
    assert header.end == len(data)


def test_header_of_an_indexed_png_lists_its_chunks():
    data = indexed_png(IMAGE[..., 0] % 4, depth=2)
    header = read_image_header(data)
    assert (header.bits, header.colour_type) == (2, PALETTE)
    assert [kind for kind, _ in header.chunks] == [b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND']
    assert len(data[dict(header.chunks)[b'PLTE']]) == 3 * 4


@pytest.mark.parametrize('data', [jpeg(IMAGE), PNG])
def test_every_shorter_file_is_cut_off(data):
    for length in range(8, len(data)):
        with pytest.raises(DamagedImage, match='is cut off$') as failure:
            read_image_header(data[:length])
        assert failure.value.cut_off


@pytest.mark.parametrize(('data', 'reason'), [
    (b'\xff\xd8\xff\xd9', 'JPEG is damaged: it ends before its pixels'),
    (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], 'PNG is damaged: chunk IDAT fails its checksum'),
    (PNG[:8] + PNG[33:], 'PNG is damaged: it does not begin with its header')])
def test_wrong_content_is_not_a_missing_end(data, reason):
    with pytest.raises(DamagedImage, match=reason) as failure:
        read_image_header(data)
    assert not failure.value.cut_off


def test_data_of_another_kind_has_no_header():
    assert read_image_header(b'') is None
    assert read_image_header(b'RIFF\x10\0\0\0WEBPVP8 ') is None


def test_reading_headers_loads_neither_torch_nor_opencv():
    code = 'import sys; import sam2_core.image_headers; print({"torch", "cv2", "numpy"} & sys.modules.keys())'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'set()'
