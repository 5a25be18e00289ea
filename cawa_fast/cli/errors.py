"""How errors end a command: with a message, never with a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from ..recipes.text import readable

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""


@contextlib.contextmanager
def error_messages(stopped: Callable[[], str] = lambda: "Stopped.") -> Iterator[None]:
    """Within it, an error in arguments, files or the installation ends the command with a message and exit status 1.

    Args:
        stopped: gives the message for a command that the user interrupts, "" for none. The exit status is then 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        if message := stopped():
            click.echo(f"\n{readable(message)}")
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'cawa_fast[train]'") from error
    except (ImportError, ValueError, OSError, FloatingPointError) as error:
        raise click.ClickException(readable(str(error))) from error
