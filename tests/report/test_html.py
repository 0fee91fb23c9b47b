import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from conftest import imported_by

from compress.report import html


@pytest.fixture(scope="module")
def page(results, measured):
    return html.render(results, measured)


class Tags(HTMLParser):
    """Counts tags, and whether each one that opens is closed in order."""

    VOID = frozenset({"meta", "link", "br", "use", "path", "rect"})

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_every_tag_is_closed(page):
    assert page.startswith("<!doctype html>\n")
    assert page.endswith("</html>\n")
    assert Tags(page).open == []


def test_the_page_needs_no_other_file_and_runs_no_script(page):
    tags = Tags(page)
    assert "script" not in tags.seen
    links = [value for name, value in tags.attributes if name in ("src", "href", "srcset")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import|https?://", page)


def test_every_section_is_there(page, headings):
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == headings


def test_what_was_not_measured_is_said_and_every_section_stays(bare, headings):
    page = html.render(bare, None)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == headings
    assert "The divergence was not measured in this run." in page
    assert "<svg" not in page
    assert "<p>None.</p>" in page


def test_the_same_results_give_the_same_bytes_in_any_process(page, results, measured, tmp_path):
    from compress.results import to_json

    (tmp_path / "results.json").write_text(to_json(results))
    (tmp_path / "measured.json").write_text(to_json(measured))
    program = (
        "import sys; from pathlib import Path; from compress.report import html, markdown\n"
        "from compress.results import *\n"
        "here = Path(sys.argv[1])\n"
        "results = from_json(Results, (here / 'results.json').read_text())\n"
        "measured = from_json(Measured, (here / 'measured.json').read_text())\n"
        "(here / 'report.html').write_bytes(html.render(results, measured).encode())\n"
        "markdown.render(results, measured), markdown.model_card(results, measured)\n"
    )
    assert not {"torch", "transformers", "matplotlib.pyplot"} & imported_by(program, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == page.encode()


def test_importing_the_room_loads_neither_plots_nor_templates():
    program = "from compress.report import html, markdown, plots, rows"
    assert not {"torch", "matplotlib", "jinja2"} & imported_by(program)


def test_text_of_models_and_recipes_cannot_become_markup(results):
    hostile = '<script>alert("x")</script>'
    sample = replace(results.samples[0], prompt=hostile, teacher=hostile, student="</p><b>bold")
    source = replace(results.provenance, teacher=hostile, recipe=hostile, recipe_text=hostile)
    stage = results.stages[0]
    linear = replace(stage.linears[0], name=hostile, note=hostile, outcome="kept_dense")
    page = html.render(
        replace(
            results,
            samples=(sample,),
            provenance=source,
            stages=(replace(stage, linears=(linear, *stage.linears[1:])),),
        ),
        None,
    )
    assert "<script" not in page
    assert "<b>bold" not in page
    assert Tags(page).open == []


def test_the_tails_that_differ_are_marked(page):
    assert "scatters in the <mark>Earth’s atmosphere." in page
    assert "scatters in the <mark>air. Blue light" in page
    assert "The same to the last word." in page


def test_fallbacks_are_visible(page):
    assert "1 of 211 linears did not become what the recipe asked for." in page
    assert "the damped hessian is not positive definite" in page


def test_recipe_and_command_to_make_it_again_are_there(page):
    assert "desc_act: true, damp_percent: 0.01" in page
    assert "compress apply recipe.lock.yaml --device cpu --threads 2" in page


def test_text_stands_out_from_the_page_in_light_and_in_dark(page):
    schemes = re.findall(r":root \{([^}]*--heat-8[^}]*)\}", page)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for name in ("ink", "soft", "accent"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours["ink"], colours["mark"]) >= 4.5
        for name in ("good", "bad"):
            for behind in ("paper", name + "-wash"):
                assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)


def contrast(one, other):
    """The contrast of two colours after WCAG 2."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
