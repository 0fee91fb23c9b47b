import pytest

from compress import library
from compress.errors import CalibrationError
from compress.recipe import text_set
from compress.recipe.sections import Calibration
from compress.recipe.text import Text


@pytest.mark.parametrize("name", library.names("calib"))
def test_every_shipped_set_is_understood(name):
    assert text_set.describe(Calibration(set=name))["kind"] in ("self", "text", "hub")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("kind: txt\n", r"kind: 'txt' is none of self, text, hub"),
        ("kind: text\npath: a\npth: b\n", r"pth: .*no such key\. Did you mean path\?"),
        ("kind: text\n", r"path: missing"),
        ("kind: hub\ndataset: x\n", r"split: missing"),
        ("- 1\n", r"holds no mapping"),
        ("kind: [\n", r"not YAML"),
        ("kind: self\nkind: self\n", r"given twice"),
        (
            "kind: self\ntemperature: 0\n",
            r"set.yaml:2  temperature: 0 is out of range: must be above",
        ),
        ("kind: self\nprompts: [3]\n", r"set.yaml:2  prompts\[0\]: 3 is not text"),
        ("kind: self\ntemplates: ['{prompt}']\n", r"nothing to put into them\. Give prompts"),
    ],
)
def test_a_bad_set_file_is_refused(yaml, message, tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text(yaml)
    with pytest.raises(CalibrationError, match=message):
        text_set.describe(Calibration(set=str(path)))


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"calibration\.set: .*Did you mean self"):
        text_set.describe(Calibration(set="slef"))
    with pytest.raises(CalibrationError, match="no such file"):
        text_set.describe(Calibration(set=str(tmp_path / "none.txt")))


def test_a_set_may_say_what_its_teacher_is_asked_and_name_a_file_of_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nkind: self\nprompts: [Why?]\ntemperature: 0.7\n")
    found = text_set.describe(Calibration(set=str(path)))
    assert (found["prompts"], found["temperature"]) == (["Why?"], 0.7)
    path.write_text("version: 1\nkind: self\nprompts: asked.txt\n")
    assert text_set.describe(Calibration(set=str(path)))["prompts"] == str(tmp_path / "asked.txt")


def test_a_text_to_train_on_is_called_by_its_own_name(tmp_path):
    with pytest.raises(CalibrationError, match=r"^distill\.text\.set: "):
        text_set.describe(Text(set=str(tmp_path / "none.txt")))
