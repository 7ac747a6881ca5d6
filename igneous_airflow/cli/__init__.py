"""`igneous-airflow`: a command for every stage, for workers, for runs; needs no Airflow."""

import sys

import click

from igneous_airflow.cli.allowed import ALLOWED, limit_to
from igneous_airflow.cli.demo import demo
from igneous_airflow.cli.embedded import airflow
from igneous_airflow.cli.levels import levels
from igneous_airflow.cli.picture import picture
from igneous_airflow.cli.runs import cancel, finish, redrive, resume, status
from igneous_airflow.cli.stages import command_name, stage_commands, stages
from igneous_airflow.cli.trash import trash
from igneous_airflow.cli.trigger import trigger
from igneous_airflow.cli.view import view
from igneous_airflow.cli.worker import dags_folder, worker
from igneous_airflow.errors import IgneousError


class _Commands(click.Group):
    """Finds the command of a stage by the stage's own name as well: `mesh_manifest`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, command_name(cmd_name))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--allowed",
    envvar=ALLOWED,
    metavar="PREFIX,PREFIX,...",
    help=f"Addresses below which layers and sources may be read and written. Set {ALLOWED} to say "
    "it once and for all. Without it: all.",
)
@click.version_option(package_name="igneous-airflow")
def _group(allowed: str | None) -> None:
    """Work on Neuroglancer Precomputed layers, in steps that are proved done."""
    limit_to(allowed, ALLOWED)


for _command in (
    worker,
    status,
    resume,
    cancel,
    redrive,
    finish,
    stages,
    trash,
    trigger,
    picture,
    levels,
    view,
    demo,
    airflow,
    dags_folder,
):
    _group.add_command(_command)
for _command in stage_commands():
    _group.add_command(_command)


def main() -> None:
    """Run the command line; our own errors are shown without a traceback, with exit code 1."""
    try:
        _group()
    except IgneousError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
