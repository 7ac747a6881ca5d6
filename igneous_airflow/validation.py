"""What pydantic found wrong, in words for people; used where models are made of what they wrote."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from igneous_airflow.credentials import hide_credentials, holds_credentials, refuse_credentials

_SAY_ENOUGH = ("value_error", "missing", "json_invalid")  # kinds whose message needs no value
_LONGEST = 200  # characters of a value


class WithoutCredentials(BaseModel):
    """What people fill in: no field takes credentials, whatever it is for.

    They are refused before any field is validated: what a validator says of a wrong value may
    repeat it.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_credentials(cls, data: object) -> object:
        for name, value in data.items() if isinstance(data, Mapping) else ():
            try:
                refuse_credentials(value)
            except ValueError as error:
                raise ValueError(f"{hide_credentials(str(name))}: {error}") from None
        return data


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
