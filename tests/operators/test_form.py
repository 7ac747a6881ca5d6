"""The form of a chain, and the way back to its stages: on stages made up for it."""

from typing import Annotated, Any, ClassVar, Literal, Self

import pytest
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from pydantic import Field, model_validator

from igneous_airflow.fields import LayerUrl, MemoryTarget, Mip, section
from igneous_airflow.operators.chain import Chain, Refusal, Step
from igneous_airflow.operators.form import Form, Skipped
from igneous_airflow.stage import Audit, Plan, Stage, Work
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.mesh import Mesh
from igneous_airflow.stages.transfer import Transfer

pytestmark = pytest.mark.airflow


class Idle(Stage):
    """A stage with nothing to do."""

    def plan(self) -> Plan:
        return Plan(stage=self.name)

    def prepare(self) -> None:
        pass

    def cells(self) -> list[int]:
        return []

    def run(self, cell: Any) -> Work:
        return Work()

    def finish(self, by: str) -> Audit:
        return Audit(outputs={})


class Read(Idle):
    """Make a layer of files."""

    name: ClassVar[str] = "read"
    source: Annotated[str, Field(description="Files.", json_schema_extra=section("Where"))]
    dest: LayerUrl
    shape: Annotated[int, Field(ge=1, description="Big.", json_schema_extra=section("How"))] = 64
    kind: Annotated[
        Literal["image", "labels"],
        Field(description="What it shows.", json_schema_extra=section("Where")),
    ] = "image"
    memory_target: MemoryTarget = 2_000_000


class Stretch(Idle):
    """Improve the contrast."""

    name: ClassVar[str] = "stretch"
    layer: LayerUrl
    dest: LayerUrl
    low: Annotated[int, Field(ge=0, description="Dark.", json_schema_extra=section("What"))] = 0
    high: Annotated[int, Field(le=255, description="Light.", json_schema_extra=section("What"))] = 9
    memory_target: MemoryTarget = 2_000_000

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is above high: {self.high}")
        return self


class Coarsen(Idle):
    """Make it coarser."""

    name: ClassVar[str] = "coarsen"
    layer: LayerUrl
    mip: Mip = 0
    shape: Annotated[int, Field(ge=1, description="Big.", json_schema_extra=section("How"))] = 32
    memory_target: MemoryTarget = 2_000_000


class Surface(Idle):
    """Find surfaces."""

    name: ClassVar[str] = "surface"
    layer: LayerUrl
    mip: Mip = 0


def ingest() -> Form:
    """Read, stretch if asked, coarsen, and find surfaces of labels."""
    read = Step(Read, switch=True)
    stretch = Step(Stretch, binds={"layer": read["dest"]}, switch=False)
    last = (stretch["dest"], read["dest"])
    coarsen = Step(Coarsen, binds={"layer": last}, defaults={"mip": 2})
    surface = Step(Surface, binds={"layer": last}, only_if=read["kind"].is_("labels"), switch=True)
    return Form(Chain((read, stretch, coarsen, surface), shared=("memory_target",)))


def opened(form: Form) -> dict[str, Any]:
    """The values of the form as it opens."""
    return {name: param.value for name, param in form.params().items()}


def sections(form: Form) -> dict[str, list[str]]:
    """The form's fields by their section; those that it opens with have none."""
    found: dict[str, list[str]] = {}
    for name, param in form.params().items():
        found.setdefault(param.schema.get("section", ""), []).append(name)
    return found


RUN = {
    "Run": ["run_on", "workers", "max_attempts", "lease_seconds", "batch", "queue"],
    "Kubernetes pods": [
        *("pod_cpus", "pod_memory", "worker_image", "namespace"),
        *("service_account", "node_selector", "tolerations"),
    ],
}


def test_a_chain_of_one_step_has_the_form_of_its_stage() -> None:
    found = sections(Form(Chain((Step(Coarsen),))))
    own = {"": ["layer", "plan_only"], "Where": ["mip"], "How": ["shape"]}
    assert found == {**own, "Limits": ["memory_target"], **RUN}
    assert list(found) == ["", "Where", "How", "Limits", "Run", "Kubernetes pods"]


