"""A port to listen on."""

from __future__ import annotations

import os
import socket

from errata.errors import InputError


def listen(
    host: str, port: int, *, remedy: str = "Give another --port (0 chooses a free one) or --host"
) -> socket.socket:
    """A socket that listens on the address; to be had before anything heavy is loaded.

    Args:
        port: 0 for a free one.

    Raises:
        InputError: if it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        # Python adds the address as a tuple to the system's words. Faults of names have negative numbers.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or error
        raise InputError(
            f"cannot listen on {host}, port {port}: {why}", remedy=remedy, code="ADDRESS_UNAVAILABLE"
        ) from error
