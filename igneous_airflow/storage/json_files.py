"""Small files of JSON that are pydantic models, as the records of runs are."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from igneous_airflow.errors import CorruptChunk, InvalidParameter
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import Folder, StoredFile
from igneous_airflow.validation import wrong_fields

RECORD_BYTES = 1 << 26  # 64 MiB: records of runs, receipts with the names of many files
Model = TypeVar("Model", bound=BaseModel)


def read_json(folder: Folder, name: str, kind: type[Model]) -> Model | None:
    """Read a model; None when there is no file. Raises InvalidParameter for one of another kind."""
    stored = folder.read(name)
    if stored is None:
        return None
    try:
        return kind.model_validate_json(bytes(decompress_bytes(stored, RECORD_BYTES)))
    except (ValidationError, CorruptChunk) as error:
        wrong = wrong_fields(error) if isinstance(error, ValidationError) else [str(error)]
        problems = "; ".join(wrong)
        raise InvalidParameter(
            f"{folder.url}/{name} is damaged, or of another version: {problems}"
        ) from None


def write_json(folder: Folder, name: str, entry: BaseModel) -> None:
    """Write a model, for people to read as well."""
    content = entry.model_dump_json(indent=2).encode()
    folder.write(name, StoredFile(content), content_type="application/json")
