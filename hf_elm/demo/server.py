"""The page served on this machine until it is interrupted."""

import errno
import signal
import socket
import sys
import threading

from ..families import family_of_checkpoint, find_family, resolve


def serve(
    checkpoint: str, port: int, host: str, share: bool, device: str | None = None, dtype: str | None = None
) -> None:
    """Loads the model, serves its page and returns after Ctrl-C or SIGTERM.

    Args:
        port: 0 = any free one.
        share: also open a public link through Gradio's tunnel, for a week at most.

    Raises:
        ValueError: the port is in use or the host is none of this machine's; see `load_checkpoint` for the model.
    """
    port = free_port(host, port)
    load_tabs = resolve(find_family(family_of_checkpoint(checkpoint)).demo)
    from .page import build_page, launch_options

    page = build_page(checkpoint, *load_tabs(checkpoint, device, dtype))
    try:
        _, local, public = page.launch(
            server_name=host, server_port=port, share=share, quiet=True, inbrowser=False, prevent_thread_lock=True,
            **launch_options(),
        )  # fmt: skip
    except OSError as error:  # somebody took the port meanwhile
        raise ValueError(_in_use(host, port)) from error
    sys.stdout.write(
        f"{checkpoint} at {local}{f' and, for everybody, at {public}' if public else ''} (Ctrl-C ends it)\n"
    )
    sys.stdout.flush()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        while not ended.wait(0.5):  # wakes up, so that a signal that another thread received is acted on
            pass
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    finally:
        page.close(verbose=False)
    sys.stdout.write("stopped.\n")


def free_port(host: str, port: int) -> int:
    """``port``, or for 0 any that is free on ``host``.

    Raises:
        ValueError: it is in use, needs rights, or the host is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ValueError(f"host={host} is not an address of this machine ({error}); 127.0.0.1 is usual.") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as the server does: a port that was closed a moment ago is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ValueError(
                f"port={port} needs administrator's rights; take one above 1023, e.g. port=7860."
            ) from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(_in_use(host, port)) from None
            raise ValueError(f"host={host} is not an address of this machine ({error}); 127.0.0.1 is usual.") from None
        return probe.getsockname()[1]


def _in_use(host, port):
    return f"port={port} is in use on {host}; choose another, e.g. port={port + 1}, or port=0 for any free one."
