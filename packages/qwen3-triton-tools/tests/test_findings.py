from qwen3_triton_tools.findings import (
    Finding,
    Section,
    failure,
    mask_secrets,
    note,
    ok,
    render_findings,
    render_sections,
    summarize,
)
from qwen3_triton_tools.verify import CHECKS, golden_checks, text_checks, vector_checks

WRONG = Finding("norm", "error", "norm 2", "norm 1", "Not normalized.", "Normalize it.")


def test_a_finding_is_printed_with_what_was_expected_its_cause_and_its_remedy() -> None:
    assert [line for line, _ in render_findings([WRONG])] == [
        "  ✗ norm  norm 2 (expected: norm 1)",
        "          Cause: Not normalized.",
        "          -> Normalize it.",
    ]


def test_sections_share_a_column_and_end_with_a_summary() -> None:
    sections = [Section("A", (ok("x", "fine"),)), Section("B", (WRONG, note("y", "so")))]
    lines = [line for line, _ in render_sections(sections)]
    assert lines[:2] == ["A", "  ✓ x     fine"]
    assert lines[-1] == "1 ok, 1 note, 1 error"


def test_counts_have_plurals() -> None:
    assert summarize([WRONG, WRONG, ok("x", "fine"), ok("y", "fine")]) == "2 ok, 2 errors"


def test_secrets_are_masked_in_every_text() -> None:
    finding = failure("db", "postgres://me:pw@h failed: s3cret", "Set password='x y' for s3cret.")
    [section] = mask_secrets([Section("Database", (finding,))], ["s3cret"])
    [masked] = section.findings
    assert masked.message == "postgres://me:***@h failed: ***"
    assert masked.remedy == "Set password=*** for ***."


def test_no_two_checks_of_a_served_model_share_a_name() -> None:
    modules = (vector_checks, text_checks, golden_checks)
    assert len(CHECKS) == sum(len(module.CHECKS) for module in modules)
