# SPDX-License-Identifier: MIT
"""An independent reader of the Pagurus stream, written from stream.md alone. Standard library only."""


class Refused(Exception):
    """What the stream does that the page does not allow; the text says what and why."""


class Incomplete(Refused):
    """The bytes end where the stream has to go on."""
