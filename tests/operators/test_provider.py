"""What Airflow finds of this package by itself."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.sdk import conf

from igneous_airflow.operators.plugin import IgneousPlugin
from igneous_airflow.operators.provider import get_provider_info

pytestmark = pytest.mark.airflow


def test_the_provider_fits_the_schema_of_airflow() -> None:
    schema = Path(airflow.__file__).with_name("provider_info.schema.json")
    jsonschema.validate(get_provider_info(), json.loads(schema.read_text()))


def test_airflow_finds_the_provider_and_its_configuration() -> None:
    from airflow.providers_manager import ProvidersManager

    assert "igneous-airflow" in ProvidersManager().providers
    assert conf.has_option("igneous", "runs")


def test_airflow_finds_the_plugin() -> None:
    (plugin,) = entry_points(group="airflow.plugins", name="igneous")
    assert plugin.load() is IgneousPlugin
