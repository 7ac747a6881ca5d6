"""Write the reference from the stages' models, the chains, the command line and the options.

Called by `conf.py` before each build. What a page says stands in the code, once; to change a word
of it, change the field's description.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import ParamValidationError
from pydantic import BaseModel

from igneous_airflow.cli import _group as command_line
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.provider import get_provider_info
from igneous_airflow.stage import Stage, field_schemas
from igneous_airflow.stages import registered_stages

DAGS = Path(__file__).parent.parent / "dags"
Schema = Mapping[str, Any]


def write_reference(folder: Path) -> None:
    """Write the pages; one that has not changed is left alone, and what is no page goes."""
    pages = dict(reference_pages())
    folder.mkdir(exist_ok=True)
    for path in set(folder.iterdir()) - {folder / name for name in pages}:
        path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def reference_pages() -> Iterator[tuple[str, str]]:
    """Each page: its file name, and its text in Markdown."""
    stages = registered_stages()
    names = [*(name.replace("_", "-") for name in stages), "chains", "run", "commands", "options"]
    yield "index.md", _index(names)
    for name, stage in stages.items():
        yield f"{name.replace('_', '-')}.md", "\n".join(_stage_page(name, stage))
    yield "chains.md", "\n".join(_chains_page())
    yield "run.md", "\n".join(_run_page())
    yield "commands.md", "\n".join(_commands_page())
    yield "options.md", "\n".join(_options_page())


def _index(names: Iterable[str]) -> str:
    return "\n".join(
        [
            "# Reference",
            "",
            "Every stage with every parameter, as the code has them. In the Airflow form a "
            "parameter stands under its title; in JSON, over the REST API and in Python it has its "
            "name; on the command line it is an argument or an option.",
            "",
            "```{toctree}",
            ":maxdepth: 1",
            "",
            *names,
            "```",
            "",
        ]
    )


def _stage_page(name: str, stage: type[Stage]) -> Iterator[str]:
    command = command_line.commands[name.replace("_", "-")]
    words = {p.name: " / ".join([*p.opts, *p.secondary_opts]) for p in command.params}
    words |= {p.name: p.make_metavar(_context(command)) for p in _arguments(command)}
    yield from (f"# {name}", "", inspect.getdoc(stage) or "", "")
    yield from (f"DAG `igneous_{name}`{_chain_of(name)}; command:", "")
    yield from _usage(command)
    yield f"What it guarantees: [{name}](../stages.md#{name.replace('_', '-')})."
    yield from _sections(stage, words)
    yield "How it is run, as by how many workers: [](run.md)."


def _chain_of(name: str) -> str:
    """The note on a stage whose DAG is a chain of it and others."""
    return " ([a chain](chains.md))" if (DAGS / f"{name}.py").exists() else ""


def _sections(model: type[BaseModel], words: Mapping[str, str] | None = None) -> Iterator[str]:
    """The fields of a model under the headings that the form has."""
    fields = field_schemas(model).items()
    for heading, members in groupby(fields, key=lambda field: field[1]["section"]):
        yield from ("", f"## {heading}", "")
        for name, schema in members:
            command = f", `{words[name]}`" if words else ""
            yield from _entry(f"{schema['title']} — `{name}`{command}", _facts(schema), schema)


def _entry(term: str, facts: str, schema: Schema) -> Iterator[str]:
    yield from (f"**{term}**", f": {schema.get('description', '')}", "", f"  {facts}", "")


def _facts(schema: Schema) -> str:
    """Type, bounds and default in words."""
    kind = _kind(schema)
    if "default" not in schema:
        return f"*{kind}; must be given*"
    elsewhere = ""
    if "cli_default" in schema:
        elsewhere = f", {_shown(schema['cli_default'])} on the command line"
    return f"*{kind}; default: {_shown(schema['default'])}{elsewhere}*"


def _shown(default: object) -> str:
    """A default in words, or as it is written."""
    if default is None:
        return "empty"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"`{','.join(map(str, default)) if isinstance(default, list) else default}`"


def _kind(schema: Schema) -> str:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    optional = ", or empty" if "null" in kinds else ""
    if "enum" in schema:
        return f"one of {', '.join(f'`{c}`' for c in schema['enum'] if c is not None)}{optional}"
    return f"{_plain_kind(schema, kinds)}{_bounds(schema)}{optional}"


def _plain_kind(schema: Schema, kinds: list[str]) -> str:
    if "boolean" in kinds:
        return "yes or no"
    if "metavar" in schema:
        return f"`{schema['metavar']}`"
    if "array" in kinds:
        return f"three {schema['items']['type']}s, as text or a list"
    if "kind" in schema and "string" in kinds:
        return "address"
    return {"integer": "whole number", "number": "number"}.get(kinds[0], "text")


def _bounds(schema: Schema) -> str:
    limits = {**schema.get("items", {}), **schema}
    texts = [
        f"{word} {limits[key]:,}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "more than"),
            ("maximum", "at most"),
            ("multipleOf", "a multiple of"),
        )
        if key in limits
    ]
    return f", {' and '.join(texts)}" if texts else ""


@cache
def _chains() -> dict[str, DAG]:
    bag = DagBag(dag_folder=str(DAGS), bundle_path=DAGS, bundle_name="igneous")
    files = {file.stem for file in DAGS.glob("[!_]*.py")} - {"stages"}
    return {dag_id: bag.dags[dag_id] for dag_id in sorted(f"igneous_{stem}" for stem in files)}


def _chains_page() -> Iterator[str]:
    yield from (
        "# Chains",
        "",
        "DAGs of several stages with one form, which opens with the fields at the top.",
    )
    yield "What the fields mean is told by the stages. Those of the last sections, how it is run, "
    yield "are in [](run.md)."
    for dag_id, dag in _chains().items():
        yield from ("", f"## {dag_id}", "", re.sub("^1[.]", "\n1.", dag.doc_md or "", count=1), "")
        yield from ("| section | field | name | default |", "|---|---|---|---|")
        for name in dag.params:
            if name in RunOptions.model_fields:
                continue
            param = dag.params.get_param(name)
            section = param.schema.get("section", "at the top")
            title, default = param.schema["title"], _default_of(param)
            yield f"| {section} | {title} | `{name}` | {default} |"


def _default_of(param: Param) -> str:
    try:
        return _shown(param.resolve())
    except ParamValidationError:
        return "must be given"


def _run_page() -> Iterator[str]:
    yield from ("# How a stage is run", "", "Every form and every chain has these fields as well.")
    yield from _sections(RunOptions)


def _commands_page() -> Iterator[str]:
    yield from (
        "# Commands",
        "",
        "Each stage is a command. Beside its own options it has these:",
        "",
    )
    name, stage = next(iter(registered_stages().items()))
    command = command_line.commands[name.replace("_", "-")]
    yield from _options(command, (p for p in command.params if p.name not in stage.model_fields))
    yield from ("The other commands:", "")
    for name, command in command_line.commands.items():
        if name.replace("-", "_") not in registered_stages():
            yield from _command(name, command)


def _command(name: str, command: click.Command) -> Iterator[str]:
    yield from (f"## {name}", "", inspect.cleandoc(command.help or ""), "", *_usage(command))
    if isinstance(command, click.Group):
        for sub, member in command.commands.items():
            yield from _command(f"{name} {sub}", member)
        return
    yield from _options(command, command.params)


def _options(command: click.Command, parameters: Iterable[click.Parameter]) -> Iterator[str]:
    with _context(command) as context:
        records = [p.get_help_record(context) for p in parameters if isinstance(p, click.Option)]
    for flag, text in filter(None, records):
        yield from (f"`{flag}`", f": {text}", "")


def _usage(command: click.Command) -> Iterator[str]:
    with _context(command) as context:
        pieces = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"igneous-airflow {command.name} {pieces}", "```", "")


def _context(command: click.Command) -> click.Context:
    return click.Context(command, info_name=command.name)


def _arguments(command: click.Command) -> list[click.Argument]:
    return [p for p in command.params if isinstance(p, click.Argument)]


def _options_page() -> Iterator[str]:
    section = get_provider_info()["config"]["igneous"]
    yield from ("# Airflow's configuration", "", "The options of the section `[igneous]`.", "")
    for name, option in section["options"].items():
        default = f"`{option['default']}`" if option["default"] else "empty"
        example = f"; for example `{option['example']}`" if option["example"] else ""
        facts = f"*{option['type']}; default: {default}{example}; or the variable*"
        facts += f" `AIRFLOW__IGNEOUS__{name.upper()}`"
        yield from _entry(f"`{name}`", facts, option)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
