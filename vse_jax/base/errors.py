"""The one exception that a user is meant to see, and what the system refused."""

import errno
import os
import re

_ERRNO = {os.strerror(code): code for code in errno.errorcode}
_BY_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT}
_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc|allocate memory")


class InputError(Exception):
    """Bad input: the message is one line that names the file, field or line.

    `main.py` prints it on stderr and exits with code 1; everything else is a bug and
    keeps its traceback.
    """


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises InputError unless the config's `field` holds one of `choices`."""
    if value not in choices:
        raise InputError(f"{field}: {value!r} is none of {', '.join(choices)}")


def refusal(error: BaseException | None) -> OSError | None:
    """What the system refused where something could not be read; None: nothing.

    A disk, a permission or memory that fails says nothing of a file's content. Some
    libraries wrap it or put it into words: JAX's "RESOURCE_EXHAUSTED: …", Tensorstore's
    "Error reading local file "…": … [os_error_code='5']" and, of buckets, "ABORTED: All
    8 retry attempts failed: … [curl_code='7']", ArrayRecord's "open() failed: …".

    Returns:
        With errno, strerror and, where it is told, filename.
    """
    while error is not None:
        text = str(error)
        # EINVAL: a place in the file was asked for that its content makes impossible.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            return error
        if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
            said = f" ({text.splitlines()[0][:200]})" if text else ""
            return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM) + said)
        if found := re.search(r"os_error_code='(\d+)'", text):
            code = int(found[1])
            files = re.findall(r'local file "([^"]+)"', text)
            return OSError(code, os.strerror(code), files[-1] if files else None)
        if found := re.search(r"\[(?:curl_code|http_response_code)='(\d+)'", text):
            code = _BY_STATUS.get(int(found[1]), errno.EIO)
            return OSError(code, text.partition(" [")[0].splitlines()[0])
        found = re.search(r"\w\(\) failed: ([^;]+)", text)
        if found and found[1] in _ERRNO:
            return OSError(_ERRNO[found[1]], found[1])
        error = error.__cause__ or error.__context__
    return None
