import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from compress.report import plots, rows
from compress.results import Divergence


@pytest.fixture
def linears(results):
    return rows.linears(results)


def titles(svg):
    return [title.text for title in ElementTree.fromstring(svg).iter("title")]


@pytest.mark.parametrize("tall", [False, True])
def test_heat_map_has_a_titled_cell_for_every_block_linear(linears, tall):
    svg = plots.heat_map(linears, tall=tall)
    assert svg.count('class="cell"') == 30 * 7
    named = titles(svg)
    assert len(named) == 210
    assert "model.layers.29.mlp.down_proj: kept dense" in named
    assert not any("lm_head" in title for title in named)


@pytest.mark.parametrize("tall", [False, True])
def test_bits_map_says_the_bits_of_every_block_linear_in_words_and_numbers(allocated, tall):
    svg = plots.bits_map(rows.linears(allocated), tall=tall)
    assert svg.count('class="cell"') == 30 * 7
    named = titles(svg)
    assert "model.layers.3.self_attn.o_proj: 2 bits" in named
    assert "model.layers.29.mlp.down_proj: kept dense" in named
    written = [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter("text")
    ]
    assert [written.count(bits) >= count for bits, count in (("8", 29), ("×", 1))] == [True, True]
    assert "30 linears at 2 bits" in ElementTree.fromstring(svg).get("aria-label")
    assert not re.search(r"#[0-9a-fA-F]{6}", svg)


def test_each_width_has_a_colour_and_a_number_that_shows_on_it():
    assert set(plots.BITS) == {2, 3, 4, 8}
    assert len({colour for colour, _ in plots.BITS.values()}) == 4


def test_larger_errors_are_painted_in_higher_levels(linears):
    svg = plots.heat_map(linears)
    cells = re.findall(r"fill: var\(--heat-(\d)\).*?<title>([^:]+):", svg, re.S)
    level = {name: int(number) for number, name in cells}
    errors = sorted(
        (linear.relative_error, level[linear.name]) for linear in linears if linear.name in level
    )
    levels = [painted for _, painted in errors]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, plots.HEAT_LEVELS - 1)


def test_errors_that_are_all_equal_can_be_drawn(linears):
    same = [replace(r, relative_error=0.01, outcome="solved") for r in linears]
    assert plots.heat_map(same).count('class="cell"') == 210


def test_errors_off_the_scale_can_be_drawn(linears):
    odd = [
        replace(linears[0], relative_error=0.0),
        replace(linears[1], relative_error=float("inf")),
    ]
    assert plots.heat_map(odd).count("var(--dense)") == 2


def test_every_colour_is_a_variable_of_the_page(results, linears):
    drawn = [plots.heat_map(linears), plots.divergence(results.divergence)]
    drawn.append(plots.sizes(results.sizes))
    for svg in drawn:
        assert not re.search(r"#[0-9a-fA-F]{6}", svg)
        assert "var(--" in svg
        assert "DejaVu" not in svg


def test_figures_are_labelled_and_share_no_id(results, linears):
    drawn = [plots.heat_map(linears, tall=tall) for tall in (False, True)]
    drawn += [plots.divergence(results.divergence, narrow=narrow) for narrow in (False, True)]
    drawn += [plots.sizes(results.sizes, narrow=narrow) for narrow in (False, True)]
    ids = [id_ for svg in drawn for id_ in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 40


def test_the_same_results_give_the_same_bytes_whatever_the_user_set(results, linears):
    import matplotlib

    first = plots.heat_map(linears), plots.divergence(results.divergence)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        again = plots.heat_map(linears), plots.divergence(results.divergence)
    assert first == again


def test_empty_bins_at_both_ends_are_left_out():
    edges = (0.0, 1e-6, 1e-4, 1e-2, 1.0, 100.0)
    kl = Divergence("set", 6, 0.1, 0.1, 0.5, 0.9, 1, edges, (0, 0, 2, 4, 0))
    assert plots._trimmed(kl) == ([1e-4, 1e-2, 1.0], [2, 4])


def test_a_first_edge_of_zero_finds_a_place_on_a_logarithmic_axis():
    kl = Divergence("set", 6, 0.1, 0.1, 0.5, 0.9, 1, (0.0, 1e-2, 1.0), (2, 4))
    assert plots._trimmed(kl)[0] == [1e-4, 1e-2, 1.0]
    assert "<svg" in plots.divergence(kl)


def test_a_histogram_of_nothing_can_be_drawn():
    kl = Divergence("set", 0, 0.0, 0.0, 0.0, 1.0, 0, (1e-3, 1e-2), (0,))
    assert "<svg" in plots.divergence(kl)


def test_both_bars_say_their_sums(results):
    said = ElementTree.fromstring(plots.sizes(results.sizes))
    text = " ".join("".join(node.itertext()) for node in said.iter("text"))
    assert "before" in text
    assert "271 MB" in text
    assert "90.4 MB" in text
    assert "head 29.2 MB" in said.get("aria-label")
