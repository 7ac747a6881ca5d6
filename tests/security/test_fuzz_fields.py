"""Every stage, with values in its fields that a mistake or an attack may put there.

They are derived from the fields' schemas, and always the same. A stage is refused in short words
that repeat no secret, or plans without writing anything, soon and in little memory.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import golden_files
import golden_meshes
import golden_mips
import golden_transfers
import pytest
from golden_case import Step
from pydantic import ValidationError

from igneous_airflow.errors import IgneousError
from igneous_airflow.stage import Stage, field_schemas, fields_of_kind
from igneous_airflow.stages import registered_stages, stage_class
from igneous_airflow.testing.stages import complete, snapshot
from igneous_airflow.validation import wrong_fields

SEED = 1
EXAMPLES = 300  # of each stage, of likely values
HOSTILE_VALUES = 25  # of each field
SECRET = "hunter2correcthorse"
LONGEST = 10_000  # characters of what is told
MEMORY = 2 << 30  # bytes more than at the start
SECONDS = 20  # of computing, for one example

#: One way to use each stage, with what must be done before.
EXAMPLE_OF = {
    "contrast_normalization": golden_files.contrast_by_sections,
    "delete": golden_mips.delete_mips,
    "downsample": golden_mips.downsample_odd_image,
    "hypersquare_consensus": golden_files.hypersquare_consensus,
    "hypersquare_ingest": golden_files.hypersquare_labels,
    "ingest": golden_files.ingest_npy,
    "luminance_levels": golden_files.levels_elsewhere,
    "mesh": golden_meshes.mesh_exact_part,
    "mesh_manifest": golden_meshes.mesh_simplified,
    "quantize_affinities": golden_files.quantize_affinities,
    "transfer": golden_transfers.transfer_moved,
    "watershed_remap": golden_files.watershed_npy,
}

#: Values for fields of any kind.
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, "", " ", "\0", "\x1b[31m", "\ud800", "x\ny", "null", "None", "true"),
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**19, -(10**19), 10**400, -(10**400)),
    *(0.5, -0.0, 1e308, math.inf, -math.inf, math.nan, "inf", "nan", "1e400", "9" * 5_000),
    *([], {}, [None], [[]], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], [-1, -1, -1]),
    *([math.nan] * 3, [math.inf] * 3, [10**400] * 3, [1.5] * 3, [True] * 3, ["1"] * 3, [[1]] * 3),
    *({"x": {"y": ["z"]}}, {"1": 1}, {"1": "2"}, {"\ud800": "\0"}, [{}] * 3, [0] * 20_000),
    *("x" * 100_000, "../" * 20_000, ["x" * 50_000] * 3, {"x" * 50_000: "x"}, "1," * 20_000),
    *("1,1,1", "0,0,0", "1,1", "-1,-1,-1", "1e9,1e9,1e9", f"{10**30},1,1"),
    *("\u0663,\u0663,\u0663", "\u00b2,\u00b2,\u00b2", "\u0663", "\u00b2"),
    *("2147483648,2147483648,2147483648", "1,1,9223372036854775807", "1;1;1", "0x10,1,1"),
    *(
        "0-1_0-1_0-1",
        "0-0_0-0_0-0",
        "8-0_0-8_0-8",
        "-99-99_-99-99_-99-99",
        "0-8_0-8",
        "\u0660-8_\u0660-8_\u0660-8",
    ),
    *(f"0-{10**30}_0-{10**30}_0-{10**30}", f"{-(2**63)}-{2**63}_0-8_0-8", "0-8_0-8_0-8" * 5_000),
    *("1:2", "1:2,1:3", "0:1", f"{2**64}:1", "1:2:3", "17", "0", f"{2**64}", "1,,2", "-1"),
    *("..", "../..", ".", "/", "//", "a/../b", "%2e%2e/%2e%2e", "%252e%252e", "~", "$HOME", "a\\b"),
    *("/etc/passwd", "/proc/self/environ", "/dev/zero", "file:///etc/../etc/shadow", "file://x/y"),
    *("gs://", "s3://", "://", "ftp://x/y", "javascript:alert(1)", "precomputed://", "s3+x://y/z"),
    *("{{ 1 }}", "${jndi:x}", "'; DROP TABLE runs; --", "<script>", "\u202e", "é" * 300, "🧠"),
)
#: Values for fields of three numbers, or of several.
VECTORS: tuple[Any, ...] = (
    *("1,1,1", "2,2,1", "8,8,8", "64,64,64", "2,3,4", "1,1,0", "1000000,1,1", " 4 , 4 , 4 "),
    *([2, 2, 2], [1, 1, 1], [16, 16, 8], (8, 8, 8), [-5, 0, 7], [2**40, 2**40, 2**40], [1, 2]),
    *("1048576,1048576,1048576", "-1000000000000,0,3", "4.5,4.5,40", "0.1,0.9", "0.9,0.1", "0.5"),
    *(["17"], "1,2,3,4,5", [1, 2, 3, 65535], "1:2,2:3", ["1:7"], {"1": 7, "2": 8}),
)
#: Addresses that hold a secret, in the ways that people write them.
SECRETS = (
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/layer",
    f"https://user:{SECRET}@example.org/layer",
    f"https://example.org/layer?X-Amz-Signature={SECRET}",
    f"gs://bucket/layer?token={SECRET}",
    f"%73%33%3a//KEY:{SECRET}%40bucket/layer",
    f"KEY:{SECRET}@bucket",
)


@dataclass(frozen=True)
class Example:
    """A stage ready to be planned in a folder of its own; its parameters as a person gives them."""

    root: Path
    stage: type[Stage]
    parameters: dict[str, Any]


@pytest.fixture(scope="module")
def make_example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Example]:
    """Makes the example of a stage, once the steps before it are done."""

    def make(name: str) -> Example:
        root = tmp_path_factory.mktemp(name)
        before, example = split(EXAMPLE_OF[name](root), name)
        for step in before:
            complete(stage_class(step.stage).model_validate(dict(step.parameters)))
        return Example(root, stage_class(name), dict(example.parameters))

    return make


def split(steps: Sequence[Step], name: str) -> tuple[Sequence[Step], Step]:
    """The first step of a stage, and those before it."""
    number = next(number for number, step in enumerate(steps) if step.stage == name)
    return steps[:number], steps[number]


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Let the process have no more than some memory besides what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    there = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def values(schema: dict[str, Any]) -> list[Any]:
    """Values such as the schema of a field describes, and next to its limits."""
    likely = list(schema.get("enum", ()))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "boolean" in kinds:
        likely += [True, False]
    if {"integer", "number"} & set(kinds):
        ends = [
            schema[end] for end in ("minimum", "maximum", "default") if schema.get(end) is not None
        ]
        likely += [float(end) + step for end in ends for step in (-1, 0, 1)]
        likely += [int(end) for end in likely if isinstance(end, float)] + [2, 3, 4, 5, 100, 1000]
    if "array" in kinds:
        likely += VECTORS
    return likely


def addresses(root: Path) -> list[str]:
    """Addresses of what is there, of what is not, and of what hides a secret."""
    there = [str(path) for path in sorted(root.rglob("*")) if path.is_dir() or path.suffix][:40]
    near = [f"{root}/none", f"file://{root}/none", f"{root}/*", f"{root}/layer/info", f" {root} "]
    return [*there, *near, *SECRETS]


def changes(example: Example, chance: Random) -> Iterator[dict[str, Any]]:
    """One to three fields with other values, and at times one that does not exist."""
    urls = fields_of_kind(example.stage, "layer", "address", "files")
    likely = {
        name: addresses(example.root) if name in urls else values(schema)
        for name, schema in field_schemas(example.stage).items()
    }
    likely["no_such_field"] = list(SECRETS)
    for _ in range(EXAMPLES):
        names = chance.sample(sorted(likely), chance.choice((1, 1, 2, 3)))
        yield {name: chance.choice(likely[name] or HOSTILE) for name in names}
    for name in likely:
        for value in chance.sample(HOSTILE, HOSTILE_VALUES):
            yield {name: value}


@pytest.mark.parametrize("name", registered_stages())
def test_whatever_is_in_its_fields_a_stage_refuses_in_words_or_plans_and_writes_nothing(
    name: str, make_example: Callable[[str], Example]
) -> None:
    example, planned = make_example(name), 0
    before = snapshot(example.root)
    for changed in changes(example, Random(f"{SEED} {name}")):
        started = time.process_time()
        with naming(changed):
            stage = accepted(example, changed)
            if stage is not None and is_local(stage, example.root):
                plan(stage)
                planned += 1
            assert time.process_time() - started < SECONDS
    assert snapshot(example.root) == before
    assert planned > EXAMPLES / 10, "hardly any example came as far as to a plan"


@contextmanager
def naming(changed: dict[str, Any]) -> Iterator[None]:
    """Let an error name the values that it comes of."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"of {changed!r:.1000}")
        raise


def accepted(example: Example, changed: dict[str, Any]) -> Stage | None:
    """The stage with changed fields; None when it is refused, in words that can be shown."""
    try:
        return example.stage.model_validate({**example.parameters, **changed})
    except ValidationError as error:
        told = f"{error}\n" + "\n".join(wrong_fields(error))
    except IgneousError as error:
        told = str(error)
    require_presentable(told)
    return None


def is_local(stage: Stage, root: Path) -> bool:
    """Whether a stage uses files of the example only: nothing here asks the network."""
    urls = [
        getattr(stage, name) for name in fields_of_kind(type(stage), "layer", "address", "files")
    ]
    return all(url.startswith(f"file://{root}/") for url in urls if url)


def plan(stage: Stage) -> bool:
    """Plan a stage, as a launch does, and say whether it could start."""
    try:
        plan = stage.resolved().plan()
    except IgneousError as error:
        require_presentable(str(error))
        return False
    require_presentable("\n".join(plan.refusals))
    require_presentable(plan.unconfirmed)
    return not plan.refusals


def require_presentable(told: str) -> None:
    """Check what a person will read."""
    assert len(told) < LONGEST, f"{len(told):,} characters: {told[:300]!r}"
    assert SECRET not in told
