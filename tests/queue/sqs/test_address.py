"""What the URL of an SQS queue says."""

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.queue.sqs import SqsQueue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.run_record import run_folder_name


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("sqs://tasks", Address("tasks")),
        ("sqs://My_q-1?region=eu-west-1", Address("My_q-1", "eu-west-1")),
        (
            "sqs://q?endpoint=http://127.0.0.1:5555&region=a",
            Address("q", "a", "http://127.0.0.1:5555"),
        ),
        ("sqs://q?endpoint=http%3A%2F%2Fsqs%3A9324", Address("q", None, "http://sqs:9324")),
        ("sqs://q?create=false", Address("q", create=False)),
        (
            "https://sqs.eu-west-1.amazonaws.com/123456789012/q",
            Address("q", "eu-west-1", create=False, account="123456789012"),
        ),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q?create=false",
            Address("q", "cn-north-1", create=False, account="123456789012"),
        ),
        (
            "https://sqs-fips.us-gov-west-1.amazonaws.com/123456789012/q",
            Address(
                "q",
                "us-gov-west-1",
                "https://sqs-fips.us-gov-west-1.amazonaws.com",
                create=False,
                account="123456789012",
            ),
        ),
        (
            "https://vpce-0a1-2b3.sqs.eu-west-1.vpce.amazonaws.com/123456789012/q",
            Address(
                "q",
                "eu-west-1",
                "https://vpce-0a1-2b3.sqs.eu-west-1.vpce.amazonaws.com",
                create=False,
                account="123456789012",
            ),
        ),
        (
            "https://SQS.eu-west-1.api.aws/123456789012/q",
            Address(
                "q",
                "eu-west-1",
                "https://sqs.eu-west-1.api.aws",
                create=False,
                account="123456789012",
            ),
        ),
        (
            "https://eu-west-1.queue.amazonaws.com/123456789012/q",
            Address(
                "q",
                "eu-west-1",
                "https://eu-west-1.queue.amazonaws.com",
                create=False,
                account="123456789012",
            ),
        ),
        (
            "https://sqs.a.amazonaws.com/123456789012/q?endpoint=http://proxy/sqs/",
            Address("q", "a", "http://proxy/sqs", create=False, account="123456789012"),
        ),
        (
            "http://127.0.0.1:9324/000000000000/q?region=a",
            Address("q", "a", "http://127.0.0.1:9324", create=False, account="000000000000"),
        ),
    ],
)
def test_an_address_says_where_the_queue_is(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(address.url) == address
    assert isinstance(open_queue(text), SqsQueue)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqs://", "1 to 75 letters"),
        ("sqs://a/b", "names no SQS queue"),
        ("sqs://a.b", "1 to 75 letters"),
        ("sqs://key:secret@q", "holds credentials"),
        ("sqs://" + "a" * 76, "1 to 75 letters"),
        ("sqs://" + "a" * 81 + "?create=false", "1 to 80 letters"),
        ("sqs://q.fifo", "standard queue"),
        ("sqs://q?region=", "region=NAME"),
        ("sqs://q?create=no", "create=false"),
        ("sqs://q?aws_secret_access_key=abc", "holds credentials"),
        ("sqs://q?endpoint=127.0.0.1:80", "http://HOST:PORT"),
        ("sqs://q?endpoint=http://me:secret@host", "holds credentials"),
        ("https://example.com/queues/q", "names no SQS queue"),
        ("https://me:secret@example.com/123456789012/q", "holds credentials"),
        ("https://:secret@sqs.a.amazonaws.com/123456789012/q", "holds credentials"),
        ("https://me:secret@example.com/1/q?create=true", "holds credentials"),
        ("sqs://q?endpoint=http://:secret@host", "holds credentials"),
        ("https://sqs.eu-west-1.amazonaws.com/q", "names no SQS queue"),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/q?create=true", "leave out"),
    ],
)
def test_an_address_that_names_no_queue_is_refused_with_the_way_out(url: str, reason: str) -> None:
    with pytest.raises(InvalidParameter, match=reason) as caught:
        open_queue(url)
    assert "=abc" not in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("run", ["", "a", "manual__2026-01-01T00_00_00.123_00_00" * 3, "ünïcode"])
def test_a_run_has_a_queue_whose_name_sqs_takes_and_tells_it_from_others(run: str) -> None:
    folders = [run_folder_name("igneous_downsample", run, group) for group in ("a", "b")]
    names = [Address.of_run(folder).name for folder in folders]
    assert names[0] != names[1]
    for name, folder in zip(names, folders, strict=True):
        assert Address.parse(f"sqs://{name}").name == name
        assert name.startswith("igneous-igneous_downsample_")
        assert name.endswith(folder[-9:])
