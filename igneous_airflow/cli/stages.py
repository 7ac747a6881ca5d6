"""A command per stage, derived from the stage's fields."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource
from pydantic import ValidationError

from igneous_airflow.cli.addresses import embedded_queue, folder_url, program, queue_url, quoted
from igneous_airflow.cli.runs import runs_option, sync_option, work_on, worker_command
from igneous_airflow.errors import PlanRefused
from igneous_airflow.fields import ADDRESS, FILES, LAYER
from igneous_airflow.run import Run
from igneous_airflow.run_record import new_run_name
from igneous_airflow.stage import Stage, field_schemas, fields_of_kind, with_words
from igneous_airflow.stages import registered_stages
from igneous_airflow.storage.provenance import author

_TYPES: dict[str, "click.ParamType[Any]"] = {
    "integer": click.INT,
    "number": click.FLOAT,
    "string": click.STRING,
    "array": click.STRING,
}


@click.command
def stages() -> None:
    """List the stages, each of which is a command and an Airflow DAG."""
    for name, stage in registered_stages().items():
        click.echo(f"{command_name(name):24} {_summary(stage)}")


def stage_commands() -> Iterator[click.Command]:
    """Make the command of every registered stage."""
    for name, stage in registered_stages().items():
        command = click.Command(
            command_name(name),
            callback=_callback(stage),
            help=inspect.getdoc(stage),
            short_help=_summary(stage),
            params=[*_parameters(stage), *_common_options()],
        )
        yield sync_option(command)


def command_name(stage_name: str) -> str:
    """What a stage is called on the command line."""
    return stage_name.replace("_", "-")


def _summary(stage: type[Stage]) -> str:
    return (inspect.getdoc(stage) or "").partition("\n")[0]


def _parameters(stage: type[Stage]) -> Iterator[click.Parameter]:
    """Required fields become arguments, all others options; help and types are the fields'."""
    schemas, words = field_schemas(stage), _words(stage)
    for name, schema in schemas.items():
        if "default" not in schema:
            yield click.Argument([name], metavar=words[name])
            continue
        flag = words[name]
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        help_text = with_words(schema["description"], words)
        if "flag" in schema:
            yield click.Option([flag, name], is_flag=True, help=help_text)
            continue
        if "boolean" in kinds:
            yield click.Option(
                [f"{flag}/--no-{flag[2:]}", name],
                default=schema.get("cli_default", schema["default"]),
                show_default=True,
                help=help_text,
            )
            continue
        choices = [choice for choice in schema.get("enum", []) if choice is not None]
        yield click.Option(
            [flag, name],
            type=click.Choice(choices) if choices else _TYPES[kinds[0]],
            default=schema["default"],
            show_default=schema["default"] is not None,
            help=help_text,
            metavar=schema.get("metavar", "X,Y,Z" if "array" in kinds else None),
        )


@contextmanager
def in_our_words(stage: type[Stage]) -> Iterator[None]:
    """Name the options in what a plan is refused for."""
    try:
        yield
    except PlanRefused as refused:
        words = _words(stage)
        reasons = [with_words(reason, words) for reason in refused.refusals]
        raise PlanRefused(refused.stage, reasons) from None


def _words(stage: type[Stage]) -> dict[str, str]:
    """What the fields of a stage are called on the command line."""
    return {name: _word(name, schema) for name, schema in field_schemas(stage).items()}


def _word(name: str, schema: Mapping[str, Any]) -> str:
    """What a field is called on the command line."""
    if "default" not in schema:
        return name.upper()
    flag: str = schema.get("flag") or f"--{name.replace('_', '-')}"
    return flag


def _common_options() -> Iterator[click.Parameter]:
    yield click.Option(
        ["--dry-run", "--plan-only"],
        is_flag=True,
        help="Print the plan and write nothing at all.",
    )
    yield click.Option(
        ["--queue"],
        metavar="URL",
        callback=queue_url,
        help="Only prepare, and send the tasks to this queue for workers elsewhere.",
    )
    yield click.Option(
        ["--processes"],
        type=click.IntRange(1),
        default=2,
        show_default=True,
        help="Worker processes on this machine.",
    )
    yield click.Option(
        ["--batch"],
        type=click.IntRange(1),
        metavar="BLOCKS",
        help="Blocks of a task: 1, or more where there would be over 100,000 tasks.",
    )
    yield runs_option()


def _callback(stage: type[Stage]) -> Callable[..., None]:
    def run_stage(
        *,
        dry_run: bool,
        queue: str | None,
        processes: int,
        batch: int | None,
        runs: str,
        sync: bool,
        **values: Any,
    ) -> None:
        launched = make_stage(stage, values)
        if dry_run:
            launched.require_allowed()
            plan = launched.resolved().plan().require_possible()
            click.echo(with_words(plan.describe(), _words(stage)))
            return
        url = f"{runs}/{new_run_name(stage.name)}"
        with in_our_words(stage):
            run, plan = Run.launch(
                launched,
                url=url,
                queue=queue or embedded_queue(url),
                by=author(),
                own_queue=queue is None,
                batch=batch,
            )
        click.echo(plan.describe())
        click.echo(f"  if stopped, go on with: {program()} resume {quoted(run.url)}")
        run.prepare()
        sent = run.enqueue()
        if queue is None:
            code = work_on(run, processes, sync=sync)
            if stage.followed_by:
                layer = values[fields_of_kind(stage, LAYER)[0]]
                command = command_name(stage.followed_by)
                source = click.get_current_context().get_parameter_source("runs")
                is_given = source is ParameterSource.COMMANDLINE
                here = f" --runs {quoted(runs)}" if is_given else ""
                click.echo(f"Next: {program()} {command} {quoted(layer)}{here}")
            sys.exit(code)
        path = quoted(run.url)
        click.echo(
            f"{sent:,} tasks are in {queue}.\n"
            f"  work on them:   {worker_command(run)}\n"
            f"  watch them:     {program()} status {path}\n"
            f"  when all done:  {program()} finish {path}"
        )

    return run_stage


def make_stage(stage: type[Stage], values: dict[str, Any]) -> Stage:
    """Build the stage from the command line's values; a usage error names each wrong option."""
    for name in fields_of_kind(stage, ADDRESS, FILES, LAYER):
        if values.get(name):
            values[name] = folder_url(values[name])
    try:
        return stage.model_validate(values)
    except ValidationError as error:
        flags = {parameter.name: parameter.opts[0] for parameter in _parameters(stage)}
        problems = []
        for problem in error.errors():
            place = [flags[str(part)] for part in problem["loc"][:1]]  # none: several together
            problems.append(": ".join([*place, problem["msg"].removeprefix("Value error, ")]))
        raise click.UsageError("\n       ".join(problems)) from None
