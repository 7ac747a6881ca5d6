"""What pydantic found wrong, in words for people; used where models are made of what they wrote."""

from pydantic import ValidationError

from igneous_airflow.credentials import hide_credentials, holds_credentials

_SAY_ENOUGH = ("value_error", "missing", "json_invalid")  # kinds whose message needs no value
_LONGEST = 200  # characters of a value


def wrong_fields(error: ValidationError) -> list[str]:
    """Each wrong field, what is wrong and its value; no field where several do not go together.

    A value that holds credentials is not repeated.
    """
    problems = []
    for problem in error.errors(include_url=False):
        field = ".".join(hide_credentials(str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        is_told = problem["type"] not in _SAY_ENOUGH and not holds_credentials(value)
        got = f"; got {value!r:.{_LONGEST}}" if is_told else ""
        problems.append(f"{field + ': ' if field else ''}{message}{got}")
    return problems
