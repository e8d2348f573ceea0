"""Signatures of videos and sounds: data that a decoder would open as something else is refused.

FFmpeg's own probes (libavformat) decide by these bytes. Each type here is one file that refers to no other.
"""

from __future__ import annotations

FILMS = "MP4, MOV, WebM, Matroska, AVI or MPEG"
SOUNDS = "WAV, MP3, AAC, FLAC or Ogg"
TAGS = 8
SESSION = b"\nc=IN"
"""By this line FFmpeg detects a session description, whatever precedes it; a short mark is less specific."""


def is_film(data: bytes) -> bool:
    """Return whether bytes begin like a video."""
    return (
        data[4:8] == b"ftyp"
        or data.startswith(b"\x1aE\xdf\xa3")
        or (data.startswith(b"RIFF") and data[8:12] == b"AVI ")
        or (_streams(data) and SESSION not in data)
    )


def _streams(data: bytes) -> bool:
    """Return whether bytes begin like an MPEG stream."""
    packets = data[:1] == b"G" and data[188:189] == b"G" and data[376:377] == b"G"
    return packets or data.startswith(b"\x00\x00\x01\xba")


def is_sound(data: bytes) -> bool:
    """Return whether bytes begin like a sound.

    FFmpeg skips tags (ID3) before it looks at the rest; so does this.
    """
    place = 0
    for _ in range(TAGS):
        if not data.startswith(b"ID3", place) or len(data) < place + 10:
            break
        size = 0
        for byte in data[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        place += 10 + size + (10 if data[place + 5] & 0x10 else 0)
    head = data[place : place + 12]
    return (
        head.startswith((b"fLaC", b"OggS"))
        or (head.startswith(b"RIFF") and head[8:12] == b"WAVE")
        or (_frames(head) and SESSION not in data)
    )


def _frames(head: bytes) -> bool:
    """Return whether bytes begin with the sync word of MPEG audio or AAC, without a reserved bit rate."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[2] & 0xF0 != 0xF0
