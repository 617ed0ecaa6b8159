"""What the system refused, whoever tells of it."""

import errno
import zipfile

import pytest

from vse_jax.base.errors import InputError, refusal

TENSORSTORE = (
    'UNKNOWN: Error opening "zarr" driver: Error reading "w/.zarray" in OCDBT database '
    'at local file "/w/": Error opening local file "/w/manifest.ocdbt": Failed to '
    "open: \"/w/manifest.ocdbt\" [source locations='a.cc:3']: Permission denied "
    "[os_error_code='13']"
)


def wrapped(inner: BaseException) -> Exception:
    try:
        try:
            raise inner
        except BaseException as error:
            raise ValueError("what a library makes of it") from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "file"),
    [
        (PermissionError(13, "Permission denied", "/f"), errno.EACCES, "/f"),
        (OSError(5, "Input/output error"), errno.EIO, None),
        (
            ValueError("ABORTED: All 8 retry attempts failed: … [curl_code='7']"),
            errno.EIO,
            None,
        ),
        (
            ValueError("PERMISSION_DENIED: … [http_response_code='403']"),
            errno.EACCES,
            None,
        ),
        (MemoryError(), errno.ENOMEM, None),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
            errno.ENOMEM,
            None,
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
            errno.ENOMEM,
            None,
        ),
        (ValueError(TENSORSTORE), errno.EACCES, "/w/manifest.ocdbt"),
        (
            RuntimeError(
                "open() failed: Too many open files; opening /d/a.array_record"
            ),
            errno.EMFILE,
            None,
        ),
    ],
)
def test_what_the_system_refuses_is_found(error, code, file):
    for found in (refusal(error), refusal(wrapped(error))):
        assert (found.errno, found.filename) == (code, file)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("params"),
        InputError("W: another config"),
        zipfile.BadZipFile("File is not a zip file"),
        OSError("image file is truncated"),  # Pillow's
        OSError(errno.EINVAL, "Invalid argument"),  # a seek that the content asked for
        ValueError('DATA_LOSS: Error decoding local file "/w/d/1": checksum'),
    ],
)
def test_content_and_bugs_are_not_refused(error):
    assert refusal(error) is refusal(wrapped(error)) is None
