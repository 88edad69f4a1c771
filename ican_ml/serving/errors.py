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


def invalid(field: str, message: str) -> ServiceError:
    """422: a field that cannot be used."""
    return ServiceError(422, "invalid_request", message, field)


def field_of(error: ValueError) -> str:
    """The field that a message begins with; "body" where it begins with none."""
    found = str(error).partition(":")[0].partition(",")[0]
    return found if " " not in found else "body"
