"""What a request is answered when it is not answered: for programs a status and a word, for people a sentence."""

from __future__ import annotations


class ServiceError(Exception):
    """An answer other than what was asked for.

    Parameters
    ----------
    status
        HTTP status.
    code
        One word for programs.
    message
        One sentence for people: what was expected, what came.
    field
        Path of the field that is at fault, where one is.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
