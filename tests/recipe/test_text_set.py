import pytest

from compress import library
from compress.errors import CalibrationError
from compress.recipe import text_set
from compress.recipe.sections import Calibration


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
