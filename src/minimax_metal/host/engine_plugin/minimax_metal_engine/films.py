"""What a video or a sound begins with: what a decoder would open as something else is not let to it.

FFmpeg's own probes (libavformat) decide by these bytes. Each kind here is one file that names no other.
"""

from __future__ import annotations

FILMS = "MP4, MOV, WebM, Matroska, AVI or MPEG"
SOUNDS = "WAV, MP3, AAC, FLAC or Ogg"
TAGS = 8
SESSION = b"\nc=IN"
"""By this line FFmpeg knows a description of a session, whatever stands before it; a short mark says less."""


def is_film(data: bytes) -> bool:
    """Whether bytes begin as a video does."""
    return (
        data[4:8] == b"ftyp"
        or data.startswith(b"\x1aE\xdf\xa3")
        or (data.startswith(b"RIFF") and data[8:12] == b"AVI ")
        or (_streams(data) and SESSION not in data)
    )


def _streams(data: bytes) -> bool:
    """Whether bytes begin as a stream of MPEG does."""
    packets = data[:1] == b"G" and data[188:189] == b"G" and data[376:377] == b"G"
    return packets or data.startswith(b"\x00\x00\x01\xba")


def is_sound(data: bytes) -> bool:
    """Whether bytes begin as a sound does.

    FFmpeg passes over tags (ID3) before it looks at what there is; so does this.
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
    """Whether bytes begin with the sync word of MPEG's sounds or AAC's, and no reserved bit rate."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[2] & 0xF0 != 0xF0
