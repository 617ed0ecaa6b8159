"""Picture files byte by byte, in forms that Pillow reads and does not write."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

# Gray values from black to white, a column each.
RAMP = np.tile(np.arange(256), (8, 1))
RGB_RAMP = np.repeat(RAMP[..., None], 3, axis=2)


def png(rows: bytes | np.ndarray, width: int, bits: int, color: int, **chunks: bytes):
    """A PNG of packed pixels; `chunks` stand before them, in their order.

    color: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    stride = -(-width * bits * channels // 8)
    data = rows if isinstance(rows, bytes) else rows.tobytes()
    lines = [data[at : at + stride] for at in range(0, len(data), stride)]
    header = struct.pack(">IIBBBBB", width, len(lines), bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *(chunk(name.encode(), data) for name, data in chunks.items()),
            chunk(b"IDAT", pixels),
            chunk(b"IEND", b""),
        )
    )


def tiff(
    strips: Sequence[np.ndarray],
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    samples: int = 1,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """An uncompressed TIFF of the ramp's size, with more tags of 16-bit numbers.

    photometric: 0 gray where 0 is white, 1 gray, 2 RGB, 3 palette.
    """
    height, width = RAMP.shape
    body, offsets, counts = b"", [], []
    for strip in strips:
        data = strip.tobytes()
        offsets.append(8 + len(body))
        counts.append(len(data))
        body += data
    fields = {
        **{256: [width], 257: [height], 258: [bits] * samples, 259: [1]},
        **{262: [photometric], 273: offsets, 277: [samples], 278: [height]},
        **{279: counts, **(tags or {})},
    }
    start = 8 + len(body)
    entries, values = b"", b""
    for tag, numbers in sorted(fields.items()):
        kind, form = (4, "L") if tag in (273, 279) else (3, "H")
        data = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
        if len(data) > 4:
            place = start + 2 + 12 * len(fields) + 4 + len(values)
            values += data
            data = struct.pack(f"{order}L", place)
        entries += struct.pack(f"{order}HHL", tag, kind, len(numbers))
        entries += data.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HL", 42, start)
    count = struct.pack(f"{order}H", len(fields))
    return head + body + count + entries + b"\0" * 4 + values
