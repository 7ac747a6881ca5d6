"""What plans say of time and cost is what earlier runs and the price table say."""

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.forecast import Forecast, Prices, Rate
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.overview import Overview
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Plan, Work
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

PLAN = Plan(
    stage="downsample", tasks=4, voxels=8_000, bytes_read=2_000_000_000, bytes_written=10**9
)


@pytest.fixture
def layer(tmp_path):
    """A layer of 4 tasks that make one mip."""
    return write_layer(tmp_path / "layer", random_voxels(Vec3(64, 16, 8)))


@pytest.fixture
def launch(tmp_path, layer):
    def launch(name, stage=None, batch=None):
        url = f"file://{tmp_path}/state/{name}"
        queue = f"sqlite://{tmp_path}/state/{name}/queue.db"
        stage = stage or Downsample(layer=layer, num_mips=1)
        run, _ = Run.launch(stage, url=url, queue=queue, by="me", batch=batch)
        return run

    return launch


def receive(run, seconds, voxels):
    for task in range(run.planned):
        work = Work(voxels=voxels)
        run.ledger.write_receipt(
            Receipt(task=task, attempt=1, seconds=seconds, worker="host:1", work=work)
        )


def test_time_is_expected_from_the_voxels_of_earlier_runs(launch):
    fast, slow, new = launch("fast"), launch("slow"), launch("new")
    receive(fast, seconds=1, voxels=1_000)
    receive(slow, seconds=3, voxels=1_000)
    forecast = Forecast.make(PLAN, new, Rate.measure([fast, slow]), 2, None)
    assert (forecast.runs, forecast.workers) == (2, 2)
    assert forecast.worker_seconds == pytest.approx(8_000 * 16 / 8_000)
    assert forecast.seconds == pytest.approx(8)
    assert "  takes  about 8 s with 2 workers, as 2 earlier runs did" in forecast.describe()
    assert "costs" not in forecast.describe()
    assert forecast.describe().startswith(PLAN.describe())


def test_time_is_expected_from_tasks_where_a_stage_reads_no_voxels(launch):
    earlier, new = launch("earlier", batch=2), launch("new")
    receive(earlier, seconds=3, voxels=0)
    plan = Plan(stage="mesh_manifest", tasks=4)
    forecast = Forecast.make(plan, new, Rate.measure([earlier]), 1, None)
    assert forecast.worker_seconds == pytest.approx(4 * 1.5)
    assert "about 6 s with 1 worker, as 1 earlier run did" in forecast.describe()


def test_more_workers_than_tasks_make_nothing_faster_and_workers_elsewhere_are_not_known(launch):
    earlier, new = launch("earlier"), launch("new")
    receive(earlier, seconds=100, voxels=1_000)
    rate = Rate.measure([earlier])
    assert Forecast.make(PLAN, new, rate, 1000, None).seconds == pytest.approx(200)
    elsewhere = Forecast.make(PLAN, new, rate, 0, None)
    assert elsewhere.seconds is None
    assert "about 13 min of one worker, as 1 earlier run did" in elsewhere.describe()


def test_without_an_earlier_run_nobody_knows(launch):
    new = launch("new")
    forecast = Forecast.make(PLAN, new, Rate.measure([]), 2, Prices(worker_hour=1))
    assert (forecast.worker_seconds, forecast.seconds, forecast.cost) == (None, None, None)
    assert "takes  not known: no earlier run" in forecast.describe()
    assert "costs  not known before one run" in forecast.describe()


def test_the_cost_adds_up_hours_tasks_and_bytes(launch):
    earlier, new = launch("earlier"), launch("new")
    receive(earlier, seconds=450, voxels=1_000)  # an hour for 8,000 voxels
    prices = Prices(
        currency="EUR", worker_hour=3, task=0.25, gigabyte_read=10, gigabyte_written=100
    )
    forecast = Forecast.make(PLAN, new, Rate.measure([earlier]), 2, prices)
    assert forecast.cost == pytest.approx(3 + 4 * 0.25 + 20 + 100)
    assert "  costs  about 124.00 EUR" in forecast.describe()
    of_tasks = Forecast.make(PLAN, new, Rate.measure([]), 2, Prices(task=0.001))
    assert of_tasks.cost == pytest.approx(0.004), "the time costs nothing, so it need not be known"
    assert "about 0.004 USD" in of_tasks.describe()


def test_a_price_table_is_read_and_what_is_wrong_in_it_is_named():
    where = "[igneous] prices"
    assert Prices.parse(" ", where) is None
    assert Prices.parse('{"task": 2}', where) == Prices(task=2)
    for text, words in (
        ('{"hour": 1}', "hour: Extra inputs are not permitted"),
        ('{"task": -1}', "task: Input should be greater than or equal to 0"),
        ("0.05", "the table: "),
        ("{", "the table: "),
    ):
        with pytest.raises(InvalidParameter) as caught:
            Prices.parse(text, where)
        assert f"{where} = {text!r}" in str(caught.value)
        assert words in str(caught.value)
        assert "any of currency, worker_hour, task" in str(caught.value)


def test_the_newest_runs_of_the_stage_that_were_proved_done_are_found(launch, layer, tmp_path):
    for name, stage in (
        ("first", None),
        ("other", Transfer(src=layer, dest=f"{tmp_path}/copy")),
        ("second", None),
        ("unfinished", None),
    ):
        run = launch(name, stage)
        if name == "unfinished":
            continue
        run.prepare()
        run.enqueue()
        Worker(
            run.open_queue(), run.runs_folder, WorkerOptions(until_done=True), lambda _: None
        ).work()
        run.finish()
    overview = Overview(f"file://{tmp_path}/state")
    assert [run.id for run in overview.finished("downsample")] == ["second", "first"]
    rate = Rate.measure(overview.finished("downsample"))
    assert (rate.runs, rate.cells, rate.voxels) == (2, 8, 2 * 64 * 16 * 8)
    assert rate.seconds > 0


def test_a_plan_is_noted_and_read_again(launch):
    run = launch("run")
    assert Forecast.of(run) is None
    forecast = Forecast.make(PLAN, run, Rate.measure([]), 2, Prices(task=1))
    run.write_plan(forecast)
    assert Forecast.of(run) == forecast
