"""The page in a real browser: headless Chromium, light and dark, wide and narrow."""

from dataclasses import replace

import pytest

from compress.report import html
from compress.results import GateResult, Raised, Round, Verdict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(results, measured, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html.render(results, measured), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def look(window, address):
    """Open the page at a width in a colour scheme."""
    return lambda width=1280, scheme="light": window(address, width, scheme)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390, 380])
def test_the_page_is_quiet_alone_and_never_wider_than_its_window(look, address, width, scheme):
    page = look(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_every_section_heading_is_seen(look, headings):
    page = look()
    assert page.locator("h2").all_inner_texts() == headings
    assert all(heading.is_visible() for heading in page.locator("h2").all())


def test_dark_changes_page_text_and_heat_map(look):
    def colours(page):
        return page.evaluate(
            """() => {
                const style = s => getComputedStyle(document.querySelector(s));
                return [style('body').backgroundColor, style('body').color,
                        style('.wide .cell path').fill, style('.wide text').fill];
            }"""
        )

    light, dark = colours(look(scheme="light")), colours(look(scheme="dark"))
    assert all(one != other for one, other in zip(light, dark, strict=True))


@pytest.mark.parametrize(
    ("width", "shown", "hidden"), [(1280, "wide", "narrow"), (390, "narrow", "wide")]
)
def test_each_width_sees_one_heat_map_with_a_cell_for_every_linear(look, width, shown, hidden):
    page = look(width)
    assert page.locator(f".{shown} .cell:visible").count() == 30 * 7
    assert page.locator(f".{hidden} svg:visible").count() == 0


@pytest.mark.parametrize("width", [1280, 390])
def test_no_text_of_a_figure_leaves_the_window_or_is_too_small(look, width):
    page = look(width)
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect())
            .filter(b => b.width).map(b => [b.left, b.right, b.height])"""
    )
    assert boxes
    assert all(left >= 0 and right <= width for left, right, _ in boxes)
    assert min(height for *_, height in boxes) >= 10


def test_the_printed_page_is_light_and_shows_the_recipe(look):
    page = look(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details pre").bounding_box()["height"] > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_verdict_is_seen_first_in_its_colour_and_fits(
    browser, results, tmp_path, width, scheme
):
    note = "worst: model.layers.29.self_attn.o_proj, 12 given more bits, 3 kept dense"
    gates = (
        GateResult("linear_error_max", 0.1, 0.0712, True, note),
        GateResult("kl_mean_max", 0.05, 0.0931, False, "20,460 tokens of heldout"),
    )
    raised = tuple(Raised(f"model.layers.{i}.mlp.down_proj", 3, 4) for i in range(9))
    rounds = (Round(gates, 80_000_000, raised, 0),) * 2
    why = "size_max 100 MB leaves no room for more bits"
    path = tmp_path / "report.html"
    judged = replace(results, verdict=Verdict("INFEASIBLE", gates, rounds, why))
    path.write_text(html.render(judged, None), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(path.as_uri())
    outcome = page.locator(".outcome")
    assert outcome.inner_text().startswith("INFEASIBLE")
    assert outcome.bounding_box()["y"] < page.locator(".verdict").bounding_box()["y"]
    assert page.locator("h2").first.inner_text() == "Gates"
    colours = [
        page.locator(f".gates .{kind}").first.evaluate("e => getComputedStyle(e).color")
        for kind in ("good", "bad")
    ]
    assert len(set(colours)) == 2
    tables = page.locator(".plain").evaluate_all(
        "found => found.map(t => t.parentElement.scrollWidth - t.parentElement.clientWidth)"
    )
    assert tables[:2] == [0, 0]  # gates and rounds need no scrolling
    page.close()
