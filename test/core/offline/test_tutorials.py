"""The tutorials without ROS: their commands are run as the pages have them, and the results compared with the truth."""
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[3]
TUTORIALS = ROOT / 'docs' / 'tutorials'
PROGRAMS = {'.venv/bin/sam2_track ': f'{sys.executable} -m sam2_core.offline.track ',
            '.venv/bin/python docs/tutorials/': f'{sys.executable} {TUTORIALS}/'}

pytestmark = pytest.mark.slow


def commands(page: str) -> list[str]:
    """Return the commands of a page in order, for any folder."""
    lines = [line for block in re.findall(r'^```sh\n(.*?)^```', (TUTORIALS / page).read_text(), re.M | re.S)
             for line in block.splitlines()]
    for program, here in PROGRAMS.items():
        lines = [line.replace(program, here) for line in lines]
    assert lines and all(line.startswith(sys.executable) for line in lines), lines
    return lines


def follow(page: str, folder: Path) -> str:
    """Run the commands of a page in a folder and return what they print."""
    said = []
    for command in commands(page):
        done = subprocess.run(['sh', '-c', command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
        said.append(done.stdout)
    return ''.join(said)


def assert_like_picture(sheet: Path, name: str) -> None:
    """Compare a picture with that of the page: one size, and no more different than other weights would make it."""
    one, other = cv2.imread(str(sheet)), cv2.imread(str(ROOT / 'docs' / 'images' / name))
    assert one.shape == other.shape
    assert cv2.absdiff(one, other).mean() < 4


def test_cells_of_a_microscopy_stack_are_measured(tmp_path):
    """Measured with nano: IoU 0.941, 0.960 and 0.947, volumes within 3.1 % of the truth."""
    said = follow('microscopy-stack.md', tmp_path)
    found = re.findall(r'object \d \(\w+\): IoU ([\d.]+), volume (\d+) cubic micrometres, truth (\d+)', said)
    assert len(found) == 3, said
    for overlap, volume, truth in found:
        assert float(overlap) > 0.88
        assert abs(int(volume) / int(truth) - 1) < 0.1
    assert_like_picture(tmp_path / 'cells' / 'out' / 'contact_sheet.jpg', 'microscopy_stack.jpg')


def test_an_object_of_a_film_clip_is_cut_out_and_a_correction_brings_it_back(tmp_path):
    """Measured with nano: IoU 0.567, and 0.855 after the correction."""
    said = follow('film-clip.md', tmp_path)
    first, corrected = (float(value) for value in re.findall(r'IoU ([\d.]+) on average of 77 frames', said))
    assert corrected > 0.78
    assert corrected - first > 0.1
    mattes = sorted((tmp_path / 'film' / 'corrected' / 'Objects' / 'clip' / '1').iterdir())
    assert [path.name for path in mattes] == [f'{number:05}.png' for number in range(84)]
    assert_like_picture(tmp_path / 'film' / 'corrected' / 'contact_sheet.jpg', 'film_clip.jpg')
