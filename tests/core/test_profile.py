"""Hardware profiles: what ships is sound, and whatever is wrong with one is named together with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.errors import refused as refused_as
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.core.errors import ProfileError
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.profile import (
    HardwareProfile,
    data_folder,
    parse_profile,
    profile_folder,
    profile_names,
    read_profile,
)
from ztdeploy.jobs.build import BuildRequest
from ztdeploy.target.backends import BACKENDS, backend_of

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "profiles").glob("*.toml"))
LEAST = {"title": "A test", "backend": "onnxruntime"}
HEAD = 'title = "A test"\nbackend = "onnxruntime"\n'


@pytest.fixture
def toml(tmp_path):
    """Writes a TOML file behind the two lines that every profile needs, and returns its path."""

    def write(text, name="mine.toml", head=HEAD):
        path = tmp_path / name
        path.write_text(head + text, encoding="utf-8")
        return str(path)

    return write


def refused(name, *fragments):
    return refused_as(lambda: read_profile(name), *fragments, kind=ProfileError)


SCHEDULE = '[[schedules]]\nname = "mine"\n[[schedules.layer]]\nblock = 3\nkeep_ratio = 0.5\n'


def test_a_profile_may_hold_schedules(toml):
    (schedule,) = read_profile(toml(SCHEDULE)).schedules
    assert (schedule.name, schedule.layers[0].block) == ("mine", 3)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("blok = 3", "did you mean 'block'?"),
        ("[schedules.options]\nmetrik = 3", "did you mean 'metric'?"),
        ("[[schedules.layers]]", "did you mean 'layer'?"),
    ],
)
def test_a_wrong_word_in_a_schedule_names_the_nearest(toml, line, hint):
    refused(toml(SCHEDULE + line), "schedules.0", hint)


@pytest.mark.parametrize(
    ("asked", "left"), [({}, True), ({"keep_ratios": (0.5,)}, False), ({"methods": ("tome",)}, False)]
)
def test_profiles_decide_where_nothing_else_is_asked_for(asked, left):
    assert (
        BuildRequest(model=ModelSource(name="deit_t"), profiles=("cpu",), out=Path("x"), **asked).profiles_decide
        is left
    )


# -------------------- what ships


def test_the_promised_profiles_ship():
    promised = {"cpu", "desktop-gpu", "jetson-orin", "jetson-orin-nano", "jetson-thor", "raspberry-pi5"}
    assert promised <= set(SHIPPED)
    assert profile_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_is_sound(name):
    profile = read_profile(name)
    assert profile.name == name
    assert profile.title
    backend_of(profile).check_profile(profile)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_says_what_its_runtime_needs(name):
    profile = read_profile(name)
    assert (profile.tensorrt is not None) == profile.backend.startswith("tensorrt")
    if profile.tensorrt is not None:
        assert profile.tensorrt.compute_capabilities or profile.backend == "tensorrt", "the device's own"
        assert all(float(capability) >= 7.5 for capability in profile.tensorrt.compute_capabilities)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_reads_the_same_by_name_by_path_and_from_a_manifest(name):
    profile = read_profile(name)
    assert read_profile(str(profile_folder() / f"{name}.toml")) == profile
    assert HardwareProfile.model_validate_json(profile.model_dump_json()) == profile


def test_an_unknown_backend_is_named_with_the_nearest():
    with pytest.raises(ProfileError, match="did you mean 'tensorrt-rtx'"):
        backend_of(read_profile("cpu").model_copy(update={"backend": "tensorrt_rtx"}))


def test_data_folders_are_found_in_a_checkout():
    assert data_folder("profiles").is_dir()


# -------------------- unknown names


@pytest.mark.parametrize(
    ("name", "nearest"), [("cpuu", "cpu"), ("jetson_orin", "jetson-orin"), ("raspberry-pi-5", "raspberry-pi5")]
)
def test_an_unknown_profile_names_the_nearest(name, nearest):
    refused(name, f"'{name}'", f"did you mean '{nearest}'?")


def test_a_profile_like_no_other_lists_them_all():
    refused("zzzzzz", *SHIPPED)


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("opsett = 20", "opsett", "opset"),
        ("keep_ratio = [0.7]", "keep_ratio", "keep_ratios"),
        ("image-input = 'uint8'", "image-input", "image_input"),
        ("[batches]\nsizes = [1]", "batches", "batch"),
        ("[batch]\nsize = [1]", "batch.size", "sizes"),
        ("[batch]\ndynamik = true", "batch.dynamik", "dynamic"),
        ("[tensorrt]\nworkspace_mb = 64", "tensorrt.workspace_mb", "workspace_mib"),
        ("[tensorrt]\ncompute_capability = ['8.7']", "tensorrt.compute_capability", "compute_capabilities"),
    ],
)
def test_an_unknown_key_names_the_nearest_of_its_table(toml, text, key, nearest):
    refused(toml(text), f"'{key}'", f"did you mean '{nearest}'?")


@pytest.mark.parametrize(
    ("head", "key", "nearest"),
    [
        ('titel = "x"\nbackend = "onnxruntime"\n', "titel", "title"),
        ('title = "x"\nbackends = "onnxruntime"\n', "backends", "backend"),
    ],
)
def test_a_misspelt_required_key_is_named_rather_than_called_missing(toml, head, key, nearest):
    refused(toml("", head=head), f"'{key}'", f"did you mean '{nearest}'?")


@pytest.mark.parametrize("key", ["title", "backend"])
def test_a_missing_key_is_named(toml, key):
    head = "".join(line + "\n" for line in HEAD.splitlines() if not line.startswith(key))
    refused(toml("", head=head), key, "required")


# -------------------- values


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("opset = 17", "opset"),
        ("opset = 24", "opset"),
        ("opset = 'twenty'", "opset"),
        ("precision = 'fp8'", "precision"),
        ("image_input = 'bgr'", "image_input"),
        ("keep_ratios = []", "keep_ratios"),
        ("keep_ratios = [0]", "keep_ratios"),
        ("keep_ratios = [1.01]", "keep_ratios"),
        ("keep_ratios = [-0.5]", "keep_ratios"),
        ("keep_ratios = [nan]", "keep_ratios"),
        ("keep_ratios = 0.7", "keep_ratios"),
        ("threads = -1", "threads"),
        ("threads = 1025", "threads"),
        ("batch = 8", "batch"),
        ("[batch]\nsizes = []", "batch.sizes"),
        ("[batch]\nsizes = [0]", "batch.sizes"),
        ("[batch]\nsizes = [1, -8]", "batch.sizes"),
        ("[batch]\nsizes = [1.5]", "batch.sizes"),
        ("[tensorrt]\nworkspace_mib = 15", "tensorrt.workspace_mib"),
        ("tensorrt = 'yes'", "tensorrt"),
        ("name = 'Jetson Orin'", "name"),
        ("name = '../evil'", "name"),
        ('name = "cpu\\n"', "name"),
        ('precision = "fp\\n32"', "precision"),
    ],
)
def test_a_value_out_of_range_is_named(toml, text, key):
    refused(toml(text), key, f"correct '{key}")


@settings(deadline=None)
@given(st.lists(st.floats() | st.integers(-2, 2), min_size=1, max_size=4))
def test_keep_ratios_lie_between_0_and_1(ratios):
    data = {**LEAST, "keep_ratios": ratios}
    if all(0 < ratio <= 1 for ratio in ratios):
        assert parse_profile(data, Path("p.toml")).keep_ratios == tuple(ratios)
    else:
        with pytest.raises(ProfileError, match="keep_ratios"):
            parse_profile(data, Path("p.toml"))


@settings(deadline=None)
@given(st.lists(st.integers(-3, 10_000), max_size=6))
def test_batch_sizes_are_positive_and_come_out_sorted_once_each(sizes):
    data = {**LEAST, "batch": {"sizes": sizes}}
    if sizes and min(sizes) >= 1:
        assert parse_profile(data, Path("p.toml")).batch.sizes == tuple(sorted(set(sizes)))
    else:
        with pytest.raises(ProfileError, match=r"batch\.sizes"):
            parse_profile(data, Path("p.toml"))


def test_a_profile_takes_its_name_from_the_file_unless_it_says_one(toml):
    assert read_profile(toml("", name="pocket-board.toml")).name == "pocket-board"
    assert read_profile(toml("name = 'other'", name="pocket-board.toml")).name == "other"


def test_a_profile_cannot_be_changed(toml):
    with pytest.raises(ValueError, match="frozen"):
        read_profile(toml("")).opset = 21


# -------------------- files


@pytest.mark.parametrize(
    "content",
    [b"title = ", b"title = 'a'\ntitle = 'b'", b"\xff\xfe", b"\x00", b"[batch", b"x = " + b"9" * 5000],
    ids=["no-value", "twice", "not-utf8", "nul", "open-table", "huge-number"],
)
def test_what_is_not_toml_is_refused(tmp_path, content):
    path = tmp_path / "p.toml"
    path.write_bytes(content)
    refused(str(path), "cannot be read", "TOML")


def test_an_empty_file_lacks_its_keys(tmp_path):
    (tmp_path / "empty.toml").touch()
    refused(str(tmp_path / "empty.toml"), "title", "required")


def test_fused_attention_is_for_backends_that_have_it(toml):
    profile = read_profile(toml("fused_attention_from = 400\n"))
    assert profile.fused_attention_from == 400
    for name in BACKENDS:
        backend = backend_of(profile.model_copy(update={"backend": name}))
        if backend.fused_attention:
            backend.check_profile(profile)
        else:
            with pytest.raises(ProfileError, match=f"fused_attention_from with the backend {name}"):
                backend.check_profile(profile)
    refused(toml("fused_attention_from = 0\n"), "fused_attention_from")


# -------------------- int8


def test_int8_options_are_for_int8_alone(toml):
    profile = read_profile(toml('precision = "int8"\n[int8]\nfrom_block = 3\nweight_bits = 7\n'))
    assert (profile.int8.from_block, profile.int8.weight_bits) == (3, 7)
    assert read_profile(toml('precision = "int8"\n')).int8 is None
    static = read_profile(toml('precision = "int8"\n[int8]\nactivations = "uint8"\nrest = "bf16"\n')).int8
    assert (static.static, static.label) == (True, "uint8-bf16")
    refused(toml("[int8]\nfrom_block = 3\n"), "int8", "only precision int8")
    refused(toml('precision = "int8"\n[int8]\nweight_bits = 4\n'), "int8.weight_bits", "got 4")
    refused(toml('precision = "int8"\n[int8]\nfrom_block = -1\n'), "int8.from_block", "got -1")
    refused(toml('precision = "int8"\n[int8]\nfrom_blok = 1\n'), "from_blok", "did you mean 'from_block'?")