def test_a_form_opens_with_what_must_be_filled_in_or_matters_most() -> None:
    class Sharpen(Coarsen):
        """Make it sharper."""

        name: ClassVar[str] = "sharpen"
        amount: Annotated[
            int, Field(description="Much.", json_schema_extra=section("What", first=True))
        ] = 2

    assert sections(Form(Chain((Step(Sharpen),))))[""] == ["layer", "amount", "plan_only"]
    perhaps = Form(Chain((Step(Surface), Step(Sharpen, switch=False)), shared=("layer",)))
    found = sections(perhaps)
    assert found[""] == ["layer", "run_sharpen", "plan_only"]
    assert "amount" in found["Sharpen"]


def test_switches_come_first_then_shared_fields_then_each_step_then_how_it_is_run() -> None:
    found = sections(ingest())
    assert found == {
        "": ["run_read", "run_stretch", "run_surface", "plan_only"],
        "All steps": ["memory_target"],
        "Read": ["source", "read_dest", "kind", "read_shape"],
        "Stretch": ["stretch_dest", "low", "high"],
        "Coarsen": ["coarsen_mip", "coarsen_shape"],
        "Surface": ["surface_mip"],
        **RUN,
    }
    assert list(found)[:3] == ["", "All steps", "Read"]


def test_the_form_opens_with_the_defaults_of_the_stages_and_the_chain() -> None:
    values = opened(ingest())
    assert values["memory_target"] == 2_000_000
    assert (values["read_shape"], values["coarsen_shape"]) == (64, 32)
    assert (values["coarsen_mip"], values["surface_mip"]) == (2, 0)
    assert (values["run_read"], values["run_stretch"]) == (True, False)


def test_a_field_is_demanded_only_where_its_step_is_sure_to_run() -> None:
    always, perhaps = Step(Stretch), Step(Stretch, switch=True)
    with pytest.raises(ParamValidationError, match="No value passed"):
        Form(Chain((always,))).params()["dest"].resolve()
    dest = Form(Chain((perhaps, Step(Surface)))).params()["dest"]
    assert dest.resolve() is None
    assert dest.schema["type"] == ["string", "null"]
    assert dest.description.endswith(" Needed when the step runs.")


def test_a_field_of_a_step_that_may_be_off_is_demanded_where_a_sure_step_goes_by_it() -> None:
    """The form opens with it as well; not with what only one of several alternatives needs."""
    perhaps = Step(Coarsen, switch=True)
    sure = Step(Surface, binds={"layer": perhaps["layer"]})
    form = Form(Chain((perhaps, sure)))
    assert sections(form)[""] == ["layer", "run_coarsen", "plan_only"]
    with pytest.raises(ParamValidationError, match="No value passed"):
        form.params()["layer"].resolve()
    assert opened(ingest())["stretch_dest"] is None


def test_a_field_that_every_step_shares_is_demanded_since_one_step_must_run() -> None:
    both = Chain((Step(Coarsen, switch=True), Step(Surface, switch=True)), shared=("layer",))
    with pytest.raises(ParamValidationError, match="No value passed"):
        Form(both).params()["layer"].resolve()


def test_values_reach_the_stages_that_run() -> None:
    form = ingest()
    given = {
        "source": "/files",
        "read_dest": "/raw",
        "coarsen_shape": 8,
        "memory_target": 3_000_000,
    }
    read = form.read(opened(form) | given)
    assert read["read"] == Read(source="/files", dest="/raw", memory_target=3_000_000)
    assert read["stretch"] == Skipped("run_stretch is off")
    assert read["coarsen"] == Coarsen(layer="/raw", mip=2, shape=8, memory_target=3_000_000)
    assert read["surface"] == Skipped("kind is 'image', not 'labels'")


