"""Headers of JPEG and PNG files, and the one rule for whether a file is whole.

No pixel is decoded, and neither torch nor OpenCV is imported, so that processes that only check images start fast.
"""
from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

JPEG_SIGNATURE = b'\xff\xd8'
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG

# A JPEG marker that is neither a stuffed byte nor a restart inside a scan.
_MARKER = re.compile(rb'\xff[\x01-\xcf\xd8-\xfe]')
_WITHOUT_LENGTH = {0x01, *range(0xd0, 0xd8)}
_FRAME_HEADERS = {*range(0xc0, 0xd0)} - {0xc4, 0xc8, 0xcc}
_START, _END, _SCAN, _APP1 = 0xd8, 0xd9, 0xda, 0xe1
_PNG_CHANNELS = {GREY: 1, COLOUR: 3, PALETTE: 3, GREY_ALPHA: 1, COLOUR_ALPHA: 4}  # the alpha of grey is dropped
_PNG_BITS = (1, 2, 4, 8, 16)


class DamagedImage(ValueError):
    """A JPEG or PNG file that is not whole: its end is missing (``cut_off``), or its content is wrong."""

    def __init__(self, kind: str, damage: str = '') -> None:
        super().__init__(f'{kind} is damaged: {damage}' if damage else f'{kind} is cut off')
        self.kind, self.cut_off = kind, not damage


class ImageHeader(NamedTuple):
    """Header of a whole JPEG or PNG file."""

    kind: str  # JPEG or PNG
    height: int
    width: int
    bits: int  # per channel
    channels: int  # grey 1, colour 3, with alpha or CMYK 4
    end: int  # offset behind the last byte of the file; padding may follow
    exif: tuple[slice, ...] = ()  # segments of a JPEG with EXIF data
    colour_type: int | None = None  # of a PNG
    chunks: tuple[tuple[bytes, slice], ...] = ()  # of a PNG: name and place of each body


def read_image_header(data: bytes) -> ImageHeader | None:
    """Return the header of a JPEG or PNG file, or None for data of another kind.

    Raises DamagedImage unless the file is whole: OpenCV fills the missing part of a cut JPEG with grey and reports
    nothing. Data behind the end of the file are ignored.
    """
    if data.startswith(JPEG_SIGNATURE):
        return _read_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return _read_png(data)
    return None


def _read_jpeg(data: bytes) -> ImageHeader:
    """Walk through the segments of a JPEG (ITU-T T.81, annex B) to its end."""
    at, frame, scanned, exif = len(JPEG_SIGNATURE), None, False, []
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == _END:
            if frame is None or not scanned:
                raise DamagedImage('JPEG', 'it ends before its pixels')
            bits, height, width, channels = frame
            return ImageHeader('JPEG', height, width, bits, channels, at, tuple(exif))
        if marker == _START or len(data) < at + 2:
            break
        length = int.from_bytes(data[at:at + 2], 'big')
        if marker in _FRAME_HEADERS:
            if length < 8 or frame is not None:
                raise DamagedImage('JPEG', 'its frame header is wrong')
            if len(data) < at + 8:
                break
            frame = struct.unpack_from('>BHHB', data, at + 2)
        elif marker == _SCAN:
            if frame is None:
                raise DamagedImage('JPEG', 'its pixels come before its frame header')
            scanned = True
        elif marker == _APP1 and data.startswith(b'Exif\0', at + 2):
            exif.append(slice(found.start(), at + length))
        at += length
    raise DamagedImage('JPEG')


def _read_png(data: bytes) -> ImageHeader:
    """Walk through the chunks of a PNG to its end and check them (PNG specification, sections 5.3 and 5.4)."""
    at, head, chunks = len(PNG_SIGNATURE), None, []
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at:at + 4], 'big'), data[at + 4:at + 8]
        stop = at + 12 + length
        if not kind.isalpha():
            raise DamagedImage('PNG', 'a chunk has no name')
        if stop > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4:stop - 4]) != int.from_bytes(data[stop - 4:stop], 'big'):
            raise DamagedImage('PNG', f'chunk {kind.decode("ascii", "replace")} fails its checksum')
        chunks.append((kind, slice(at + 8, stop - 4)))
        if kind == b'IHDR' and length == 13 and head is None:
            width, height, bits, colour_type = struct.unpack_from('>IIBB', data, at + 8)
            if colour_type not in _PNG_CHANNELS or bits not in _PNG_BITS:
                raise DamagedImage('PNG', f'there is no colour type {colour_type} with {bits} bits')
            head = height, width, bits, colour_type
        elif head is None:
            raise DamagedImage('PNG', 'it does not begin with its header')
        elif kind == b'IEND':
            height, width, bits, colour_type = head
            return ImageHeader('PNG', height, width, bits, _PNG_CHANNELS[colour_type], stop, (), colour_type,
                               tuple(chunks))
        at = stop
    raise DamagedImage('PNG')
