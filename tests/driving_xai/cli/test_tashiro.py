"""The paper's experiments from the command line: what they refuse, and how."""

import pytest

EXPERIMENTS = ("tashiro-table2", "tashiro-fig6", "tashiro-fig7", "tashiro-fig9")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_listed_and_explains_itself(run, name) -> None:
    assert name in run("experiment", "--help").output
    shown = run("experiment", name, "--help")
    assert shown.exit_code == 0
    assert f"driving-xai experiment {name} shards" in shown.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--set", "methods_every=15"), 2, "expected a multiple of score_every, 10"),
        (("--set", "run=3"), 2, "did you mean runs?"),
        (("--set", 'roles=["loud"]'), 2, "expected one of"),
        ((), 3, "no manifest"),
    ],
    ids=["cannot be compared", "typing error", "unknown role", "no shards"],
)
def test_what_cannot_run_is_one_line_and_a_code(run, tmp_path, arguments, code, message) -> None:
    result = run("experiment", "tashiro-fig6", tmp_path, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
