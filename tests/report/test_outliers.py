from dataclasses import replace

from compress.report import html, markdown
from compress.report.outliers import outlier_table, outlier_text
from compress.results import StageResult


def with_outliers(results):
    linears = [
        replace(
            linear, method="llm_int8", outlier_columns=3, outlier_share=0.25,
            largest_columns=(7, 1, 5),
        )
        if linear.block == 2 and linear.role in ("gate", "up")
        else replace(linear, method="llm_int8")
        for linear in results.linears
    ]  # fmt: skip
    return replace(results, stages=(StageResult("quantize", "llm_int8", tuple(linears)),))


def test_a_run_without_outliers_says_nothing_of_them(results):
    assert outlier_text(results) == ""
    assert outlier_table(results).rows == ()
    assert "Outlier columns" not in markdown.render(results, None)


def test_linears_that_share_an_input_have_one_row(results):
    found = with_outliers(results)
    assert outlier_table(found).rows == (("2", "gate, up", "3", "25.00%", "7, 1, 5"),)
    assert outlier_text(found).startswith(
        f"In the calibration 2 of {len(found.linears)} linears were fed outliers."
    )
    assert "most in model.layers.2.mlp.gate_proj: 25.0%." in outlier_text(found)


def test_both_pages_show_them(results):
    found = with_outliers(results)
    for page in (html.render(found, None), markdown.render(found, None)):
        assert "Outlier columns" in page
        assert "7, 1, 5" in page