def test_a_binding_takes_the_first_step_that_runs_and_else_what_the_form_says() -> None:
    form = ingest()
    given = {"source": "/files", "read_dest": "/raw", "stretch_dest": "/better", "kind": "labels"}
    both = form.read(opened(form) | given | {"run_stretch": True})
    assert both["stretch"] == Stretch(layer="/raw", dest="/better")
    assert both["coarsen"] == Coarsen(layer="/better", mip=2)
    assert both["surface"] == Surface(layer="/better")
    neither = form.read(opened(form) | {"read_dest": "/there", "run_read": False})
    assert neither["read"] == Skipped("run_read is off")
    assert neither["coarsen"] == Coarsen(layer="/there", mip=2)


def one_mip() -> Form:
    """Coarsen, and find the surfaces of the same mip."""
    coarsen = Step(Coarsen)
    return Form(Chain((coarsen, Step(Surface, binds={"mip": coarsen["mip"]})), shared=("layer",)))


@pytest.mark.parametrize(
    ("form", "place", "given"),
    [
        (one_mip(), "mip", {"layer": "/x"}),
        (ingest(), "coarsen_mip", {"source": "/files", "read_dest": "/raw"}),
    ],
    ids=["taken by a later step", "of a layer that an earlier step writes"],
)
def test_a_mip_that_depends_on_what_another_step_leaves_is_given_by_its_number(
    form: Form, place: str, given: dict[str, Any]
) -> None:
    """The coarsest mip of an earlier run would be taken for the one that this run writes."""
    param = form.params()[place]
    assert "Here the number is needed, not -1" in param.description
    with pytest.raises(ParamValidationError, match="minimum of 0"):
        param.resolve(-1)
    values = opened(form) | given
    with pytest.raises(AirflowFailException, match=f"\n  - {place}: -1, the coarsest .* number"):
        form.read(values | {place: -1})
    assert form.read(values | {place: 1})


def test_a_mip_that_nothing_else_depends_on_may_be_the_coarsest() -> None:
    form = Form(Chain((Step(Coarsen, switch=True), Step(Surface, switch=True)), shared=("layer",)))
    read = form.read(opened(form) | {"layer": "/x", "coarsen_mip": -1})
    assert read["coarsen"] == Coarsen(layer="/x", mip=-1)


def on_the_way() -> Form:
    """Coarsen, if asked, then find surfaces of the mip that was read, or of another."""
    coarsen = Step(Coarsen, switch=True)
    binds = {"layer": coarsen["layer"], "mip": (coarsen["mip"], None)}
    refusal = Refusal((coarsen["shape"].is_not(32), coarsen["mip"].is_(7)), "is too much: wait")
    return Form(Chain((coarsen, Step(Surface, binds=binds, refusals=(refusal,)))))


def test_a_step_has_a_field_of_its_own_for_when_the_step_that_it_is_bound_to_is_off() -> None:
    form = on_the_way()
    values = opened(form) | {"layer": "/x", "coarsen_mip": 1}
    assert form.read(values)["surface"] == Surface(layer="/x", mip=1)
    alone = form.read(values | {"run_coarsen": False, "surface_mip": 2})
    assert alone["surface"] == Surface(layer="/x", mip=2)
    words = "surface_mip: 2 is not what surface goes by, but coarsen_mip: clear it"
    with pytest.raises(AirflowFailException, match=words):
        form.read(values | {"surface_mip": 2})


def test_what_a_step_cannot_work_with_is_refused_when_all_of_it_is_given() -> None:
    form = on_the_way()
    values = opened(form) | {"layer": "/x"}
    both = {"shape": 8, "coarsen_mip": 7}
    with pytest.raises(AirflowFailException, match="  - shape: 8 and coarsen_mip: 7 is too much"):
        form.read(values | both)
    for fine in ({"shape": 8}, {"coarsen_mip": 7}, both | {"run_coarsen": False}):
        assert form.read(values | fine)


def test_wrong_values_of_every_step_are_refused_at_once_in_the_words_of_the_form() -> None:
    form = ingest()
    given = {
        "run_stretch": True,
        "read_dest": "nowhere",
        "stretch_dest": "/better",
        "low": 9,
        "high": 3,
        "coarsen_mip": -7,
        "workers": -1,
    }
    with pytest.raises(AirflowFailException) as caught:
        form.read(opened(form) | given)
    start, *lines = str(caught.value).splitlines()
    assert start == "Nothing was started:"
    beginnings = (
        "  - source: Field required",
        "  - read_dest: 'nowhere' is not an address",
        "  - coarsen_mip: Input should be greater than or equal to -1; got -7",
        "  - workers: Input should be greater than or equal to 0; got -1",
    )
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)


def test_fields_that_do_not_go_together_are_named_as_in_the_form() -> None:
    twice = Form(Chain((Step(Stretch), Step(Stretch, name="again")), shared=("layer", "dest")))
    given = {"layer": "/a", "dest": "/b", "again_low": 9, "again_high": 3}
    with pytest.raises(AirflowFailException, match="  - again_low: 9 is above again_high: 3"):
        twice.read(opened(twice) | given)


def test_values_of_a_step_that_does_not_run_are_nobodys_business() -> None:
    form = ingest()
    given = {"read_dest": "/raw", "run_read": False, "low": 9, "high": 3, "surface_mip": 5}
    assert isinstance(form.read(opened(form) | given)["coarsen"], Coarsen)


def test_a_chain_without_any_step_to_run_is_refused() -> None:
    form = Form(Chain((Step(Coarsen, switch=True), Step(Surface, switch=True)), shared=("layer",)))
    with pytest.raises(AirflowFailException, match="run: run_coarsen is off; run_surface"):
        form.read(opened(form) | {"layer": "/x", "run_coarsen": False, "run_surface": False})


def test_what_a_plan_says_is_put_in_the_words_of_the_form() -> None:
    form = ingest()
    surface = form.chain.steps[-1]
    values = opened(form) | {"read_dest": "/raw"}
    text = "mip: file:///raw has no mip 5; layer: there are 3"
    assert form.in_its_words(surface, text, values) == (
        "surface_mip: file:///raw has no mip 5; read_dest: there are 3"
    )


def test_what_may_go_is_confirmed_once_for_all_steps() -> None:
    transfer = Step(Transfer)
    delete = Step(Delete, binds={"layer": transfer["src"]}, switch=False)
    form = Form(Chain((transfer, Step(Mesh, binds={"layer": transfer["dest"]}), delete)))
    params = form.params()
    names = [name for name in params if name.endswith(("confirm", "keep_deleted", "trash_entry"))]
    assert sorted(names) == ["confirm", "keep_deleted", "trash_entry"]
    values = {"src": "/a", "dest": "/b", "run_delete": True}
    for confirm in (True, False):
        stages = form.read({**values, "confirm": confirm})
        assert {getattr(stage, "confirm", None) for stage in stages.values()} == {confirm}
    text = form.in_its_words(delete, "confirm: files would go: set `confirm` to start", values)
    assert text == "confirm: files would go: set 'Yes, replace or delete' to start"
    assert "set 'Yes, delete'" in Form(Chain((Step(Delete),))).in_its_words(
        Step(Delete), "set `confirm`", {}
    )


def test_two_fields_of_one_name_are_an_error_for_the_developer() -> None:
    class Odd(Idle):
        """A stage whose field has the name that another's gets in a form."""

        name: ClassVar[str] = "odd"
        surface_mip: Mip = 0

    with pytest.raises(TypeError, match="2 fields of the form are named surface_mip"):
        Form(Chain((Step(Coarsen), Step(Surface), Step(Odd))))


def test_airflow_checks_what_the_form_says() -> None:
    params: dict[str, Param] = ingest().params()
    with pytest.raises(ParamValidationError, match="minimum"):
        params["read_shape"].resolve(0)
    with pytest.raises(ParamValidationError, match="boolean"):
        params["run_read"].resolve("maybe")
